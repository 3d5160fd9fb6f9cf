//! G: bases that break a rule of GGUF, or make no sense as a model.

use super::case::Kind::Gguf;
use super::case::{Case, Want};
use super::forge::{base, config, put};
use Want::{Fine, Refused};
use conpet_formats::Code::{
    Align, Cap, Duplicate, Layout, Magic, Missing, Shape, Text, Truncated, Type, Unsupported, Value, Version,
};
use conpet_formats::gguf::{self, Gguf as Parsed};
use conpet_formats::tiny::{self, TinyArch, TinyConfig};

/// A GGUF written number by number, so that it can be wrong.
pub(crate) struct Raw(Vec<u8>);

impl Raw {
    pub(crate) fn new(version: u32, tensors: u64, keys: u64) -> Self {
        Self(gguf::MAGIC.to_vec()).u32(version).u64(tensors).u64(keys)
    }
    pub(crate) fn byte(mut self, v: u8) -> Self {
        self.0.push(v);
        self
    }
    pub(crate) fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    pub(crate) fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    pub(crate) fn str(self, s: &[u8]) -> Self {
        let mut out = self.u64(s.len() as u64);
        out.0.extend(s);
        out
    }
    /// A key, and the type of the value that must follow.
    pub(crate) fn key(self, name: &[u8], ty: u32) -> Self {
        self.str(name).u32(ty)
    }
    pub(crate) fn tensor(self, name: &[u8], ne: &[u64], ty: u32, offset: u64) -> Self {
        let out = ne.iter().fold(self.str(name).u32(ne.len() as u32), |out, n| out.u64(*n));
        out.u32(ty).u64(offset)
    }
    /// Ends the header and adds `n` bytes of data.
    pub(crate) fn data(mut self, n: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self.0
    }
    /// As it is, with zeros behind it, so that no count fails for want of bytes.
    pub(crate) fn zeros(mut self, n: usize) -> Vec<u8> {
        self.0.resize(self.0.len() + n, 0);
        self.0
    }
}

const U8: u32 = 0;
const U32: u32 = 4;
const I32: u32 = 5;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

/// A file with one key whose value is what `f` writes.
fn value(ty: u32, f: impl FnOnce(Raw) -> Raw) -> Vec<u8> {
    f(Raw::new(3, 0, 1).key(b"a", ty)).zeros(64)
}

/// A file with one tensor `t`.
fn tensor(ne: &[u64], ty: u32, offset: u64, data: usize) -> Vec<u8> {
    Raw::new(3, 1, 0).tensor(b"t", ne, ty, offset).data(data)
}

/// The good base with a number changed that lies `skip` bytes behind a name.
fn poked(name: &str, skip: usize, bytes: &[u8]) -> Vec<u8> {
    changed(base(), name, skip, bytes)
}

fn changed(base: &[u8], name: &str, skip: usize, bytes: &[u8]) -> Vec<u8> {
    let at = base.windows(name.len()).position(|w| w == name.as_bytes());
    let mut out = base.to_vec();
    put(&mut out, at.unwrap_or_else(|| panic!("{name} is not in the base")) + name.len() + skip, bytes);
    out
}

/// The good base with another type and value of a key that held a u32.
fn rewritten(key: &str, value: &[u8]) -> Vec<u8> {
    let at = base().windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len();
    let mut out = [&base()[..at], value, &base()[at + 8..unpadded()]].concat();
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(&base()[Parsed::parse(base()).unwrap().data_offset()..]);
    out
}

/// Where the header of the good base ends, before its padding.
fn unpadded() -> usize {
    let last = Parsed::parse(base()).unwrap().tensors().last().unwrap().name;
    let at = last.as_ptr() as usize - base().as_ptr() as usize + last.len();
    // The number of sizes, one size (the output norm is a vector), type, offset.
    at + 4 + 8 + 4 + 8
}

