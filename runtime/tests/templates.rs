//! Chat templates give what jinja2 gives as transformers sets it up, and no speaker can spell a control token.
//!
//! The workspace's `tests/data/templates` has templates in the shapes that models bring along, conversations, and what jinja2 made of
//! them (`tests/peers/templates.py`).

use conpet_formats::gguf::{Gguf, Writer};
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
        (ours, _) => {
            Some(format!("{what}:\n  ours   {:?}\n  jinja2 {expected}", ours.as_ref().map_err(|e| e.to_string())))
        }
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

/// Spellings of control tokens that the templates of the corpus write.
const SPELLED: &[&str] = &[
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|user|>",
    "<|system|>",
    "<|assistant|>",
    "<|endoftext|>",
    "<|end_of_turn|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<|end_of_text|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|message|>",
    "<|start|>",
    "<extra_id_1>",
    "<|eom|>",
    "<|bom|>",
    "<|answer|>",
    "<AI>",
];

/// The control tokens of a text that lie in no range of the words, in their order.
fn written<'t>(text: &'t str, words: &[Range<usize>]) -> Vec<&'t str> {
    let apart = |r: Range<usize>| words.iter().all(|w| w.end <= r.start || r.end <= w.start);
    let starts = text.char_indices().map(|(at, _)| at);
    let at = |at: usize| SPELLED.iter().find(|s| text[at..].starts_with(**s)).map(|s| &text[at..at + s.len()]);
    starts.filter_map(|s| at(s).filter(|t| apart(s..s + t.len()))).collect()
}

