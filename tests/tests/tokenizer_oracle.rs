//! Our tokenizer against the `tokenizers` crate: on small vocabularies with every pattern and model, as the
//! families' own files write them, and on real vocabularies where `tests/peers/vocabularies.sh` has fetched them.

#![expect(clippy::print_stdout, reason = "a test that is skipped, or measures, says so")]

#[path = "tokenizer_oracle/texts.rs"]
mod texts;
#[path = "tokenizer_oracle/vocabulary.rs"]
mod vocabulary;

use conpet_formats::gguf::{Gguf, Writer};
use conpet_formats::mmap::Mapped;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_runtime::tokenizer::Tokenizer;
use std::time::{Duration, Instant};
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};
use vocabulary::Kind;

const CONTRACTIONS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const UPPER: &str = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
const LOWER: &str = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
const LEAD: &str = r"[^\r\n\p{L}\p{N}]?";
const SPACES: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";

fn llama3(digits: &str) -> String {
    format!(r"{CONTRACTIONS}|{LEAD}\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}")
}

fn with_marks() -> String {
    format!(r"{CONTRACTIONS}|{LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}")
}

fn cased(digits: &str, ending: &str) -> String {
    format!(
        r"{LEAD}{UPPER}*{LOWER}+{ending}|{LEAD}{UPPER}+{LOWER}*{ending}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
    )
}

fn strings(gguf: &Gguf<'_>, key: &str) -> Vec<String> {
    gguf.array(key).unwrap().unwrap().strings().unwrap().map(|s| String::from_utf8_lossy(s).into_owned()).collect()
}

/// How the library splits text for a name.
fn pre_tokenizers(name: &str) -> Vec<PreTokenizerWrapper> {
    let split = |p: &str| -> PreTokenizerWrapper {
        Split::new(SplitPattern::Regex(p.into()), SplitDelimiterBehavior::Isolated, false).unwrap().into()
    };
    let bytes = |regex: bool| -> PreTokenizerWrapper { ByteLevel::new(false, true, regex).into() };
    match name {
        "gpt-2" | "roberta-bpe" | "olmo" | "modern-bert" => vec![bytes(true)],
        "smollm" | "refact" | "starcoder" | "command-r" => vec![Digits::new(true).into(), bytes(true)],
        "llama-bpe" | "dbrx" => vec![split(&llama3("{1,3}")), bytes(false)],
        "minicpm5" => vec![split(r"\p{N}{1,3}"), split(&llama3("+")), bytes(false)],
        "qwen2" | "deepseek-r1-qwen" => vec![split(&llama3("")), bytes(false)],
        "qwen35" => vec![split(&with_marks()), bytes(false)],
        "tekken" => vec![split(&cased("", "")), bytes(false)],
        "gpt-4o" => vec![split(&cased("{1,3}", &format!("{CONTRACTIONS}?"))), bytes(false)],
        other => panic!("{other}"),
    }
}

fn oracle(gguf: &Gguf<'_>, pre: &str) -> tokenizers::Tokenizer {
    let tokens = strings(gguf, "tokenizer.ggml.tokens");
    let merges: Vec<(String, String)> = strings(gguf, "tokenizer.ggml.merges")
        .iter()
        .map(|m| m.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap())
        .collect();
    let vocab: ahash::AHashMap<String, u32> = tokens.into_iter().enumerate().map(|(i, t)| (t, i as u32)).collect();
    let whole = ["llama-bpe", "tekken", "minicpm5"].contains(&pre);
    let mut t = tokenizers::Tokenizer::new(
        BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(whole).build().unwrap(),
    );
    if ["qwen2", "qwen35", "olmo", "modern-bert", "command-r"].contains(&pre) {
        t.with_normalizer(Some(NFC)).unwrap();
    }
    t.with_pre_tokenizer(Some(Sequence::new(pre_tokenizers(pre))));
    t
}

/// The tiny base's tables with another pre-tokenizer, and with a word that no merge leads to.
fn with_pre(bytes: &[u8], pre: &str) -> Vec<u8> {
    let g = Gguf::parse(bytes).unwrap();
    let mut tokens = strings(&g, "tokenizer.ggml.tokens");
    tokens.extend(["Ġof", "Files", "Ã©", "日"].map(String::from));
    let mut seen = std::collections::HashSet::new();
    tokens.retain(|t| seen.insert(t.clone()));
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .strings("tokenizer.ggml.tokens", &tokens)
        .strings("tokenizer.ggml.merges", &strings(&g, "tokenizer.ggml.merges"));
    written(&w)
}

fn written(w: &Writer) -> Vec<u8> {
    let mut out = Vec::new();
    w.finish(&mut out, |_| Ok(Vec::<u8>::new())).unwrap();
    out
}

fn ours(bytes: Vec<u8>) -> Tokenizer {
    let map = Mapped::from_vec(bytes);
    Tokenizer::from_gguf(&Gguf::parse(&map).unwrap(), map.clone()).unwrap()
}

