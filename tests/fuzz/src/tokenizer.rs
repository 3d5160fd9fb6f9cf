//! Fuzzes tokenizers built from spoiled tables. A text has at most as many tokens as bytes (and a leading
//! space), each in the vocabulary and with a valid range; and if the tables were not changed, decoding gives
//! the text back.

use crate::recipe;
use arbitrary::{Result, Unstructured};
use conpet_formats::gguf::{Gguf, Writer};
use conpet_formats::mmap::Mapped;
use conpet_runtime::tokenizer::Tokenizer;

const PRE: [&str; 8] = ["smollm", "llama-bpe", "dbrx", "gpt-2", "gpt-4o", "qwen2", "default", "no such"];
/// Those of which every text comes back as it was: the others are refused, or compose characters.
const EXACT: usize = 5;
const SPELLINGS: [&str; 16] = [
    "",
    "a",
    "ab",
    " ",
    "\u{2581}",
    "\u{120}",
    "<0x41>",
    "<0xZZ>",
    "<|im_end|>",
    "<end_of_turn>",
    "</s>",
    "\n\n",
    "\u{202e}",
    "\u{1F642}",
    "tttttttttttttttt",
    "é",
];
const TEXTS: [&str; 5] =
    ["", "the list of files", "a<|im_end|>b", " and 42 water\n\n  x\u{0}", "naïve 日本語 🙂 tttttttttttttttttttttttt"];

pub(crate) fn run(data: &[u8]) {
    let (file, whole) = match recipe::raw(data) {
        Some(file) => (file.to_vec(), false),
        None => tables(&mut recipe::recipe(data)),
    };
    let map = Mapped::from_vec(file);
    let Ok(gguf) = Gguf::parse(&map) else { return };
    let Ok(t) = Tokenizer::from_gguf(&gguf, map.clone()) else {
        assert!(!whole, "good tables are refused");
        return;
    };
    let own = String::from_utf8_lossy(data);
    for text in TEXTS.into_iter().chain([own.as_ref()]) {
        let said = [0..text.len() / 3, text.len() / 2..text.len()]
            .map(|r| text.floor_char_boundary(r.start)..text.floor_char_boundary(r.end));
        for words in [None, Some(&[][..]), Some(&said[..])] {
            let (tokens, offsets) = t.encode_with_offsets(text, words).expect("a text below the cap");
            // A leading space of three bytes may be added at the beginning and after each special token.
            assert!(tokens.len() <= 4 * text.len() + 3, "{} tokens for {} bytes", tokens.len(), text.len());
            assert!(tokens.iter().all(|id| (*id as usize) < t.n_vocab()));
            assert_eq!(tokens.len(), offsets.len());
            let mut at = 0;
            for r in &offsets {
                assert!(r.start <= r.end && r.end <= text.len() && r.start >= at, "{r:?} after {at} in {text:?}");
                // The bytes of one character share its range.
                at = r.start;
            }
            let decoded = t.decode(&tokens);
            assert_eq!(decoded.len(), tokens.iter().map(|id| t.token_bytes(*id).len()).sum::<usize>());
            if whole && words.is_none() {
                let back = String::from_utf8(decoded).expect("a text comes back as text");
                // Except for the spaces that SentencePiece adds at each beginning.
                assert_eq!(back.replace(' ', ""), text.replace(' ', ""));
            }
        }
    }
    t.decode(&[0, u32::MAX, t.n_vocab() as u32]);
    assert!(t.bos().into_iter().chain(t.eos()).all(|id| (id as usize) < t.n_vocab()));
}

struct Tables {
    tokens: Vec<String>,
    merges: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
    special: u32,
}

