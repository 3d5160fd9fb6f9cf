use conpet_runtime::{engine::Engine, forward::Scratch, generate::Request};
fn main() {
    let t=std::time::Instant::now();
    let e = Engine::open(std::path::Path::new(&std::env::args().nth(1).unwrap()), 2).unwrap();
    eprintln!("open {:?} kernels {}", t.elapsed(), e.kernels.name());
    let mut s = Scratch::default();
    let g = e.generate(None, &Request{ text: std::env::args().nth(2).unwrap(), special: true, max_tokens: Some(64), ..Request::default() }, &mut s, &mut |p| {print!("{p}"); true}).unwrap();
    println!();
    eprintln!("prompt {} in {:?}; answer {} in {:?} = {:.1} tok/s", g.prompt_tokens, g.prompt_time, g.tokens.len(), g.answer_time, g.tokens.len() as f64/g.answer_time.as_secs_f64());
    let p = e.prompt(&"The quick brown fox jumps over the lazy dog and runs away. ".repeat(36), false).unwrap();
    let t=std::time::Instant::now();
    let st = e.trunk(&[&p], 30, None, &mut s);
    eprintln!("prefill {} tokens: {:.1} tok/s {}", p.tokens.len(), p.tokens.len() as f64/t.elapsed().as_secs_f64(), st.hidden[0]);
    eprintln!("{:?}", conpet_runtime::memory::Memory::now());
}
