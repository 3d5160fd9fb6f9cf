//! M: payloads that break a rule of safetensors, or one of the strict profile.

use super::case::Kind::Module;
use super::case::{Case, Want};
use super::forge::{module, payload};
use Want::Refused;
use conpet_formats::Code::{
    self, Align, Cap, Layout, NonCanonical, NotFinite, Reserved, Shape, Text, Truncated, Type, Value,
};
use conpet_formats::tensors::TensorsWriter;

/// An entry of a header.
fn entry(name: &str, dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
}

/// A payload of these entries, its header padded so that data begin on a multiple of 64.
fn with(entries: &[String], data: usize) -> Vec<u8> {
    let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
    header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    payload(&header, &vec![0; data])
}

fn one(name: &str, dtype: &str, shape: &str, from: u64, to: u64, data: usize) -> Vec<u8> {
    with(&[entry(name, dtype, shape, from, to)], data)
}

fn f32(name: &str, from: u64) -> String {
    entry(name, "F32", "[1]", from, from + 4)
}

/// One number as our own writer puts it.
fn number(bits: &[u8]) -> Vec<u8> {
    let mut w = TensorsWriter::new();
    match bits.len() {
        4 => w.add_f32("a", &[1], &[0.0]).unwrap(),
        _ => w.add_f16("a", &[1], &[0.0]).unwrap(),
    }
    let mut out = w.finish().unwrap();
    let at = out.len() - bits.len();
    out[at..].copy_from_slice(bits);
    out
}

pub(crate) fn cases() -> Vec<Case> {
    let mut c = Vec::new();
    let mut add = |id, what: &str, bytes: Vec<u8>, code: Code| {
        c.push(Case::new(Module, id, what, bytes, Refused(code)));
    };
    add("M04", "an unfinished header", payload(b"{", &[]), Layout);
    add("M05", "a tab before the header", payload(format!("\t{{{}}}", f32("a", 0)).as_bytes(), &[0; 4]), Value);
    let twice = [f32("a", 0), entry("a", "I32", "[1]", 0, 4)];
    add("M06", "one key, one place, two dtypes", with(&twice, 4), NonCanonical);
    add("M06", "one entry twice", with(&[f32("a", 0), f32("a", 0)], 4), NonCanonical);
    add("M06", "a key twice by an escape", with(&[f32("a", 0), f32("\\u0061", 0)], 4), NonCanonical);
    add(
        "M06",
        "metadata, and in it a key twice",
        with(&["\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}".into(), f32("a", 0)], 4),
        NonCanonical,
    );
    add("M07", "a hole before the first", one("a", "F32", "[1]", 4, 8, 8), Layout);
    add("M07", "a hole between two", with(&[f32("a", 0), f32("b", 64)], 68), Layout);
    add("M08", "an overlap", with(&[entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 4, 12)], 12), Layout);
    add("M09", "reversed offsets", one("a", "F32", "[1]", 4, 0, 4), Layout);
    add(
        "M09",
        "negative offsets",
        with(&["\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}".into()], 4),
        Layout,
    );
    add(
        "M09",
        "offsets that are no integers",
        with(&["\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0.0,4.0]}".into()], 4),
        Layout,
    );
    add("M10", "an end before its data's", one("a", "F32", "[1]", 0, 3, 3), Layout);
    add("M10", "an end beyond the file", one("a", "F32", "[1]", 0, 4, 3), Layout);
    add("M10", "an end of 2^64-1", one("a", "F32", "[1]", 0, u64::MAX, 4), Layout);
    add("M11", "a byte too many", one("a", "F32", "[1]", 0, 4, 5), Layout);
    add("M12", "a shape whose product wraps", one("a", "F32", "[4194305,4194305,211106198978564]", 0, 16, 16), Layout);
    add("M12", "a shape of 2^64", one("a", "U8", "[18446744073709551616]", 0, 1, 1), Layout);
    add("M13", "a size of 0", one("a", "F32", "[0]", 0, 0, 0), Shape);
    add(
        "M13",
        "a size of 0 and then a number in the same place",
        with(&[entry("a", "F32", "[0]", 0, 0), f32("b", 0)], 4),
        Shape,
    );
    add("M13", "a size of 0 beside one of 2^64-1", one("a", "F32", "[0,18446744073709551615]", 0, 0, 0), Shape);
    add("M13", "no size", one("a", "F32", "[]", 0, 4, 4), Shape);
    add("M13", "five sizes", one("a", "F32", "[1,1,1,1,1]", 0, 4, 4), Shape);
    add("M14", "a float at byte 2", with(&[entry("a", "F16", "[1]", 0, 2), entry("b", "F32", "[1]", 2, 6)], 6), Align);
    add(
        "M14",
        "data that begin at no multiple of 64",
        payload(format!("{{{}}}", f32("a", 0)).as_bytes(), &[0; 4]),
        NonCanonical,
    );
    for name in ["", "a\\u0000b", "../x", "a/b", ".a", "a b", "\u{e9}"] {
        add("M15", &format!("the name {name:?}"), one(name, "F32", "[1]", 0, 4, 4), Text);
    }
    add("M15", "a name of 129", one(&"n".repeat(129), "F32", "[1]", 0, 4, 4), Text);
    add("M15", "metadata as a tensor", one("__metadata__", "F32", "[1]", 0, 4, 4), Layout);
    add("M15", "metadata of our own", with(&["\"__metadata__\":{\"a\":\"b\"}".into(), f32("a", 0)], 4), NonCanonical);
    add("M17", "padding that is not needed", one("__pad.0", "U8", "[4]", 0, 4, 4), NonCanonical);
    // Quantised payloads do not exist in this release: a block type is no dtype, and a field of its own none of ours.
    add("M18", "a dtype that is a block type", one("a", "Q8_0", "[33]", 0, 36, 36), Layout);
    add("M18", "doubles", one("a", "F64", "[1]", 0, 8, 8), Type);
    add(
        "M18",
        "a field that names a block type",
        with(&["\"a\":{\"dtype\":\"U8\",\"qtype\":\"Q8_0\",\"shape\":[34],\"data_offsets\":[0,34]}".into()], 34),
        NonCanonical,
    );
    add("X01", "a ZIP", b"PK\x03\x04\x14\0\0\0\x08\0 archive/data.pkl".to_vec(), Cap);
    add("X01", "a pickle", b"\x80\x02}q\0(X\x06\0\0\0weightq\x01cposix\nsystem\nq\x02.".to_vec(), Cap);
    c.extend(located());
    c
}

