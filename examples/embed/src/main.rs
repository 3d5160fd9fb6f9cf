//! Asks a bundle about one text: which label it has, and what the chosen module says to it.

use conpet_runtime::Result;
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_runtime::text::Request;
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, bundle, text] = &args[..] else { panic!("give BASE.gguf SKILLS.cpb TEXT") };
    let engine = Engine::open(Path::new(base), 0)?;
    let skills = Skills::open(Path::new(bundle), &engine.base)?;
    for a in engine.classify(&skills, &[text.as_str()], None)? {
        let task = &skills.manifest().tasks[a.task].name;
        let label = a.label.as_deref().unwrap_or("(answered by text)");
        println!("{task}: {label}, probability {:.3}, refused: {}", a.probability, a.abstain);
    }
    let request = Request { text: text.clone(), max_tokens: Some(32), ..Request::default() };
    let answer = engine.generate(Some(&skills), &request, &mut |_| true)?;
    println!("{} ({})", answer.text.trim(), answer.finish.name());
    Ok(())
}
