use super::*;

fn sample() -> Vec<u8> {
    let mut w = TensorsWriter::new();
    w.add_f32("b", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    w.add_f16("a.x", &[5], &[0.5; 5]).unwrap();
    w.add_i32("c", &[1], &[-7]).unwrap();
    w.finish().unwrap()
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
