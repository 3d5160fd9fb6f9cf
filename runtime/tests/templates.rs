//! Chat templates give what jinja2 gives as transformers sets it up, and no speaker can spell a control token.
//!
//! `tests/data/templates` has templates in the shapes that models bring along, conversations, and what jinja2 made of
//! them (`tests/peers/templates.py`).

use conpet_runtime::chat::{ChatTemplate, Message};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/templates")
}

fn read(name: &str) -> String {
    let path = data().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(name: &str) -> Value {
    serde_json::from_str(&read(name)).unwrap()
}

/// The templates by name, each with its special tokens and at the time of the corpus.
fn templates(corpus: &Value) -> BTreeMap<String, ChatTemplate> {
    let names = std::fs::read_dir(data()).unwrap().filter_map(|f| {
        let name = f.unwrap().file_name().into_string().unwrap();
        name.strip_suffix(".jinja").map(str::to_owned)
    });
    names.map(|n| (n.clone(), template(corpus, &read(&format!("{n}.jinja")), &n).unwrap())).collect()
}

fn template(corpus: &Value, source: &str, name: &str) -> conpet_runtime::error::Result<ChatTemplate> {
    let tokens = corpus["tokens"].get(name).unwrap_or(&corpus["tokens"]["default"]);
    let tokens: Vec<(&str, &str)> =
        tokens.as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
    ChatTemplate::new(source)?.with_tokens(&tokens).at(corpus["now"].as_i64().unwrap())
}

fn messages(conversation: &Value) -> Vec<Message> {
    let turns = conversation["messages"].as_array().unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    turns.iter().map(|t| Message { role: text(&t[0]), content: text(&t[1]) }).collect()
}

/// Compares with what jinja2 gave: the text, or that it is refused, with the same words if the template has some.
fn compare(
    what: &str,
    ours: &conpet_runtime::error::Result<(String, Vec<Range<usize>>)>,
    expected: &Value,
) -> Option<String> {
    match (ours, expected["text"].as_str()) {
        (Ok((text, _)), Some(e)) if text == e => None,
        (Err(e), None) => {
            let said = expected["error"].as_str().unwrap();
            (said.starts_with("The template says") && !e.to_string().contains(said))
                .then(|| format!("{what}: {e}\n  jinja2 fails: {said}"))
        }
        (ours, _) => Some(format!("{what}:\n  ours   {:?}\n  jinja2 {expected}", ours.as_ref().map_err(|e| e.to_string()))),
    }
}

#[test]
fn every_template_is_rendered_as_jinja2_renders_it() {
    let (corpus, expected) = (json("corpus.json"), json("expected.json"));
    let templates = templates(&corpus);
    assert!(templates.len() >= 40, "{} templates", templates.len());
    let mut wrong = Vec::new();
    for (name, template) in &templates {
        for (n, c) in corpus["conversations"].as_array().unwrap().iter().enumerate() {
            let ours = template.render(&messages(c), c["answer"].as_bool().unwrap());
            wrong.extend(compare(&format!("{name}, {}", c["name"]), &ours, &expected["templates"][name][n]));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Python and Jinja in small: one line, one thing. What is not as in Python is refused (the lines that begin with !).
#[test]
fn every_snippet_gives_what_jinja2_gives() {
    let (corpus, expected) = (json("corpus.json"), json("expected.json"));
    let talk = &corpus["snippets"];
    let source = read("snippets.txt");
    let lines = source.split('\n').filter(|l| !l.is_empty() && !l.starts_with("## "));
    let mut wrong = Vec::new();
    for (n, line) in lines.enumerate() {
        let (refused, line) = (line.starts_with('!'), line.trim_start_matches('!'));
        let ours = template(&corpus, line, "default").and_then(|t| t.render(&messages(talk), true));
        if refused {
            assert!(expected["snippets"][n]["text"].is_string(), "jinja2 refuses {line}");
            wrong.extend(ours.is_ok().then(|| format!("{line} is not refused")));
        } else {
            wrong.extend(compare(line, &ours, &expected["snippets"][n]));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
