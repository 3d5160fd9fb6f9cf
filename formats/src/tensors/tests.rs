use super::*;
use crate::Code;

fn sample() -> Vec<u8> {
    let mut w = TensorsWriter::new();
    w.add_f32("b", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    w.add_f16("a.x", &[5], &[0.5; 5]).unwrap();
    w.add_i32("c", &[1], &[-7]).unwrap();
    w.finish().unwrap()
}

/// A payload from a hand-written header and data.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

#[test]
fn round_trip_is_canonical_and_aligned() {
    let bytes = sample();
    let t = Tensors::parse(&bytes).unwrap();
    assert_eq!(t.names().collect::<Vec<_>>(), ["a.x", "b", "c"]);
    assert_eq!(t.get("b").unwrap().to_f32(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(t.get("a.x").unwrap().to_f32(), [0.5; 5]);
    assert_eq!(t.get("c").unwrap().to_i32(), [-7]);
    for n in ["a.x", "b", "c"] {
        let at = t.get(n).unwrap().data.as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(at % ALIGN, 0, "{n}");
    }
    // The stock crate reads the same.
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("b").unwrap().shape(), [2, 3]);
    let mut again = TensorsWriter::new();
    for n in ["c", "b", "a.x"] {
        again.add_view(n, t.get(n).unwrap()).unwrap();
    }
    assert_eq!(again.finish().unwrap(), bytes, "order of adding does not matter");
}

#[test]
fn every_prefix_is_refused() {
    let bytes = sample();
    for n in 0..bytes.len() {
        assert!(Tensors::parse(&bytes[..n]).is_err(), "prefix of {n} bytes was accepted");
    }
}

#[test]
fn hostile_payloads_are_refused_by_name() {
    let one = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let nan = f32::NAN.to_le_bytes();
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("M01 header length 2^64-1", [0xff; 16].to_vec(), Code::Cap),
        ("M03 header 1 MiB + 1", [&((1u64 << 20) + 1).to_le_bytes()[..], &[b' '; 8]].concat(), Code::Cap),
        ("M04 not UTF-8", raw("{", &[]).into_iter().chain([0xff]).collect(), Code::Layout),
        ("M05 leading space", raw(&format!(" {one}"), &[0; 4]), Code::Value),
        (
            "M06 same key, other dtype",
            raw(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#,
                &[0; 4],
            ),
            Code::NonCanonical,
        ),
        ("M07 hole", raw(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 8]), Code::Layout),
        ("M09 reversed", raw(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, &[0; 4]), Code::Layout),
        ("M11 trailing byte", raw(one, &[0; 5]), Code::Layout),
        (
            "M12 wrapping product",
            raw(r#"{"a":{"dtype":"F32","shape":[4194305,4194305,211106198978564],"data_offsets":[0,16]}}"#, &[0; 16]),
            Code::Layout,
        ),
        ("M13 zero size", raw(r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#, &[]), Code::Shape),
        ("M14 no canonical padding", raw(one, &[0; 4]), Code::NonCanonical),
        ("M15 path as name", raw(&one.replace("\"a\"", "\"../x\""), &[0; 4]), Code::Text),
        ("M15 empty name", raw(&one.replace("\"a\"", "\"\""), &[0; 4]), Code::Text),
        ("F64", raw(r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]), Code::Type),
    ];
    for (name, bytes, code) in cases {
        match Tensors::parse(&bytes) {
            Err(e) => assert_eq!(e.code(), code, "{name}: {e}"),
            Ok(_) => panic!("{name}: accepted"),
        }
    }
    let mut w = TensorsWriter::new();
    w.add_f32("a", &[1], &[0.0]).unwrap();
    let mut bytes = w.finish().unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&nan);
    assert_eq!(Tensors::parse(&bytes).unwrap_err().code(), Code::NotFinite, "M16");
    bytes[at..].copy_from_slice(&1e30f32.to_le_bytes());
    assert_eq!(Tensors::parse(&bytes).unwrap_err().code(), Code::NotFinite, "M16 1e30");
    let mut bytes = sample();
    let pad = bytes.len() - 4 - 1;
    bytes[pad] = 1;
    assert_eq!(Tensors::parse(&bytes).unwrap_err().code(), Code::Reserved, "M17");
}
