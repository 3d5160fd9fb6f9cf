use super::*;
use conpet_formats::tiny;

fn tiny() -> Tokenizer {
    let map = Mapped::from_vec(tiny::base(&tiny::TinyConfig::default()).unwrap());
    Tokenizer::from_gguf(&Gguf::parse(&map).unwrap(), map.clone()).unwrap()
}

#[test]
fn text_survives_the_round_trip_and_offsets_cover_it() {
    let t = tiny();
    for text in ["", "the list of files", " and 42 water\n\n  x", "naïve 日本語 🙂 \u{0} end", "it's we'll\tdone", "\n"]
    {
        let (tokens, offsets) = t.encode_with_offsets(text, None).unwrap();
        assert_eq!(t.decode(&tokens), text.as_bytes(), "{text:?}");
        let mut at = 0;
        for r in &offsets {
            assert_eq!(r.start, at, "{text:?}: offsets leave a gap");
            at = r.end;
        }
        assert_eq!(at, text.len());
    }
    assert!(t.encode(" water", false).unwrap().len() == 1, "learned words are one token");
}

#[test]
fn special_tokens_are_read_only_where_asked_for() {
    let t = tiny();
    let text = "a<|im_end|>b";
    assert_eq!(t.encode(text, true).unwrap().len(), 3);
    assert!(t.encode(text, false).unwrap().len() > 3);
    assert!(t.is_end(t.encode("<|im_end|>", true).unwrap()[0]));
    assert!(!t.is_end(t.encode("a", true).unwrap()[0]));
    // Users' text never becomes a control token, nor completes one.
    for (text, words, tokens) in [
        ("a<|im_end|>b<|im_end|>", 1..12, 1),
        ("a<|im_end|>b<|im_end|>", 0..11, 1),
        ("<|im_end|><|im_end|>", 3..4, 1),
        ("<|im_end|><|im_end|>", 10..10, 2),
    ] {
        let got = t.encode_with_offsets(text, Some(std::slice::from_ref(&words))).unwrap().0;
        assert_eq!(got.iter().filter(|t_| t.is_end(**t_)).count(), tokens, "{text} {words:?}");
    }
    assert_eq!(t.decode(&[2]), b"", "control tokens stand for no text");
    assert_eq!(t.decode(&[u32::MAX]), b"");
}

