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
    // What a user says never becomes a control token, nor does what it would complete.
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
