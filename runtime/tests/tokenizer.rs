//! What a base's file says of its tokenizer, seen from the engine: every key counts, and a text gets its first and
//! last token once.

use conpet_formats::gguf::{Gguf, TensorType, Value, ValueType, Writer};
use conpet_formats::mmap::Mapped;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_formats::{Code, Error};
use conpet_runtime::base::Base;
use conpet_runtime::chat::Message;
use conpet_runtime::engine::Engine;
use std::path::Path;
use std::sync::Arc;

/// The tiny base without the keys of `without`, and with what `more` writes.
fn base(without: &[&str], more: impl FnOnce(&mut Writer)) -> Result<Base, Error> {
    let bytes = tiny::base(&TinyConfig::default()).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut w = Writer::new();
    for (key, value) in gguf.metadata().filter(|(key, _)| !without.contains(key)) {
        match value {
            Value::String(s) => w.str(key, s),
            Value::U32(v) => w.u32(key, v),
            Value::F32(v) => w.f32(key, v),
            Value::Bool(v) => w.bool(key, v),
            Value::Array(a) if a.element_type() == ValueType::String => {
                w.strings(key, &a.strings().unwrap().collect::<Vec<_>>())
            }
            Value::Array(a) => w.i32s(key, &a.i32s().unwrap().collect::<Vec<_>>()),
            other => panic!("{key} is {other:?}"),
        };
    }
    more(&mut w);
    for t in gguf.tensors() {
        let TensorType::Known(ty) = t.ty else { panic!("{} is of an unknown type", t.name) };
        w.tensor(t.name, ty, &t.ne[..t.n_dims]);
    }
    let mut out = Vec::new();
    w.finish(&mut out, |i| Ok(gguf.data(&gguf.tensors()[i]))).unwrap();
    Base::from_map(Mapped::from_vec(out), Path::new("x.gguf"))
}

fn engine(without: &[&str], more: impl FnOnce(&mut Writer)) -> Engine {
    Engine::new(Arc::new(base(without, more).unwrap()), 1)
}

const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const PRE: &str = "tokenizer.ggml.pre";

#[test]
fn a_key_of_the_tokenizer_that_nobody_reads_is_refused_by_name() {
    assert!(base(&[], |_| ()).is_ok());
    let mut state = 7u64;
    for i in 0..200 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let group = ["tokenizer.", "tokenizer.ggml.", "tokenizer.ggml.normalizer."][i % 3];
        let key = format!("{group}x{:x}{}", state >> 40, ["", "_token_id", ".y"][(state >> 33) as usize % 3]);
        let e = base(&[], |w| {
            match i % 4 {
                0 => w.bool(&key, true),
                1 => w.u32(&key, 1),
                2 => w.str(&key, ""),
                _ => w.i32s(&key, &[]),
            };
        })
        .unwrap_err();
        assert!(e.code() == Code::Unsupported && e.to_string().contains(&key), "{key}: {e}");
    }
    // Real keys that would have to be obeyed, and are not for this kind of tokenizer.
    for key in ["add_space_prefix", "remove_extra_whitespaces", "normalizer.lowercase"] {
        let key = format!("tokenizer.ggml.{key}");
        let e = base(&[], |w| _ = w.bool(&key, true)).unwrap_err();
        assert!(e.code() == Code::Unsupported && e.to_string().contains(&key), "{key}: {e}");
    }
    let e = base(&[], |w| _ = w.i32s("tokenizer.ggml.suppress_tokens", &[5])).unwrap_err();
    assert!(e.to_string().contains("suppress_tokens"), "{e}");
    // Real keys that change nothing.
    let harmless = base(&[], |w| {
        w.u32("tokenizer.ggml.padding_token_id", 0)
            .u32("tokenizer.ggml.token_type_count", 2)
            .bool("tokenizer.ggml.add_space_prefix", false)
            .str("tokenizer.huggingface.json", "{}")
            .str("tokenizer.chat_template.tool_use", "{{ x }}");
    });
    assert!(harmless.is_ok());
}

#[test]
fn the_name_of_the_pattern_says_whether_a_text_begins_with_bos() {
    let tokens = |e: &Engine| e.prompt("the list", None).unwrap().tokens;
    for (pre, begins) in [("llama-bpe", true), ("llama3", true), ("tekken", true), ("smollm", false), ("qwen2", false)]
    {
        let silent = engine(&[ADD_BOS, PRE], |w| _ = w.str(PRE, pre));
        assert_eq!(tokens(&silent)[0] == 1, begins, "{pre}");
        // What the file says wins.
        for said in [false, true] {
            let e = engine(&[ADD_BOS, PRE], |w| _ = w.str(PRE, pre).bool(ADD_BOS, said));
            assert_eq!(tokens(&e)[0] == 1, said, "{pre}");
        }
    }
    let e = base(&[ADD_BOS, PRE, "tokenizer.ggml.bos_token_id"], |w| _ = w.str(PRE, "llama-bpe")).unwrap_err();
    assert!(e.to_string().contains("bos_token_id"), "{e}");
    let e = base(&[PRE], |w| _ = w.str(PRE, "no-such")).unwrap_err();
    assert!(e.code() == Code::Unsupported && e.to_string().contains("no-such"), "{e}");
}

#[test]
fn a_template_that_spells_bos_gets_no_second_one() {
    // The tiny base's turns begin with its BOS.
    let e = engine(&[ADD_BOS], |w| _ = w.bool(ADD_BOS, true));
    let message = Message { role: "user".into(), content: "the list".into() };
    let (text, words) = e.base.chat_template().unwrap().unwrap().render(&[message], true).unwrap();
    let tokens = e.prompt(&text, Some(&words)).unwrap().tokens;
    assert!(tokens[0] == 1 && tokens[1] != 1, "{tokens:?}");
    // Spelled by a speaker it is no BOS.
    let tokens = e.prompt("<|im_start|>the list", None).unwrap().tokens;
    assert!(tokens[0] == 1 && tokens[1..].iter().all(|t| *t != 1), "{tokens:?}");
}

#[test]
fn a_complete_text_is_closed_and_one_that_goes_on_is_not() {
    let e = engine(&[], |w| _ = w.bool("tokenizer.ggml.add_eos_token", true));
    let (closed, open) = (e.prompt("the list", None).unwrap(), e.opening("the list", None).unwrap());
    assert_eq!(closed.tokens, [&open.tokens[..], &[2]].concat());
    assert_eq!(closed.offsets.last(), Some(&(8..8)));
    // A template may have closed it already.
    let twice = e.prompt("the list<|im_end|>", Some(&[])).unwrap();
    assert_eq!(twice.tokens, closed.tokens);
    let plain = engine(&[], |_| ());
    assert_eq!(plain.prompt("the list", None).unwrap(), plain.opening("the list", None).unwrap());
}