pub(crate) fn cases() -> Vec<Case> {
    let mut c = Vec::new();
    let mut add = |id, what: &str, bytes: Vec<u8>, want| c.push(Case::new(Gguf, id, what, bytes, want));
    add("G01", "an empty file has no magic", b"G".to_vec(), Refused(Truncated));
    for v in [0u32, 1, 4, 3u32.swap_bytes()] {
        add("G02", &format!("version {v:#x}"), Raw::new(v, 0, 0).zeros(64), Refused(Version));
    }
    add("G06", "arrays of arrays", value(ARRAY, |r| r.u32(ARRAY).u64(1).u64(0)), Refused(Unsupported));
    add("G06", "an array of what is no type", value(ARRAY, |r| r.u32(13).u64(1)), Refused(Type));
    add("G06", "a bool of 7", value(7, |r| r.u32(7)), Refused(Value));
    for n in [1u64 << 61, (1 << 61) + 1, u64::MAX] {
        add("G07", &format!("an array of {n} u64"), value(ARRAY, |r| r.u32(U64).u64(n)), Refused(Cap));
    }
    add("G07", "an array longer than the file", value(ARRAY, |r| r.u32(U64).u64(100)), Refused(Truncated));
    add("G08", "2^60 strings", value(ARRAY, |r| r.u32(STRING).u64(1 << 60)), Refused(Cap));
    add("G08", "more strings than fit", value(ARRAY, |r| r.u32(STRING).u64(100)), Refused(Truncated));
    add(
        "G08",
        "a string in an array beyond the end",
        value(ARRAY, |r| r.u32(STRING).u64(1).u64(900)),
        Refused(Truncated),
    );
    for (what, ty, len) in [("I32", I32, 4), ("U64", U64, 8)] {
        let bytes = Raw::new(3, 0, 1).key(b"general.alignment", ty).u32(64).zeros(len);
        add("G09", &format!("alignment as {what}"), bytes, Refused(Align));
    }
    add(
        "G09",
        "alignment as text",
        Raw::new(3, 0, 1).key(b"general.alignment", STRING).str(b"64").data(0),
        Refused(Align),
    );
    for v in [0u32, 1, 4, 13, 8192, 1 << 31] {
        let bytes = Raw::new(3, 0, 1).key(b"general.alignment", U32).u32(v).data(0);
        add("G10", &format!("alignment {v}"), bytes, Refused(Align));
    }
    add("G10", "a size of 0", tensor(&[8, 0], 0, 0, 64), Refused(Shape));
    add("G11", "no sizes", tensor(&[], 0, 0, 64), Refused(Shape));
    add("G11", "five sizes", tensor(&[1; 5], 0, 0, 64), Refused(Shape));
    add("G11", "2^32-1 sizes", Raw::new(3, 1, 0).str(b"t").u32(u32::MAX).zeros(64), Refused(Shape));
    for ty in [0, 2, 24] {
        add("G12", &format!("2^32 x 2^32 of type {ty}"), tensor(&[1 << 32, 1 << 32], ty, 0, 64), Refused(Shape));
    }
    add("G12b", "a product that would be negative", tensor(&[i64::MAX as u64, 2, 1, 1], 24, 0, 64), Refused(Shape));
    for n in [u64::MAX / 4, u64::MAX / 4 - 7, u64::MAX] {
        add("G13", &format!("{n} floats, whose padding wraps"), tensor(&[n], 0, 0, 64), Refused(Shape));
    }
    let two = |n: u64| Raw::new(3, 2, 0).tensor(b"t", &[n], 24, 0).tensor(b"u", &[n], 24, n).data(64);
    add("G14", "two tensors whose sum wraps", two(0x7fff_ffff_ffff_ffc0), Refused(Shape));
    add("G14", "two tensors of 2^45 bytes", two(1 << 45), Refused(Truncated));
    add("G15", "an offset beyond the file", tensor(&[8], 0, 1 << 40, 64), Refused(Layout));
    add("G15", "an offset of almost 2^64", tensor(&[8], 0, u64::MAX - 8, 64), Refused(Align));
    add("G15", "an offset of almost 2^64, aligned", tensor(&[8], 0, u64::MAX - 31, 64), Refused(Layout));
    let good = Parsed::parse(base()).unwrap();
    for t in good.tensors() {
        let what = format!("cut where {} begins", t.name);
        c.push(Case::new(Gguf, "G15", what, base()[..t.offset as usize].to_vec(), Refused(Truncated)));
    }
    let mut add = |id, what: &str, bytes: Vec<u8>, want| c.push(Case::new(Gguf, id, what, bytes, want));
    add("G16", "an offset of 3", tensor(&[8], 0, 3, 64), Refused(Align));
    let pair = |at| Raw::new(3, 2, 0).tensor(b"t", &[8], 0, 0).tensor(b"u", &[8], 0, at).data(128);
    add("G16", "two tensors in one place", pair(0), Refused(Layout));
    add("G16", "a gap", pair(64), Refused(Layout));
    add("G16", "a ZIP behind the last tensor", [base(), b"PK\x03\x04"].concat(), Refused(Layout));
    add("G16", "4096 zeros behind the last tensor", [base(), &[0; 4096]].concat(), Fine);
    add("G16", "4097 zeros behind the last tensor", [base(), &[0; 4097]].concat(), Refused(Layout));
    let named = |a: &[u8], b: &[u8]| Raw::new(3, 2, 0).tensor(a, &[8], 0, 0).tensor(b, &[8], 0, 32).data(64);
    add("G17", "t and t with NULs", named(b"t", b"t\0\0"), Refused(Text));
    add("G17", "names that differ in what is not UTF-8", named(b"t\xff", b"t\xfe"), Refused(Text));
    add("G17", "an empty name", named(b"t", b""), Refused(Text));
    add("G17", "a key that is not UTF-8", Raw::new(3, 0, 1).key(b"\xff", U8).zeros(64), Refused(Text));
    add("G17", "an empty key", Raw::new(3, 0, 1).key(b"", U8).zeros(64), Refused(Text));
    add("G17", "a key with a space", Raw::new(3, 0, 1).key(b"a b", U8).zeros(64), Refused(Text));
    add("G18", "513 layers", poked("llama.block_count", 4, &513u32.to_le_bytes()), Refused(Value));
    let minus = [&I32.to_le_bytes()[..], &(-1i32).to_le_bytes()].concat();
    add("G18", "-1 layers", poked("llama.block_count", 0, &minus), Refused(Type));
    add("G18", "2^32-1 layers", poked("llama.block_count", 4, &[0xff; 4]), Refused(Value));
    add("G18", "no heads", poked("llama.attention.head_count", 4, &[0; 4]), Refused(Value));
    add("G18", "7 heads", poked("llama.attention.head_count", 4, &7u32.to_le_bytes()), Refused(Value));
    add("G18", "no key heads", poked("llama.attention.head_count_kv", 4, &[0; 4]), Refused(Value));
    add("G18", "3 key heads for 2", poked("llama.attention.head_count_kv", 4, &3u32.to_le_bytes()), Refused(Value));
    let one = [ARRAY, U32, 1, 0, 1].map(u32::to_le_bytes).concat();
    add("G18", "key heads of one layer only", rewritten("llama.attention.head_count_kv", &one), Refused(Type));
    add("G18", "a width no head divides", poked("llama.embedding_length", 4, &33u32.to_le_bytes()), Refused(Value));
    add("G18", "a context of 0", poked("llama.context_length", 4, &[0; 4]), Refused(Value));
    add(
        "G18",
        "a feed-forward layer of 2^31",
        poked("llama.feed_forward_length", 4, &(1u32 << 31).to_le_bytes()),
        Refused(Value),
    );
    add("G18", "a rope of odd size", poked("llama.rope.dimension_count", 4, &3u32.to_le_bytes()), Refused(Value));
    add("G18", "no architecture's keys", poked("llama.block_count", 0, &[0xff; 4]), Refused(Type));
    add("G18", "a key too few", poked("llama.block_coun", 0, b"x"), Refused(Missing));
    add("G18", "another family", poked("general.architecture", 4 + 8, b"llamb"), Refused(Unsupported));
    let gemma = tiny::base(&TinyConfig { arch: TinyArch::Gemma3, ..config() }).unwrap();
    let wide = changed(&gemma, "gemma3.attention.value_length", 4, &8u32.to_le_bytes());
    add("G18", "values of another width than keys", wide, Refused(Unsupported));
    for ty in [4u32, 31, 40, 1 << 31] {
        let one = Raw::new(3, 1, 0).tensor(b"t", &[32], ty, 0).data(64);
        add("G19", &format!("type {ty}: listed, and refused on use"), one, Fine);
    }
    add("G21", "the end token is none", poked("tokenizer.ggml.tokens", 0, &[0xff; 4]), Refused(Type));
    for (what, v) in [("NaN", f32::NAN), ("0", 0.0), ("-1", -1.0), ("1", 1.0)] {
        let key = "llama.attention.layer_norm_rms_epsilon";
        add("G22", &format!("an epsilon of {what}"), poked(key, 4, &v.to_le_bytes()), Refused(Value));
    }
    for (what, v) in [("0", 0.0), ("infinite", f32::INFINITY), ("NaN", f32::NAN)] {
        add("G22", &format!("a rope base {what}"), poked("llama.rope.freq_base", 4, &v.to_le_bytes()), Refused(Value));
    }
    let big = |n: u64| Raw::new(3, 0, 1).key(b"a", ARRAY).u32(U8).u64(n).zeros(n as usize + 64);
    add("G23", "8 MiB of u8 in metadata", big(8 << 20), Refused(Cap));
    add("G23", "4 MiB of u8 in metadata, which is the cap", big(4 << 20), Fine);
    add("G24", "33 numbers of Q4_0", tensor(&[33], 2, 0, 64), Refused(Shape));
    add("G24", "33 numbers of Q8_0 in rows", tensor(&[33, 2], 8, 0, 640), Refused(Shape));
    c.extend(located());
    c
}

