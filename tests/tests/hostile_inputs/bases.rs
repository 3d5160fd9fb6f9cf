//! Bases: bytes that are not GGUF, GGUF files that break a rule, models that cannot be run.

use super::place::{Case, Place, case};
use conpet_formats::tiny::{self, TinyArch, TinyConfig};

/// A GGUF written byte by byte, so that it can be wrong.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, keys: u64) -> Self {
        let mut r = Self(b"GGUF".to_vec());
        r.0.extend(version.to_le_bytes());
        r.u64(tensors).u64(keys);
        r
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn str(&mut self, s: &[u8]) -> &mut Self {
        self.u64(s.len() as u64);
        self.0.extend(s);
        self
    }
    /// Adds a key with a u32 value.
    fn key(&mut self, name: &[u8], v: u32) -> &mut Self {
        self.str(name).u32(4).u32(v)
    }
    fn tensor(&mut self, name: &[u8], ne: &[u64], ty: u32, offset: u64) -> &mut Self {
        self.str(name).u32(ne.len() as u32);
        ne.iter().for_each(|n| {
            self.u64(*n);
        });
        self.u32(ty).u64(offset)
    }
    /// Ends the header and adds data.
    fn data(&mut self, n: usize) -> Vec<u8> {
        let at = self.0.len().next_multiple_of(32);
        self.0.resize(at + n, 0);
        self.0.clone()
    }
}