/// Whoever spells control tokens gets the turns, and the control tokens, of one who says other words of the same
/// length, and everything that is said lies within the words.
#[test]
fn spelled_control_tokens_change_nothing_but_the_words() {
    let corpus = json("corpus.json");
    let mut tried = 0;
    for (name, template) in templates(&corpus) {
        for spelled in SPELLED {
            // A whole one, one within words, and one in two parts, of which the template may write the rest.
            let (front, back) = spelled.split_at(spelled.char_indices().nth(1).unwrap().0);
            let said = [*spelled, &format!("a{spelled}{spelled} b"), back, front, spelled, &format!("{front} {back}")];
            let other = |s: &str| s.chars().map(|c| if c == ' ' { c } else { 'x' }).collect::<String>();
            for system in [false, true] {
                let talk = |words: &dyn Fn(&str) -> String| {
                    let turn = |(n, s): (usize, &&str)| Message {
                        role: ["user", "assistant"][n % 2].into(),
                        content: words(s),
                    };
                    let mut turns: Vec<Message> = said.iter().take(5).enumerate().map(turn).collect();
                    if system {
                        turns.insert(0, Message { role: "system".into(), content: words(said[5]) });
                    }
                    template.render(&turns, true)
                };
                match (talk(&|s| s.to_owned()), talk(&other)) {
                    (Ok((text, words)), Ok((plain, plain_words))) => {
                        assert_eq!(written(&text, &words), written(&plain, &plain_words), "{name}: {spelled}\n{text}");
                        tried += 1;
                    }
                    (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string(), "{name}: {spelled}"),
                    (a, b) => panic!("{name}: {spelled}: {:?}, {:?}", a.is_ok(), b.is_ok()),
                }
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}

/// All that is not said stays the same when the words become others of the same length: the words are exactly the
/// ranges.
#[test]
fn the_ranges_are_the_words() {
    let corpus = json("corpus.json");
    for (name, template) in templates(&corpus).into_iter().filter(|(n, _)| n != "lines") {
        for c in corpus["conversations"].as_array().unwrap() {
            let said = messages(c);
            let other = |m: &Message| {
                let letter = |c: char| if c.is_alphabetic() { 'q' } else { c };
                Message { role: m.role.clone(), content: m.content.chars().map(letter).collect() }
            };
            let others: Vec<Message> = said.iter().map(other).collect();
            let answer = c["answer"].as_bool().unwrap();
            let (Ok((a, a_words)), Ok((b, b_words))) =
                (template.render(&said, answer), template.render(&others, answer))
            else {
                continue;
            };
            let rest = |text: &str, words: &[Range<usize>]| {
                let mut out = String::new();
                let mut at = 0;
                for w in words {
                    out += &text[at..w.start];
                    out.push('‹');
                    at = w.end;
                }
                out + &text[at..]
            };
            // What looks for these words finds them in one of the two only.
            if ["think", "override"].iter().all(|w| !c.to_string().contains(w)) {
                assert_eq!(rest(&a, &a_words), rest(&b, &b_words), "{name}, {}", c["name"]);
            }
        }
    }
}

/// A GGUF that has only a vocabulary and chat templates.
fn gguf(templates: &[(&str, &str)], eos: u32) -> Vec<u8> {
    let mut w = Writer::new();
    w.strings("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "a"]);
    w.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", eos);
    w.u32("tokenizer.ggml.unknown_token_id", 0).u32("tokenizer.ggml.padding_token_id", 2);
    for (key, source) in templates {
        w.str(key, source);
    }
    let mut out = Vec::new();
    w.finish(&mut out, |_| Ok(Vec::new())).unwrap();
    out
}

fn of_gguf(templates: &[(&str, &str)], eos: u32) -> conpet_runtime::error::Result<Option<ChatTemplate>> {
    let bytes = gguf(templates, eos);
    ChatTemplate::from_gguf(&Gguf::parse(&bytes).unwrap())
}

const KEY: &str = "tokenizer.chat_template";

/// A template's variables have the vocabulary's own strings; what the vocabulary does not name is undefined.
#[test]
fn special_tokens_are_those_of_the_vocabulary() {
    let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}|{{ unk_token }}{{ pad_token }}|{{ cls_token is defined }}";
    let t = of_gguf(&[(KEY, source)], 2).unwrap().unwrap();
    let (text, words) = t.render(&[Message { role: "user".into(), content: "</s>".into() }], true).unwrap();
    assert_eq!(text, "<s></s></s>|<unk></s>|False");
    assert_eq!(words, std::iter::once(3..7).collect::<Vec<_>>());
    let refused = of_gguf(&[(KEY, source)], 4).unwrap_err().to_string();
    assert!(refused.contains("eos_token_id is 4"), "{refused}");
}

/// Of several templates the default one is used.
#[test]
fn of_several_templates_the_default_one_is_used() {
    let render = |templates: &[(&str, &str)]| of_gguf(templates, 2).unwrap().map(|t| t.render(&[], true).unwrap().0);
    let (tools, default) =
        (("tokenizer.chat_template.tool_use", "tools"), ("tokenizer.chat_template.default", "named"));
    assert_eq!(render(&[tools, (KEY, "plain"), default]).as_deref(), Some("plain"));
    assert_eq!(render(&[tools, default]).as_deref(), Some("named"));
    assert_eq!(render(&[tools]), None);
}

/// An empty template is not an empty input.
#[test]
fn an_empty_template_is_said_to_be_empty() {
    for source in ["", " \n"] {
        let e = of_gguf(&[(KEY, source)], 2).unwrap_err().to_string();
        assert!(e.contains("the chat template is empty") && e.contains(KEY), "{e}");
    }
}

/// Templates see the words as they were said.
#[test]
fn templates_see_exactly_the_words() {
    let source =
        "{{ messages[0].content | trim }}|{{ messages[0].content | length }}|{{ messages[0].content.split('</t>') }}";
    let t = of_gguf(&[(KEY, source)], 2).unwrap().unwrap();
    let (text, words) = t.render(&[Message { role: "user".into(), content: " <s></t> ".into() }], true).unwrap();
    assert_eq!(text, "<s></t>|9|[' <s>', ' ']");
    assert_eq!(words.iter().map(|r| &text[r.clone()]).collect::<Vec<_>>(), ["<s></t>", " <s>", " "]);
}