/// Those whose error must name the very place.
fn located() -> Vec<Case> {
    let case = |id, what: &str, bytes, code| Case::new(Module, id, what, bytes, Refused(code));
    let long = |n: u64| [&n.to_le_bytes()[..], b"{}", &[b' '; 62]].concat();
    let mut c = vec![
        case("M01", "a header of 2^64-1 bytes", long(u64::MAX), Cap).at(0),
        case("M02", "a header of 100,000,001 bytes", long(100_000_001), Cap).at(0),
        case("M03", "a header of 1 MiB + 1", long((1 << 20) + 1), Cap).at(0),
        case("M03", "a header of 1 MiB in 72 bytes", long(1 << 20), Truncated).at(8),
        case("M03", "seven bytes", vec![0; 7], Truncated).at(0),
        case("M04", "a header that is not UTF-8", payload(b"{\"\xff\":1}", &[]), Text).at(10),
        case("M05", "a space before the header", payload(format!(" {{{}}}", f32("a", 0)).as_bytes(), &[0; 4]), Value)
            .at(8),
    ];
    let at = number(&[0; 4]).len() as u64;
    for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, 65505.0] {
        c.push(
            case("M16", &format!("a float of {v}"), number(&v.to_le_bytes()), NotFinite)
                .in_section("tensor a")
                .at(at - 4),
        );
    }
    let at = number(&[0; 2]).len() as u64;
    for (what, bits) in [("NaN", 0x7e00u16), ("infinite", 0x7c00), ("minus infinite", 0xfc00)] {
        c.push(
            case("M16", &format!("a half {what}"), number(&bits.to_le_bytes()), NotFinite)
                .in_section("tensor a")
                .at(at - 2),
        );
    }
    // Between the two factors of a good module there are zeros.
    let mut bytes = module();
    let pads = bytes.windows(6).any(|w| w == b"__pad.");
    assert!(!pads, "factors of 128 bytes need no padding");
    let mut w = TensorsWriter::new();
    w.add_f32("a", &[1], &[1.0]).unwrap();
    w.add_f32("b", &[1], &[1.0]).unwrap();
    bytes = w.finish().unwrap();
    let pad = bytes.len() - 5;
    bytes[pad] = 1;
    c.push(case("M17", "padding that is not zero", bytes, Reserved).in_section("tensor __pad.0").at(pad as u64 - 59));
    c
}