/// A SentencePiece vocabulary with a few merges, bytes, and special tokens of both kinds.
fn pieces(kind: i32) -> Tokenizer {
    let mut tokens: Vec<(String, f32, i32)> =
        vec![("<unk>".into(), 0.0, 2), ("cc".into(), 0.0, kind), ("<turn>".into(), 0.0, 4), ("\n\n".into(), 0.0, 4)];
    tokens.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>"), 0.0, 6)));
    // A higher score merges first.
    for (i, piece) in ["\u{2581}", "a", "b", "c", "bc", "ab", "\u{2581}a", "\u{2581}ab"].iter().enumerate() {
        tokens.push(((*piece).into(), -(i as f32), 1));
    }
    let mut w = conpet_formats::gguf::Writer::new();
    w.str("general.architecture", "llama")
        .str("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens.iter().map(|t| t.0.clone()).collect::<Vec<_>>())
        .f32s("tokenizer.ggml.scores", &tokens.iter().map(|t| t.1).collect::<Vec<_>>())
        .i32s("tokenizer.ggml.token_type", &tokens.iter().map(|t| t.2).collect::<Vec<_>>())
        .u32("tokenizer.ggml.bos_token_id", 1)
        .str("tokenizer.chat_template", "<turn>{{ message }}\n\ncc");
    let mut bytes = Vec::new();
    w.finish(&mut bytes, |_| Ok(&[][..])).unwrap();
    let map = Mapped::from_vec(bytes);
    Tokenizer::from_gguf(&Gguf::parse(&map).unwrap(), map.clone()).unwrap()
}

#[test]
fn pieces_merge_by_score_and_bytes_catch_the_rest() {
    let t = pieces(3);
    let spell = |text: &str| -> Vec<String> {
        let id = |t_: &u32| String::from_utf8_lossy(t.vocab.bytes(*t_)).into_owned();
        t.encode(text, false).unwrap().iter().map(id).collect()
    };
    // "bc" has a higher score than "ab" and "▁ab".
    assert_eq!(spell("abc ab"), ["\u{2581}a", "bc", "\u{2581}ab"]);
    assert_eq!(spell("é"), ["\u{2581}", "<0xC3>", "<0xA9>"]);
    assert_eq!(t.decode(&t.encode("ab é c", false).unwrap()), " ab é c".as_bytes());
}

#[test]
fn user_defined_tokens_are_found_everywhere_but_for_structure() {
    // Whether or not the file calls "cc" a control token, it counts as one because the template contains it.
    for t in [pieces(3), pieces(4)] {
        found_everywhere_but_for_structure(&t);
    }
}

fn found_everywhere_but_for_structure(t: &Tokenizer) {
    let count = |text: &str, words: Option<Range<usize>>, token: u32| {
        let words = words.as_ref().map(std::slice::from_ref);
        t.encode_with_offsets(text, words).unwrap().0.iter().filter(|x| **x == token).count()
    };
    // Blank lines are one token everywhere; the template's own "cc" is a control token only outside the words.
    assert_eq!(count("ab\n\nab", None, 3), 1);
    assert_eq!(count("ab\n\nab", Some(0..6), 3), 1);
    assert_eq!(count("ab\n\nab", Some(0..0), 3), 1);
    assert_eq!(count("a<turn>b", None, 2), 0);
    assert_eq!(count("<turn>a<turn>b", Some(6..14), 2), 1);
    // A control token whose parts are tokens is not put together from them either.
    assert_eq!((count("accb", None, 1), count("accb", Some(0..0), 1)), (0, 1));
    // Not across the border of the words.
    assert_eq!(count("a<turn>b", Some(0..3), 2), 0);
    assert_eq!(count("a<turn>b", Some(3..8), 2), 0);
}

/// A byte-level vocabulary with these tokens and merges beside the single bytes.
fn bytes_and(more: &[String], merges: &[&str]) -> Tokenizer {
    let mut tokens: Vec<String> = (b'!'..=b'~').map(|b| char::from(b).to_string()).collect();
    tokens.extend_from_slice(more);
    let mut w = conpet_formats::gguf::Writer::new();
    w.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &tokens)
        .strings("tokenizer.ggml.merges", merges);
    let mut bytes = Vec::new();
    w.finish(&mut bytes, |_| Ok(&[][..])).unwrap();
    let map = Mapped::from_vec(bytes);
    Tokenizer::from_gguf(&Gguf::parse(&map).unwrap(), map.clone()).unwrap()
}

/// Tokens that collide under a hash that is known in advance, as a hostile file could choose them: finding the
/// last would take as many steps as there are tokens.
#[test]
fn no_choice_of_tokens_makes_the_table_slow() {
    let fnv = |s: &str| {
        let h = s.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        (h ^ h >> 29) & 1023
    };
    let chosen: Vec<String> = (0..).map(|i: u32| format!("{i:x}x")).filter(|s| fnv(s) == 7).take(300).collect();
    let t = bytes_and(&chosen, &[]);
    for (i, token) in chosen.iter().enumerate() {
        assert_eq!(t.vocab.find(token.as_bytes()), Some(94 + i as u32));
    }
    let longest = t.vocab.longest_run();
    assert!(longest < 150, "{longest} places in a row are taken");
}

#[test]
fn a_merge_listed_often_takes_one_place() {
    let t = bytes_and(&["ab".into()], &["a b"; 1000]);
    let Model::Bpe(m) = &t.model else { unreachable!("the file says gpt2") };
    assert_eq!(m.len(), 1);
    assert_eq!(t.encode("ab", false).unwrap().len(), 1);
}

/// A tokenizer from these tables.
fn file(
    model: &str,
    tokens: &[(&str, i32)],
    more: impl FnOnce(&mut conpet_formats::gguf::Writer),
) -> Result<Tokenizer> {
    let mut w = conpet_formats::gguf::Writer::new();
    w.str("general.architecture", "llama")
        .str("tokenizer.ggml.model", model)
        .strings("tokenizer.ggml.tokens", &tokens.iter().map(|t| t.0).collect::<Vec<_>>())
        .i32s("tokenizer.ggml.token_type", &tokens.iter().map(|t| t.1).collect::<Vec<_>>());
    more(&mut w);
    let mut bytes = Vec::new();
    w.finish(&mut bytes, |_| Ok(&[][..])).unwrap();
    let map = Mapped::from_vec(bytes);
    Tokenizer::from_gguf(&Gguf::parse(&map).unwrap(), map.clone())
}

