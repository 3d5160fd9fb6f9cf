//! Fuzzes manifests in an otherwise good bundle. An accepted manifest must be in canonical form.

use crate::forge::{bundle_bytes, get, manifest, with_manifest};
use crate::recipe;
use conpet_formats::bundle::{Bundle, check_manifest};
use std::path::Path;

const WORDS: [&str; 30] = [
    "null",
    "true",
    "0",
    "-0",
    "-1",
    "1.0",
    "1e3",
    "4294967296",
    "9007199254740992",
    "18446744073709551616",
    "\"\"",
    "[]",
    "{}",
    "\"1e999\"",
    "\"0.5\"",
    "\"-2\"",
    "\"\\u0061\"",
    "\"\\ud800\"",
    "\"\u{202e}\"",
    "\"m0001\"",
    "\"h0001\"",
    "\"lora\"",
    "\"bias\"",
    "\"ensemble\":[1],",
    "\"pet\":\"lora:r=4,alpha=16+bias\",",
    "\"zz\":1,",
    "{input}",
    "{{",
    "last:marker:x",
    "span:a:b",
];

pub(crate) fn run(data: &[u8]) {
    let text = match recipe::raw(data) {
        Some(text) => text.to_vec(),
        None => {
            let mut text = manifest(bundle_bytes()).to_vec();
            recipe::text_edits(&mut recipe::recipe(data), &mut text, &WORDS);
            text
        }
    };
    if text.len() > 5 << 20 {
        return;
    }
    let file = with_manifest(bundle_bytes(), &text);
    if let Ok(b) = Bundle::from_bytes(file.clone(), Path::new("x.cpb")) {
        canonical(&file, crate::forge::commit_at(&file), &b);
    }
}

/// Checks that writing the stage again gives the same manifest as the commit at `at`.
pub(crate) fn canonical(file: &[u8], at: usize, b: &Bundle) {
    let begin = at + 144 + get(file, at + 56, 4) as usize * 96;
    let text = &file[begin..begin + get(file, at + 60, 4) as usize];
    assert_eq!(serde_json::to_vec(b.manifest()).unwrap(), text, "another spelling was accepted");
    let kinds: Vec<_> = b.section_records().iter().map(|r| r.kind).collect();
    check_manifest(b.manifest(), &kinds).unwrap();
}
