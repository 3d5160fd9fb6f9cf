//! Fuzzes safetensors payloads. For an accepted one, the safetensors crate finds the same tensors, and our
//! writer makes the same bytes from them.

use crate::forge;
use crate::recipe;
use conpet_formats::tensors::{Tensors, TensorsWriter};
use safetensors::SafeTensors;

const WORDS: [&str; 24] = [
    "F32",
    "F16",
    "BF16",
    "I32",
    "U8",
    "F64",
    "I64",
    "BOOL",
    "Q8_0",
    "0",
    "1",
    "64",
    "128",
    "4194305",
    "18446744073709551615",
    "-1",
    "1.0",
    "__metadata__",
    "__pad.0",
    "__pad.1",
    "\\u0061",
    "../x",
    "\"data_offsets\":[0,64]",
    " ",
];

pub(crate) fn run(data: &[u8]) {
    let file = match recipe::raw(data) {
        Some(file) => file.to_vec(),
        None => spoiled(data, &[forge::module(), forge::selector(forge::TASKS), small()]),
    };
    let Ok(t) = Tensors::parse(&file) else { return };
    let stock = SafeTensors::deserialize(&file).expect("the stock crate refuses what we accept");
    let mut again = TensorsWriter::new();
    for name in t.names() {
        let (ours, theirs) = (t.get(name).unwrap(), stock.tensor(name).unwrap());
        assert_eq!(ours.shape, theirs.shape(), "{name}");
        assert_eq!(ours.dtype.name(), format!("{:?}", theirs.dtype()), "{name}");
        assert!(std::ptr::eq(ours.data, theirs.data()), "{name} is found in another place");
        assert!(ours.to_f32().iter().all(|v| v.is_finite()), "{name}");
        again.add_view(name, ours).unwrap();
    }
    let pads = stock.names().iter().filter(|n| n.starts_with("__pad.")).count();
    assert_eq!(t.names().count() + pads, stock.len());
    assert_eq!(again.finish().unwrap(), file, "another spelling was accepted");
}

/// Tensors of every type, with padding between them.
fn small() -> Vec<u8> {
    let mut w = TensorsWriter::new();
    w.add_f32("b", &[2, 3], &[1.0; 6]).unwrap();
    w.add_f16("a.x", &[5], &[0.5; 5]).unwrap();
    w.add_i32("c", &[1], &[-7]).unwrap();
    w.add_u8("d", &[3], &[1, 2, 3]).unwrap();
    w.finish().unwrap()
}

/// One of some good payloads with edits of its header's text, of its data, or of both.
pub(crate) fn spoiled(data: &[u8], good: &[Vec<u8>]) -> Vec<u8> {
    let mut u = recipe::recipe(data);
    let file = u.choose(good).unwrap_or(&good[0]);
    let begin = 8 + forge::get(file, 0, 8) as usize;
    let (mut header, mut numbers) = (file[8..begin].to_vec(), file[begin..].to_vec());
    let mode: u8 = u.arbitrary().unwrap_or(0);
    if mode & 1 == 0 {
        recipe::text_edits(&mut u, &mut header, &WORDS);
    }
    if mode & 2 == 0 {
        // Padded again, so that the edit is not refused for its length alone.
        while header.last() == Some(&b' ') {
            header.pop();
        }
        header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    }
    if mode & 4 == 0 {
        recipe::edits(&mut u, &mut numbers, &[]);
    }
    let mut out = forge::payload(&header, &numbers);
    if mode & 0xf0 == 0 {
        recipe::edits(&mut u, &mut out, &[0]);
    }
    out
}