/// Tokenizes all lines with both, and compares; returns the time that each took.
fn compare<'l>(
    name: &str,
    ours: &Tokenizer,
    theirs: &tokenizers::Tokenizer,
    lines: impl IntoIterator<Item = &'l String>,
) -> Result<[Duration; 2], String> {
    let mut took = [Duration::ZERO; 2];
    for line in lines {
        let begin = Instant::now();
        let want = theirs.encode(line.as_str(), false).unwrap();
        took[1] += begin.elapsed();
        let begin = Instant::now();
        let got = ours.encode(line, false).unwrap();
        took[0] += begin.elapsed();
        if got != want.get_ids() {
            let at = got.iter().zip(want.get_ids()).take_while(|(a, b)| a == b).count();
            let shown = |ids: &[u32]| {
                let part = &ids[at.saturating_sub(3)..ids.len().min(at + 8)];
                part.iter().map(|t| format!("{t}={:?}", ours.decode_lossy(&[*t]))).collect::<Vec<_>>().join(" ")
            };
            let part: String = line.chars().take(300).collect();
            return Err(format!(
                "{name}: after {at} tokens of {part:?}\n ours   {}\n theirs {}",
                shown(&got),
                shown(want.get_ids())
            ));
        }
    }
    Ok(took)
}

#[test]
fn tokens_equal_the_library_for_every_pattern() {
    let tiny = tiny::base(&TinyConfig::default()).unwrap();
    let (lines, all) = (texts::lines(1000), texts::characters());
    for pre in [
        "gpt-2",
        "roberta-bpe",
        "olmo",
        "modern-bert",
        "smollm",
        "refact",
        "starcoder",
        "command-r",
        "llama-bpe",
        "dbrx",
        "minicpm5",
        "qwen2",
        "deepseek-r1-qwen",
        "qwen35",
        "tekken",
        "gpt-4o",
    ] {
        let bytes = with_pre(&tiny, pre);
        let theirs = oracle(&Gguf::parse(&bytes).unwrap(), pre);
        // The rules that tell classes of characters apart; the others are made of the same.
        let all: &[String] = if ["gpt-2", "qwen35", "gpt-4o"].contains(&pre) { &all } else { &[] };
        compare(pre, &ours(bytes.clone()), &theirs, lines.iter().chain(all)).unwrap();
    }
}

#[test]
fn tokens_equal_the_library_on_smollm2() {
    match conpet_tests::real_base() {
        Some(path) => {
            let bytes = std::fs::read(path).unwrap();
            let theirs = oracle(&Gguf::parse(&bytes).unwrap(), "smollm");
            compare("SmolLM2", &ours(bytes.clone()), &theirs, &texts::lines(2000)).unwrap();
        }
        None => println!("skipped: no SmolLM2 base here (run examples/first-run.sh, or set CONPET_BASE)"),
    }
}

/// Pieces of words: some whole, all single letters of the lines' first parts, and some endings.
fn word_pieces() -> Vec<String> {
    let mut out: Vec<String> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "list", "##st", "na", "##ive", "русскии", "日"]
            .map(String::from)
            .to_vec();
    let letters = ('a'..='z').chain('0'..='9').chain("!?.-(){}[]ελικά한글".chars());
    out.extend(letters.flat_map(|c| [c.to_string(), format!("##{c}")]));
    out
}

#[test]
fn word_pieces_equal_the_library() {
    let pieces = word_pieces();
    let vocab: ahash::AHashMap<String, u32> = pieces.iter().enumerate().map(|(i, t)| (t.clone(), i as u32)).collect();
    for (lower, strip) in [(true, None), (false, None), (true, Some(false)), (false, Some(true))] {
        let model = WordPiece::builder().vocab(vocab.clone()).unk_token("[UNK]".into()).build().unwrap();
        let mut theirs = tokenizers::Tokenizer::new(model);
        theirs.with_normalizer(Some(BertNormalizer::new(true, true, strip, lower))).unwrap();
        theirs.with_pre_tokenizer(Some(BertPreTokenizer));
        let spelled = |t: &String| match t.strip_prefix("##") {
            Some(rest) => rest.to_owned(),
            None if t.len() > 1 && t.starts_with('[') => t.clone(),
            None => format!("\u{2581}{t}"),
        };
        let mut w = Writer::new();
        w.str("tokenizer.ggml.model", "bert")
            .strings("tokenizer.ggml.tokens", &pieces.iter().map(spelled).collect::<Vec<_>>())
            .i32s(
                "tokenizer.ggml.token_type",
                &(0..pieces.len()).map(|i| if i < 4 { 3 } else { 1 }).collect::<Vec<_>>(),
            )
            .bool("tokenizer.ggml.normalizer.lowercase", lower);
        if let Some(strip) = strip {
            w.bool("tokenizer.ggml.normalizer.strip_accents", strip);
        }
        let ours = ours(written(&w));
        compare("word pieces", &ours, &theirs, &texts::lines(2000)).unwrap();
        // The library's classes of characters are those of an older Unicode.
        let all = texts::characters();
        let same = all.iter().filter(|l| compare("word pieces", &ours, &theirs, [*l]).is_ok()).count();
        println!("{same} of {} lines of characters are equal", all.len());
        assert!(same * 100 >= all.len() * 90);
    }
}