/// Those whose error must name the very place.
fn located() -> Vec<Case> {
    let case = |id, what: &str, bytes, code| Case::new(Gguf, id, what, bytes, Refused(code));
    let mut c = vec![
        case("G01", "FUGG", [b"FUGG".as_slice(), &[0; 60]].concat(), Magic).at(0),
        case("G01", "a ZIP", b"PK\x03\x04 and more".repeat(9), Magic).at(0),
        case("G05", "a key longer than the cap", Raw::new(3, 0, 1).u64((16 << 20) + 1).zeros(64), Cap).at(24),
        case("G06", "a value of type 13", value(13, |r| r), Type).in_section("key a").at(33),
        case("G06", "a value of type 2^32-1", value(u32::MAX, |r| r), Type).in_section("key a").at(33),
        case(
            "G17",
            "a tensor twice",
            Raw::new(3, 2, 0).tensor(b"t", &[8], 0, 0).tensor(b"t", &[8], 0, 32).data(64),
            Duplicate,
        )
        .in_section("tensor t")
        .at(24 + 33),
        case("G17", "a key twice", Raw::new(3, 0, 2).key(b"a", U32).u32(1).key(b"a", U32).u32(2).zeros(64), Duplicate)
            .in_section("key a")
            .at(24 + 17),
        case("G10", "alignment 7", Raw::new(3, 0, 1).key(b"general.alignment", U32).u32(7).data(0), Align)
            .in_section("key general.alignment")
            .at(24),
        case("G16", "a tensor that leaves a gap", tensor(&[8], 0, 32, 64), Layout).in_section("tensor t").at(24),
        // A token of 2^31 bytes, in a file that has them.
        case(
            "G20",
            "a token of 2^31 bytes",
            Raw::new(3, 0, 1).key(b"t", ARRAY).u32(STRING).u64(1).u64(1 << 31).zeros(0),
            Cap,
        )
        .in_section("key t")
        .at(24 + 9 + 4 + 12)
        .sparse((1 << 31) + 4096),
        case("G25", "1 TiB behind a header of 24 bytes", Raw::new(3, 0, 0).zeros(0), Layout).at(32).sparse(1 << 40),
        case("G25", "1 TiB that a tensor claims", tensor(&[1 << 36, 4], 0, 0, 0), Truncated)
            .in_section("tensor t")
            .at(24)
            .sparse(1 << 40),
    ];
    for n in [0x5555_5555_5555_555a, u64::MAX] {
        c.push(case("G03", &format!("{n:#x} keys"), Raw::new(3, 0, n).zeros(64), Cap).at(16));
    }
    c.push(case("G03", "more keys than fit", Raw::new(3, 0, 60).zeros(64), Truncated).at(16));
    for n in [1 << 61, u64::MAX] {
        c.push(case("G04", &format!("{n:#x} tensors"), Raw::new(3, n, 0).zeros(64), Cap).at(8));
    }
    c.push(case("G04", "more tensors than fit", Raw::new(3, 60, 0).zeros(64), Truncated).at(8));
    for n in [u64::MAX, 1 << 63] {
        c.push(case("G05", &format!("a key of {n:#x} bytes"), Raw::new(3, 0, 1).u64(n).zeros(64), Cap).at(24));
        let bytes = value(STRING, |r| r.u64(n));
        c.push(case("G05", &format!("a string of {n:#x} bytes"), bytes, Cap).in_section("key a").at(37));
    }
    c.push(case("G05", "a key one byte longer than the rest", Raw::new(3, 0, 1).u64(65).zeros(64), Truncated).at(32));
    c
}