fn spelled(t: &Tokenizer, text: &str) -> Vec<String> {
    let tokens = t.encode(text, false).unwrap();
    tokens.iter().map(|id| String::from_utf8_lossy(t.vocab.bytes(*id)).into_owned()).collect()
}

const BERT: [(&str, i32); 17] = [
    ("[PAD]", 3),
    ("[UNK]", 3),
    ("[CLS]", 3),
    ("[SEP]", 3),
    ("[MASK]", 3),
    ("\u{2581}un", 1),
    ("aff", 1),
    ("able", 1),
    ("\u{2581}cafe", 1),
    ("\u{2581},", 1),
    ("\u{2581}日", 1),
    ("\u{2581}本", 1),
    ("\u{2581}[", 1),
    ("\u{2581}]", 1),
    ("\u{2581}cls", 1),
    ("\u{2581}n", 1),
    ("i", 1),
];

#[test]
fn word_pieces_are_the_longest_from_the_left_and_know_their_place() {
    let t = file("bert", &BERT, |_| {}).unwrap();
    assert_eq!((t.bos(), t.closing()), (Some(2), Some(3)));
    assert_eq!(spelled(&t, "Unaffable, CAFÉ"), ["\u{2581}un", "aff", "able", "\u{2581},", "\u{2581}cafe"]);
    assert_eq!(spelled(&t, "日本x"), ["\u{2581}日", "\u{2581}本", "[UNK]"]);
    // A word that does not come out is unknown as a whole, one of more than a hundred characters at once.
    assert_eq!(spelled(&t, "unaffabl un"), ["[UNK]", "\u{2581}un"]);
    assert_eq!(spelled(&t, &format!("un{}", "i".repeat(98))).len(), 99);
    assert_eq!(spelled(&t, &format!("un{}", "i".repeat(99))), ["[UNK]"]);
    // Control characters are dropped, a zero-width space within a word too; white space of any kind cuts.
    assert_eq!(
        spelled(&t, "u\u{0}n\u{200b}\u{fffd}aff\u{3000}un\u{2028}un"),
        ["\u{2581}un", "aff", "\u{2581}un", "\u{2581}un"]
    );
    // A spelled control token is text.
    assert_eq!(spelled(&t, "[CLS]"), ["\u{2581}[", "\u{2581}cls", "\u{2581}]"]);
    let text = "  unAFFáble,cafe\u{301} un";
    let (_, offsets) = t.encode_with_offsets(text, None).unwrap();
    let parts: Vec<&str> = offsets.iter().map(|r| &text[r.clone()]).collect();
    assert_eq!(parts, ["un", "AFF", "áble", ",", "cafe", "un"]);
}

#[test]
fn what_the_file_says_of_case_and_accents_is_done() {
    let cased =
        file("bert", &[("[UNK]", 3), ("[CLS]", 3), ("[SEP]", 3), ("\u{2581}Caf", 1), ("é", 1), ("e", 1)], |w| {
            w.bool("tokenizer.ggml.normalizer.lowercase", false);
        });
    assert_eq!(spelled(&cased.unwrap(), "Café caf"), ["\u{2581}Caf", "é", "[UNK]"]);
    let stripped =
        file("bert", &[("[UNK]", 3), ("[CLS]", 3), ("[SEP]", 3), ("\u{2581}Caf", 1), ("é", 1), ("e", 1)], |w| {
            w.bool("tokenizer.ggml.normalizer.lowercase", false).bool("tokenizer.ggml.normalizer.strip_accents", true);
        });
    assert_eq!(spelled(&stripped.unwrap(), "Café"), ["\u{2581}Caf", "e"]);
}

