//! Our tokenizer against the `tokenizers` crate, built from the same tables and the patterns as
//! llama.cpp and Hugging Face write them.

#![expect(clippy::print_stdout, reason = "a test that is skipped, or measures, says so")]

use conpet_formats::gguf::{Gguf, Writer};
use conpet_formats::mmap::Mapped;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_runtime::tokenizer::Tokenizer;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn strings(gguf: &Gguf<'_>, key: &str) -> Vec<String> {
    gguf.array(key).unwrap().unwrap().strings().unwrap().map(|s| String::from_utf8_lossy(s).into_owned()).collect()
}

fn oracle(gguf: &Gguf<'_>, pre: &str) -> tokenizers::Tokenizer {
    let tokens = strings(gguf, "tokenizer.ggml.tokens");
    let merges: Vec<(String, String)> = strings(gguf, "tokenizer.ggml.merges")
        .iter()
        .map(|m| m.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap())
        .collect();
    let vocab: ahash::AHashMap<String, u32> = tokens.into_iter().enumerate().map(|(i, t)| (t, i as u32)).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).build().unwrap();
    let mut t = tokenizers::Tokenizer::new(bpe);
    let split = |p: &str| Split::new(SplitPattern::Regex(p.into()), SplitDelimiterBehavior::Isolated, false).unwrap();
    let pre: Vec<PreTokenizerWrapper> = match pre {
        "smollm" => vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()],
        "gpt-2" => vec![ByteLevel::new(false, true, true).into()],
        "llama-bpe" => vec![split(LLAMA3).into(), ByteLevel::new(false, true, false).into()],
        "qwen2" => vec![split(&LLAMA3.replace("{1,3}", "")).into(), ByteLevel::new(false, true, false).into()],
        other => panic!("{other}"),
    };
    t.with_pre_tokenizer(Some(Sequence::new(pre)));
    t
}

/// The tiny base's tables with another pre-tokenizer.
fn with_pre(bytes: &[u8], pre: &str) -> Vec<u8> {
    let g = Gguf::parse(bytes).unwrap();
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &strings(&g, "tokenizer.ggml.tokens"))
        .strings("tokenizer.ggml.merges", &strings(&g, "tokenizer.ggml.merges"));
    let mut out = Vec::new();
    w.finish(&mut out, |_| Ok(Vec::<u8>::new())).unwrap();
    out
}

fn texts() -> Vec<String> {
    let mut out: Vec<String> = [
        "Hello, world! It's 2026; we'll see  what   they'd DON'T do.",
        "  leading and trailing  ",
        "\n\n\tnew\r\nlines \n x",
        "1234567890 12.5e-3 ½ ٣٤ Ⅷ",
        "naïve façade Ünïcødé ﬁ ß",
        "日本語のテキスト。中文字符，한국어",
        "emoji 🙂👩‍👩‍👧 flags 🇩🇪",
        "العربية हिन्दी ไทย",
        "snake_case CamelCase kebab-case a/b\\c <tag attr='x'>",
        "'s'S 'RE 'lL it'ſ",
        "e\u{301} combining, \u{a0}nbsp\u{2003}em space\u{200b}zero",
        "",
    ]
    .map(String::from)
    .to_vec();
    // Random strings of awkward characters.
    let alphabet: Vec<char> = " \t\n\r'a bZé1٣.½日_-!🙂\u{301}\u{a0}sStTlLrReE".chars().collect();
    let mut state = 12345u64;
    for _ in 0..2000 {
        let s = (0..20)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                alphabet[(state >> 33) as usize % alphabet.len()]
            })
            .collect();
        out.push(s);
    }
    out
}

fn compare(bytes: Vec<u8>, pre: &str) {
    let map = Mapped::from_vec(bytes);
    let g = Gguf::parse(&map).unwrap();
    let ours = Tokenizer::from_gguf(&g, map.clone()).unwrap();
    let theirs = oracle(&g, pre);
    for text in texts() {
        let want = theirs.encode(text.as_str(), false).unwrap();
        assert_eq!(ours.encode(&text, false).unwrap(), want.get_ids(), "{pre}: {text:?} as {:?}", want.get_tokens());
    }
}

#[test]
fn tokens_equal_the_library_for_every_pattern() {
    let tiny = tiny::base(&TinyConfig::default()).unwrap();
    for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2"] {
        compare(with_pre(&tiny, pre), pre);
    }
}

#[test]
fn tokens_equal_the_library_on_smollm2() {
    match conpet_tests::real_base() {
        Some(path) => compare(std::fs::read(path).unwrap(), "smollm"),
        None => println!("skipped: no SmolLM2 base here (run examples/first-run.sh, or set CONPET_BASE)"),
    }
}
