//! Fuzzes templates. An accepted one writes its own text and the input, as plain replacement does, and no more.

use crate::recipe;
use conpet_formats::template;

const WORDS: [&str; 12] = [
    "{input}",
    "{",
    "}",
    "{{",
    "}}",
    "{label}",
    "{labels}",
    "{{input}}",
    "{% for x in y %}",
    "{input!r}",
    "\u{0}",
    "{ input }",
];

pub(crate) fn run(data: &[u8]) {
    let file = match recipe::raw(data) {
        Some(file) => file.to_vec(),
        None => {
            let mut text = b"Topic of: {input}\nAnswer: {{x}}".to_vec();
            recipe::text_edits(&mut recipe::recipe(data), &mut text, &WORDS);
            text
        }
    };
    let Ok(text) = std::str::from_utf8(&file) else { return };
    let input = "<in{put}{input}>";
    match (template::check(text), template::render(text, input)) {
        (Ok(()), Ok(out)) => {
            assert!(text.len() <= template::CAP && out.len() <= text.len() + input.len());
            // Compare from both ends: the text before the input, and the text after it.
            let (before, after) = halves(text);
            let plain = |s: &str| s.replace("{{", "{").replace("}}", "}");
            assert_eq!(out, format!("{}{input}{}", plain(before), plain(after)));
        }
        (Err(a), Err(b)) => assert_eq!(a.code(), b.code()),
        (a, b) => panic!("checked {a:?}, rendered {b:?}"),
    }
}

/// Cuts at the one `{input}` that is not part of doubled braces.
fn halves(text: &str) -> (&str, &str) {
    let mut at = 0;
    loop {
        let open = at + text[at..].find('{').expect("an accepted template has a place");
        if text[open..].starts_with("{{") {
            at = open + 2;
        } else {
            return (&text[..open], &text[open + "{input}".len()..]);
        }
    }
}