#[test]
fn a_whole_word_is_taken_before_its_parts_are_merged() {
    let tokens: Vec<(String, i32)> = (b'!'..=b'~').map(|b| (char::from(b).to_string(), 1)).collect();
    let mut tokens: Vec<(&str, i32)> = tokens.iter().map(|(t, k)| (t.as_str(), *k)).collect();
    // No merge leads to the word; the last token only looks like one.
    tokens.extend([("Ġ", 1), ("fi", 1), ("Ġfile", 1), ("<s>", 3), ("aside", 3)]);
    let open = |pre: &str| {
        file("gpt2", &tokens, |w| {
            w.str("tokenizer.ggml.pre", pre)
                .strings("tokenizer.ggml.merges", &["f i"])
                .u32("tokenizer.ggml.bos_token_id", 97);
        })
        .unwrap()
    };
    assert_eq!(spelled(&open("llama-bpe"), "a file"), ["a", "Ġfile"]);
    assert_eq!(spelled(&open("dbrx"), "a file"), ["a", "Ġ", "fi", "l", "e"]);
    // A control token is no word.
    assert_eq!(spelled(&open("llama-bpe"), "aside").len(), 5);
}

#[test]
fn the_unknown_token_is_read_where_control_tokens_are() {
    let t = pieces(3);
    assert_eq!(t.encode("a<unk>b", true).unwrap().iter().filter(|id| **id == 0).count(), 1);
    assert!(t.encode("a<unk>b", false).unwrap().iter().all(|id| *id != 0));
}

#[test]
fn tokens_of_phi_3_swallow_the_white_space_after_them() {
    let open = |name: &str| {
        let mut tokens =
            vec![("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<|end|>", 3), ("\u{2581}", 1), ("a", 1), ("\n", 1)];
        tokens.extend([("<0x0A>", 6), ("<0x20>", 6)]);
        let scores = vec![0.0; tokens.len()];
        file("llama", &tokens, |w| {
            w.str("general.name", name)
                .f32s("tokenizer.ggml.scores", &scores)
                .bool("tokenizer.ggml.add_space_prefix", false);
        })
        .unwrap()
    };
    let text = "<|end|> \n\ta<s> a";
    let (tokens, offsets) = open("Phi-3 mini").encode_with_offsets(text, Some(&[])).unwrap();
    assert_eq!(tokens, [3, 5, 1, 4, 5]);
    assert_eq!(&text[offsets[0].clone()], "<|end|> \n\t");
    assert!(open("another").encode(text, true).unwrap().len() > 6);
}