/// A file of tables with edits; true if there was none.
fn tables(u: &mut Unstructured<'_>) -> (Vec<u8>, bool) {
    let bpe = u.arbitrary().unwrap_or(true);
    let (mut t, pre) = (good(bpe), *u.choose(&PRE).unwrap_or(&PRE[0]));
    let edits = u.int_in_range(0..=6).unwrap_or(0);
    let mut done = 0;
    while done < edits && !u.is_empty() && edit(u, &mut t).is_ok() {
        done += 1;
    }
    // The same tables as word pieces or as a unigram vocabulary, which has no bytes.
    let other = u.arbitrary().unwrap_or(false);
    let model = match (other, bpe) {
        (false, true) => "gpt2",
        (false, false) => "llama",
        (true, true) => "bert",
        (true, false) => "t5",
    };
    if other {
        t.kinds.iter_mut().filter(|k| **k == 6).for_each(|k| *k = 1);
    }
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", model).str("tokenizer.ggml.pre", pre);
    w.strings("tokenizer.ggml.tokens", &t.tokens).strings("tokenizer.ggml.merges", &t.merges);
    w.f32s("tokenizer.ggml.scores", &t.scores).i32s("tokenizer.ggml.token_type", &t.kinds);
    for key in ["bos", "eos", "eot", "unknown"] {
        w.u32(&format!("tokenizer.ggml.{key}_token_id"), t.special);
    }
    let mut file = Vec::new();
    w.finish(&mut file, |_| Ok(&[][..])).expect("tables are written");
    // Sometimes the tokens' bytes too.
    let torn = u.ratio(1u8, 4u8).unwrap_or(false);
    if torn {
        recipe::edits(u, &mut file, &[]);
    }
    (file, done == 0 && !torn && !other && (!bpe || PRE[..EXACT].contains(&pre)))
}

/// All bytes, some words, and the merges that make them.
fn good(bpe: bool) -> Tables {
    let mut tokens = vec!["<unk>".to_owned(), "<|im_end|>".into(), "\n\n".into()];
    let mut kinds = vec![2, 3, 4];
    for b in 0..=255u8 {
        tokens.push(if bpe { spelled(b) } else { format!("<0x{b:02X}>") });
        kinds.push(if bpe { 1 } else { 6 });
    }
    let mut merges = Vec::new();
    for (left, right) in [("t", "h"), ("th", "e"), ("l", "i"), ("li", "s"), ("t", "t"), ("tt", "tt"), ("tttt", "tttt")]
    {
        merges.push(format!("{left} {right}"));
        tokens.extend([left, right].map(str::to_owned).into_iter().filter(|_| !bpe));
        tokens.push(format!("{left}{right}"));
    }
    tokens.extend(["\u{2581}".to_owned()].into_iter().filter(|_| !bpe));
    kinds.resize(tokens.len(), 1);
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    Tables { tokens, merges, scores, kinds, special: 1 }
}

/// GPT-2's printable character for a byte.
fn spelled(b: u8) -> String {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let c = if printable(b) { u32::from(b) } else { 256 + (0..b).filter(|x| !printable(*x)).count() as u32 };
    char::from_u32(c).expect("a character").to_string()
}

fn edit(u: &mut Unstructured<'_>, t: &mut Tables) -> Result<()> {
    let i = u.choose_index(t.tokens.len())?;
    match u.int_in_range(0..=9)? {
        0 | 1 => t.tokens[i] = (*u.choose(&SPELLINGS)?).into(),
        2 => t.tokens[i] = t.tokens[u.choose_index(t.tokens.len())?].clone(),
        3 => {
            let n = *u.choose(&[0usize, 2, 100, 30_000])?;
            // Longer than a token's cap, but not by repeating what was already repeated.
            if t.tokens[i].len() * n <= 1 << 18 {
                t.tokens[i] = t.tokens[i].repeat(n);
            }
        }
        4 => {
            let (a, b) = (*u.choose(&SPELLINGS)?, *u.choose(&SPELLINGS)?);
            t.merges.insert(u.choose_index(t.merges.len())?, format!("{a} {b}"));
        }
        5 => {
            // A merge of existing tokens.
            let (a, b) = (t.tokens[i].clone(), t.tokens[u.choose_index(t.tokens.len())?].clone());
            t.merges.push(format!("{a} {b}"));
            t.tokens.push(a + &b);
            t.kinds.push(*u.choose(&[1, 3, 4])?);
            t.scores.push(u.arbitrary()?);
        }
        6 => t.scores[i] = *u.choose(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX])?,
        7 => t.kinds[i] = *u.choose(&[0, 1, 2, 3, 4, 5, 6, 7, -1, i32::MAX])?,
        8 => t.special = *u.choose(&[0, 2, 300, 1 << 31, u32::MAX])?,
        _ => {
            t.tokens.truncate(i + 1);
            t.kinds.truncate(i + 1);
            t.scores.truncate(i + 1);
        }
    }
    Ok(())
}