/// A file that is shown to `conpet-inspect gguf` and to `conpet-train` as a base.
fn both(out: &mut Vec<Case>, name: &str, says: &[&'static str], bytes: impl Fn() -> Vec<u8> + Clone + 'static) {
    let spoil = move |p: &Place| p.write("x.gguf", &bytes());
    let says = [&["x.gguf"], says].concat();
    out.push(case(format!("inspect: {name}"), "conpet-inspect gguf @/x.gguf", &says, spoil.clone()));
    out.push(case(format!("train: {name}"), "conpet-train stream @/stream -m @/x.gguf -b @/out.cpb", &says, spoil));
}

/// The tiny base with one of its keys or tensors changed, given to a program that would run it.
fn model(out: &mut Vec<Case>, name: &str, says: &[&'static str], f: impl Fn(&mut Vec<u8>) + Clone + 'static) {
    let says = [&["x.gguf"], says].concat();
    out.push(case(
        format!("model: {name}"),
        "conpet-train stream @/stream -m @/x.gguf -b @/out.cpb",
        &says,
        move |p| {
            p.change("base.gguf", "x.gguf", f.clone());
        },
    ));
}

/// As [`model`], with a tiny base of the gemma3 family.
fn gemma(out: &mut Vec<Case>, name: &str, says: &[&'static str], f: impl Fn(&mut Vec<u8>) + Clone + 'static) {
    let says = [&["x.gguf"], says].concat();
    let spoil = move |p: &Place| {
        let mut bytes = tiny::base(&TinyConfig { arch: TinyArch::Gemma3, ..TinyConfig::default() }).unwrap();
        f(&mut bytes);
        p.write("x.gguf", &bytes);
    };
    out.push(case(format!("gemma: {name}"), "conpet-train stream @/stream -m @/x.gguf -b @/out.cpb", &says, spoil));
}

/// The offset just after the first occurrence of `what`.
fn behind(bytes: &[u8], what: &str) -> usize {
    let at = bytes.windows(what.len()).position(|w| w == what.as_bytes());
    at.unwrap_or_else(|| panic!("{what} is not in the tiny base")) + what.len()
}

/// Overwrites a u32 that lies `skip` bytes after a name.
fn poke(bytes: &mut [u8], name: &str, skip: usize, v: u32) {
    let at = behind(bytes, name) + skip;
    bytes[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

pub(crate) fn cases() -> Vec<Case> {
    let mut c = Vec::new();
    let out = &mut c;
    both(out, "an empty file", &["empty"], Vec::new);
    both(out, "three bytes", &["E_TRUNCATED|E_MAGIC"], || b"GGU".to_vec());
    both(out, "another kind of file", &["E_MAGIC", "byte 0"], || b"PK\x03\x04 a zip file".repeat(9));
    both(out, "version 1", &["version 1", "byte 4"], || Raw::new(1, 0, 0).0);
    both(out, "version 99", &["version 99"], || Raw::new(99, 0, 0).0);
    both(out, "big-endian", &["big-endian"], || Raw::new(3u32.swap_bytes(), 0, 0).0);
    both(out, "2^60 tensors", &["tensors", "E_CAP|E_TRUNCATED"], || Raw::new(3, 1 << 60, 0).0);
    both(out, "2^60 keys", &["metadata keys", "E_CAP|E_TRUNCATED"], || Raw::new(3, 0, 1 << 60).0);
    both(out, "a key of 2^62 bytes", &["metadata key", "E_CAP"], || Raw::new(3, 0, 1).u64(1 << 62).u64(0).0.clone());
    both(out, "an empty key", &["metadata key"], || Raw::new(3, 0, 1).key(b"", 1).0.clone());
    both(out, "a key with a space", &["a b"], || Raw::new(3, 0, 1).key(b"a b", 1).0.clone());
    both(out, "a key that is not UTF-8", &["UTF-8"], || Raw::new(3, 0, 1).key(b"\xff\xfe", 1).0.clone());
    both(out, "a key twice", &["key a", "twice"], || Raw::new(3, 0, 2).key(b"a", 1).key(b"a", 2).0.clone());
    both(out, "value type 99", &["key a", "99"], || Raw::new(3, 0, 1).str(b"a").u32(99).u64(0).0.clone());
    both(out, "a bool of 7", &["key a", "7"], || Raw::new(3, 0, 1).str(b"a").u32(7).u32(7).u64(0).0.clone());
    both(out, "a string of 1 GiB", &["key a", "E_CAP"], || {
        Raw::new(3, 0, 1).str(b"a").u32(8).u64(1 << 30).u64(0).0.clone()
    });
    both(out, "an array of arrays", &["key a", "arrays of arrays"], || {
        Raw::new(3, 0, 1).str(b"a").u32(9).u32(9).u64(1).u64(0).u64(0).0.clone()
    });
    both(out, "an array of 2^61 bytes", &["key a", "E_CAP|E_TRUNCATED"], || {
        Raw::new(3, 0, 1).str(b"a").u32(9).u32(0).u64(1 << 61).u64(0).0.clone()
    });
    for (name, v) in [("0", 0), ("7", 7), ("2^31", 1 << 31)] {
        both(out, &format!("alignment {name}"), &["general.alignment"], move || {
            Raw::new(3, 0, 1).key(b"general.alignment", v).data(0)
        });
    }
    both(out, "alignment as text", &["general.alignment"], || {
        Raw::new(3, 0, 1).str(b"general.alignment").u32(8).str(b"64").data(0)
    });
    let one = |ne: &'static [u64], ty, offset, data| move || Raw::new(3, 1, 0).tensor(b"t", ne, ty, offset).data(data);
    both(out, "no dimensions", &["tensor t", "0 dimensions"], one(&[], 0, 0, 64));
    both(out, "five dimensions", &["tensor t", "5 dimensions"], one(&[1, 1, 1, 1, 1], 0, 0, 64));
    both(out, "a dimension of 0", &["tensor t", "E_SHAPE"], one(&[0, 4], 0, 0, 64));
    both(out, "dimensions that overflow", &["tensor t", "E_SHAPE"], one(&[1 << 32, 1 << 32], 0, 0, 64));
    both(out, "half a block", &["tensor t", "Q8_0"], one(&[33, 2], 8, 0, 640));
    both(out, "an offset of 3", &["tensor t", "E_ALIGN"], one(&[8], 0, 3, 64));
    both(out, "an offset beyond the file", &["tensor t"], one(&[8], 0, 1 << 40, 64));
    both(out, "data cut short", &["tensor t", "E_TRUNCATED"], one(&[64], 0, 0, 255));
    both(out, "two tensors in one place", &["tensor u", "E_LAYOUT"], || {
        Raw::new(3, 2, 0).tensor(b"t", &[8], 0, 0).tensor(b"u", &[8], 0, 0).data(64)
    });
    both(out, "a tensor twice", &["tensor t", "twice"], || {
        Raw::new(3, 2, 0).tensor(b"t", &[8], 0, 0).tensor(b"t", &[8], 0, 32).data(64)
    });
    both(out, "a tensor name that steers the terminal", &["\\u{1b}|\\x1b", "control"], || {
        Raw::new(3, 1, 0).tensor(b"\x1b[2J", &[8], 0, 0).data(32)
    });
    for (part, of) in [(1, 1000), (1, 10), (1, 2), (99, 100)] {
        model(out, &format!("cut at {part}/{of}"), &["E_TRUNCATED"], move |b| b.truncate(b.len() * part / of));
    }
    model(out, "no metadata at all", &["general.architecture"], |b| *b = Raw::new(3, 0, 0).data(0));
    model(out, "an unknown family", &["llamb"], |b| {
        let at = behind(b, "general.architecture") + 12 + 4;
        b[at] = b'b';
    });
    model(out, "no heads", &["head_count"], |b| poke(b, "llama.attention.head_count", 4, 0));
    model(out, "heads that do not divide the width", &["head"], |b| poke(b, "llama.attention.head_count", 4, 7));
    model(out, "2^32-1 layers", &["block_count"], |b| poke(b, "llama.block_count", 4, u32::MAX));
    model(out, "more layers than tensors", &["blk.4.", "lacks"], |b| poke(b, "llama.block_count", 4, 5));
    model(out, "another width", &["tensor "], |b| poke(b, "llama.embedding_length", 4, 128));
    model(out, "rope size 0", &["rope size 0"], |b| poke(b, "llama.rope.dimension_count", 4, 0));
    gemma(out, "values of another width", &["value_length"], |b| poke(b, "gemma3.attention.value_length", 4, 8));
    gemma(out, "an odd head", &["head size 15"], |b| {
        poke(b, "gemma3.attention.key_length", 4, 15);
        poke(b, "gemma3.attention.value_length", 4, 15);
    });
    model(out, "rope base NaN", &["freq_base"], |b| poke(b, "llama.rope.freq_base", 4, f32::NAN.to_bits()));
    model(out, "norm epsilon -1", &["epsilon"], |b| {
        poke(b, "llama.attention.layer_norm_rms_epsilon", 4, (-1f32).to_bits());
    });
    model(out, "a missing key", &["llama.block_count"], |b| {
        let at = behind(b, "llama.block_count") - 1;
        b[at] = b'x';
    });
    model(out, "a missing tensor", &["blk.2.ffn_up.weight"], |b| {
        let at = behind(b, "blk.2.ffn_up") - 1;
        b[at] = b'x';
    });
    model(out, "a tensor type that cannot be run", &["output_norm.weight", "type"], |b| {
        poke(b, "output_norm.weight", 12, 99);
    });
    model(out, "a norm that is not a number", &["output_norm.weight", "finite"], |b| {
        let at = b.len() - 256;
        b[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    model(out, "a tokenizer of another kind", &["gpt3"], |b| {
        let at = behind(b, "tokenizer.ggml.model") + 12 + 3;
        b[at] = b'3';
    });
    model(out, "no tokens", &["tokenizer.ggml.tokens"], |b| {
        let at = behind(b, "tokenizer.ggml.tokens") - 1;
        b[at] = b'x';
    });
    model(out, "no word on how text is split", &["tokenizer.ggml.pre"], |b| {
        let at = behind(b, "tokenizer.ggml.pre") - 1;
        b[at] = b'x';
    });
    model(out, "an end token that does not exist", &["eos_token_id"], |b| {
        poke(b, "tokenizer.ggml.eos_token_id", 4, 1 << 30);
    });
    for program in ["conpet-inspect gguf @", "conpet-train stream @/stream -b @/out.cpb -m @"] {
        let name = |what: &str| format!("{}: {what}", program.split(' ').next().unwrap_or_default());
        out.push(case(name("a missing base"), format!("{program}/absent.gguf"), &["absent.gguf"], |_| {}));
        out.push(case(name("a folder as base"), format!("{program}/stream"), &["stream", "regular file"], |_| {}));
        out.push(case(name("a pipe as base"), format!("{program}/pipe.gguf"), &["pipe.gguf", "regular file"], |p| {
            p.pipe("pipe.gguf");
        }));
        out.push(case(name("a bundle as base"), format!("{program}/b.cpb"), &["b.cpb", "E_MAGIC"], |_| {}));
    }
    c
}