#[test]
fn an_answer_ends_with_any_token_that_ends_one() {
    let tokens =
        [("<s>", 3), ("a", 1), ("<|eot_id|>", 1), ("<|end|>", 3), ("</s>", 3), ("<|fim_pad|>", 3), ("<eos>", 3)];
    let t = file("llama", &tokens, |w| {
        w.f32s("tokenizer.ggml.scores", &[0.0; 7])
            .u32("tokenizer.ggml.bos_token_id", 0)
            .u32("tokenizer.ggml.eos_token_id", 4);
    })
    .unwrap();
    assert_eq!((0..7).filter(|id| t.is_end(*id)).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    // Named so, it is a control token, whatever the file calls it.
    assert!(t.encode("a<|eot_id|>", false).unwrap().iter().all(|id| *id != 2));
}

/// A map of characters that rewrites one byte sequence, as SentencePiece lays it out: each byte of it is one node.
fn charsmap(rewrites: &[(&str, &str)]) -> Vec<u8> {
    // Nodes that branch are far apart, so that no two meet: 256 places for each.
    let mut nodes = vec![0u32; 256 * 64];
    let mut replacements = Vec::new();
    let mut next = 1u32;
    // The base of the root; then for each prefix the base of its node.
    let mut bases = std::collections::HashMap::from([(Vec::new(), 256u32)]);
    nodes[0] = 256 << 10;
    for (from, to) in rewrites {
        for i in 0..from.len() {
            let (prefix, b) = (&from.as_bytes()[..i], from.as_bytes()[i]);
            let at = bases[prefix] ^ u32::from(b);
            let whole = from.as_bytes()[..=i].to_vec();
            let base = *bases.entry(whole).or_insert_with(|| {
                next += 1;
                next * 256
            });
            nodes[at as usize] |= u32::from(b) | (at ^ base) << 10;
            if i + 1 == from.len() {
                nodes[at as usize] |= 1 << 8;
                nodes[base as usize] = 1 << 31 | replacements.len() as u32;
                replacements.extend(to.bytes().chain([0]));
            }
        }
    }
    let mut out = (nodes.len() as u32 * 4).to_le_bytes().to_vec();
    out.extend(nodes.iter().flat_map(|n| n.to_le_bytes()));
    out.extend(replacements);
    out
}

/// A unigram vocabulary with a map of characters.
fn unigram(map: &[u8], merge: bool) -> Result<Tokenizer> {
    let tokens =
        [("<unk>", 2), ("\u{2581}", 1), ("a", 1), ("\u{2581}a", 1), ("ab", 1), ("b", 1), ("fi", 1), ("<x>", 4)];
    // An array of bytes, which the writer of tables does not know: one key's text is turned into it.
    let key = "tokenizer.ggml.precompiled_charsmap";
    let filler: String = map.iter().map(|_| 'z').collect();
    let mut w = conpet_formats::gguf::Writer::new();
    w.str("tokenizer.ggml.model", "t5")
        .strings("tokenizer.ggml.tokens", &tokens.map(|t| t.0))
        .i32s("tokenizer.ggml.token_type", &tokens.map(|t| t.1))
        .f32s("tokenizer.ggml.scores", &[0.0, -3.0, -4.0, -3.5, -3.0, -4.0, -5.0, 0.0])
        .bool("tokenizer.ggml.add_space_prefix", true)
        .bool("tokenizer.ggml.add_eos_token", false)
        .bool("tokenizer.ggml.remove_extra_whitespaces", merge)
        .str(key, &filler);
    let mut bytes = Vec::new();
    w.finish(&mut bytes, |_| Ok(&[][..])).unwrap();
    let at = bytes.windows(key.len()).position(|b| b == key.as_bytes()).unwrap() + key.len();
    let mut value = 9u32.to_le_bytes().to_vec();
    value.extend(0u32.to_le_bytes());
    value.extend((map.len() as u64).to_le_bytes());
    value.extend(map);
    bytes.splice(at..at + 12 + map.len(), value);
    let map = Mapped::from_vec(bytes);
    Tokenizer::from_gguf(&Gguf::parse(&map).unwrap(), map.clone())
}

#[test]
fn unigram_text_is_rewritten_and_cut_by_the_best_sum() {
    let rewrites = [("ﬁ", "fi"), ("\t", " "), ("é", "ab"), ("éa", "b"), ("\u{200b}", "")];
    let t = unigram(&charsmap(&rewrites), true).unwrap();
    // "▁a" + "b" (-7.5) is worse than "▁" + "ab" (-6).
    assert_eq!(spelled(&t, "ab"), ["\u{2581}", "ab"]);
    // White space is one space, and none at the end; what is rewritten to nothing is gone.
    assert_eq!(spelled(&t, " \t a\u{200b}b \t a "), ["\u{2581}", "ab", "\u{2581}a"]);
    assert_eq!(spelled(&t, "ﬁ"), ["\u{2581}", "fi"]);
    // The longest rewriting counts; unknown characters in a row are one token.
    assert_eq!(spelled(&t, "éaé"), ["\u{2581}", "b", "ab"]);
    assert_eq!(spelled(&t, "axyz"), ["\u{2581}a", "<unk>"]);
    let text = "a  ﬁ xyz<x>";
    let (_, offsets) = t.encode_with_offsets(text, None).unwrap();
    let parts: Vec<&str> = offsets.iter().map(|r| &text[r.clone()]).collect();
    assert_eq!(parts, ["a", "  ", "ﬁ", " ", "xyz", "<x>"]);
    let kept = unigram(&charsmap(&rewrites), false).unwrap();
    assert_eq!(spelled(&kept, " a "), ["\u{2581}", "\u{2581}a", "\u{2581}"]);
}

#[test]
fn a_spoiled_map_of_characters_is_refused_or_ends_where_it_ends() {
    let good = charsmap(&[("ﬁ", "fi")]);
    assert!(unigram(&good, true).is_ok());
    for bad in [&good[..2], &good[..good.len() - 1], &[255, 255, 255, 255, 0], &[4, 0, 0, 0, 1, 1, 1, 1]] {
        assert_eq!(unigram(bad, true).unwrap_err().code(), Code::Value);
    }
    // Nodes that lead out of the map, and replacements out of theirs.
    for fill in [0xff, 0x7f, 0x81, 0x01, 0xef] {
        let mut bytes = good.clone();
        let n = bytes.len() - 3;
        bytes[4..n].fill(fill);
        assert!(unigram(&bytes, true).unwrap().encode("a ﬁ b", false).is_ok());
    }
}