#[test]
fn unigram_pieces_equal_the_library() {
    let mut pieces: Vec<(String, f64)> = vec![("<unk>".into(), 0.0)];
    let words = [
        "\u{2581}the",
        "\u{2581}",
        "list",
        "th",
        "he",
        "li",
        "st",
        "\u{2581}l",
        "NASA",
        "ca",
        "am",
        "el",
        "日本",
        "本語",
        "🙂",
    ];
    pieces.extend(words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), -2.0 - i as f64 * 0.37)));
    pieces.extend(('a'..='y').chain('A'..='M').map(|c| (c.to_string(), -9.0 - f64::from(c as u8) * 0.03)));
    let mut theirs = tokenizers::Tokenizer::new(Unigram::from(pieces.clone(), Some(0), false).unwrap());
    theirs.with_pre_tokenizer(Some(Metaspace::new('\u{2581}', PrependScheme::Always, false)));
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", "t5")
        .strings("tokenizer.ggml.tokens", &pieces.iter().map(|p| p.0.as_str()).collect::<Vec<_>>())
        .f32s("tokenizer.ggml.scores", &pieces.iter().map(|p| p.1 as f32).collect::<Vec<_>>())
        .i32s("tokenizer.ggml.token_type", &(0..pieces.len()).map(|i| if i == 0 { 2 } else { 1 }).collect::<Vec<_>>())
        .bool("tokenizer.ggml.add_space_prefix", true)
        .bool("tokenizer.ggml.add_eos_token", false);
    // The library's Metaspace adds no space before one that is spelled so.
    let lines: Vec<String> = texts::lines(2000).into_iter().filter(|l| !l.starts_with([' ', '\u{2581}'])).collect();
    compare("unigram", &ours(written(&w)), &theirs, &lines).unwrap();
}

/// Lines that no model's own tokens are spelled in, because the library reads those in any text.
fn plain(lines: Vec<String>, json: &serde_json::Value) -> Vec<String> {
    let added = json["added_tokens"].as_array().unwrap();
    let special: Vec<&str> =
        added.iter().filter(|a| a["special"] == true).filter_map(|a| a["content"].as_str()).collect();
    lines.into_iter().filter(|l| !special.iter().any(|s| l.contains(s))).collect()
}

/// The first column of the texts of a folder, where one is named: real sentences beside the made ones.
fn real_lines() -> Vec<String> {
    let Some(folder) = std::env::var_os("CONPET_TEXTS") else { return Vec::new() };
    let mut folders = vec![std::path::PathBuf::from(folder)];
    let mut out = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                out.extend(text.lines().step_by(20).take(500).map(str::to_owned));
            }
        }
    }
    out
}

#[test]
fn tokens_equal_the_library_on_real_vocabularies() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/vocabularies");
    let (made, mut differ) = (texts::lines(10_000), Vec::new());
    let (real, long, all) = (real_lines(), texts::long_lines(), texts::characters());
    for (name, model, pre) in [
        ("llama3_1", "gpt2", "llama-bpe"),
        ("llama3_2", "gpt2", "llama-bpe"),
        ("qwen2_5", "gpt2", "qwen2"),
        ("qwen3", "gpt2", "qwen2"),
        ("gpt4o", "gpt2", "gpt-4o"),
        ("llama2", "llama", "default"),
        ("gemma3", "llama", "default"),
        ("minilm", "bert", "jina-v2-en"),
    ] {
        let path = folder.join(format!("{name}.json"));
        let Ok(text) = std::fs::read_to_string(&path) else {
            println!("skipped: no {name}.json in build/vocabularies (run tests/peers/vocabularies.sh)");
            continue;
        };
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut theirs = tokenizers::Tokenizer::from_file(&path).unwrap();
        theirs.with_truncation(None).unwrap().with_padding(None);
        let ours = ours(vocabulary::gguf(&json, &Kind { model, pre }));
        let all: &[String] = if model == "bert" { &[] } else { &all };
        let mut lines = plain([&made[..], &real, &long, all].concat(), &json);
        // The library takes runs of this character, which spells a space in the vocabulary, for defined tokens.
        lines.retain(|l| model != "llama" || !l.contains('\u{2581}'));
        let bytes: usize = lines.iter().map(String::len).sum();
        match compare(name, &ours, &theirs, &lines) {
            Err(e) => differ.push(e),
            Ok(took) => {
                let speed = took.map(|t| bytes as f64 / 1e6 / t.as_secs_f64());
                println!("{name}: {} lines, {:.1} MB/s ({:.1} MB/s the library)", lines.len(), speed[0], speed[1]);
            }
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
