use super::*;

/// Numbers that fill the range of a type without being regular.
fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i % 13) as f32 / 7.0)).collect()
}

#[test]
fn quantize_then_dequantize_stays_within_half_a_step() {
    // Tolerance: half a quantization step of the block's range, plus f16 rounding of scale and minimum.
    for (ty, steps) in [
        (QuantType::F32, 1e9),
        (QuantType::F16, 2048.0),
        (QuantType::BF16, 256.0),
        (QuantType::Q8_0, 127.0 * 2.0),
        (QuantType::Q4_0, 8.0),
        (QuantType::Q4_1, 15.0),
        (QuantType::Q5_0, 16.0),
        (QuantType::Q5_1, 31.0),
        // Searched scales and minima may leave the ends of the range a little outside, and are rounded themselves.
        (QuantType::Q6K, 32.0 / 1.5),
        (QuantType::Q5K, 31.0 / 1.5),
        (QuantType::Q4K, 15.0 / 1.5),
        (QuantType::Q3K, 4.0 / 1.5),
        (QuantType::Q2K, 3.0 / 1.5),
    ] {
        let x = wave(256);
        let bytes = quantize(ty, &x).unwrap();
        assert_eq!(bytes.len(), ty.row_bytes(256).unwrap());
        let mut y = vec![0.0; 256];
        dequantize(ty, &bytes, &mut y);
        for (a, b) in x.chunks(32).zip(y.chunks(32)) {
            let range = 2.0 * a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (a, b) in a.iter().zip(b) {
                assert!((a - b).abs() <= range * (0.51 / steps + 1e-3 / 2.0) as f32, "{}: {a} became {b}", ty.name());
            }
        }
        let d = dot(ty, &bytes, &x);
        let want: f64 = y.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((f64::from(d) - want).abs() < 1e-4 * want.abs());
    }
}

#[test]
fn five_bit_and_k_blocks_decode_hand_made_bits() {
    // Q5_0: d = 1, number 0 = 0b10001 - 16 = 1, number 16 = 0b00010 - 16 = -14.
    let mut b = vec![0u8; 22];
    b[..2].copy_from_slice(&half::f16::from_f32(1.0).to_le_bytes());
    b[2] = 1;
    b[6] = 0x21;
    let mut y = vec![0.0; 32];
    dequantize(QuantType::Q5_0, &b, &mut y);
    assert_eq!((y[0], y[16], y[1]), (1.0, -14.0, -16.0));

    // Q6_K: d = 2, scale of run 0 = 3, number 0 = 0b100101 - 32 = 5 -> 30; all else scale 0.
    let mut b = vec![0u8; 210];
    b[0] = 0x05;
    b[128] = 0b10;
    b[192] = 3;
    b[208..].copy_from_slice(&half::f16::from_f32(2.0).to_le_bytes());
    let mut y = vec![0.0; 256];
    dequantize(QuantType::Q6K, &b, &mut y);
    assert_eq!((y[0], y[1], y[16]), (30.0, -192.0, 0.0));

    // Q4_K: d = 1, dmin = 1, run 5: scale 0b110010 = 50, min 0b010111 = 23, number 0 of it 7.
    let mut b = vec![0u8; 144];
    b[..2].copy_from_slice(&half::f16::from_f32(1.0).to_le_bytes());
    b[2..4].copy_from_slice(&half::f16::from_f32(1.0).to_le_bytes());
    b[4 + 9] = 0x72;
    b[4 + 1] = 0b11 << 6;
    b[4 + 5] = 0b01 << 6;
    b[16 + 64] = 0x70;
    let mut y = vec![0.0; 256];
    dequantize(QuantType::Q4K, &b, &mut y);
    assert_eq!(y[160], 50.0 * 7.0 - 23.0);
    assert_eq!(y[0], 0.0);

    // Q5_K shares the packing; the fifth bit of run 5 is bit 5 of qh[0].
    let mut c = vec![0u8; 176];
    c[..16].copy_from_slice(&b[..16]);
    c[16] = 1 << 5;
    c[48 + 64] = 0x70;
    dequantize(QuantType::Q5K, &c, &mut y);
    assert_eq!(y[160], 50.0 * 23.0 - 23.0);
}

#[test]
fn refuses_what_it_cannot_write() {
    assert_eq!(quantize(QuantType::Q8_0, &[0.0; 31]).unwrap_err().code(), Code::Shape);
    assert_eq!(quantize(QuantType::Q8_0, &[f32::NAN; 32]).unwrap_err().code(), Code::NotFinite);
    assert_eq!(quantize(QuantType::Iq4Nl, &[0.0; 256]).unwrap_err().code(), Code::Unsupported);
    assert_eq!(quantize(QuantType::F16, &[65504.0, 65520.0]).unwrap_err().code(), Code::NotFinite);
    assert_eq!(QuantType::Q4_0.row_bytes(33), None);
}

#[test]
fn every_f16_converts_as_half_does() {
    for bits in 0..=u16::MAX {
        let (ours, want) = (f16(bits.to_le_bytes()), half::f16::from_bits(bits).to_f32());
        assert!(ours.to_bits() == want.to_bits() || ours.is_nan() && want.is_nan(), "{bits:#06x}: {ours} for {want}");
    }
}

#[test]
fn every_type_is_found_by_its_id_and_its_name() {
    for ty in QuantType::ALL {
        assert_eq!((QuantType::from_ggml(ty.ggml_id()), QuantType::from_name(ty.name())), (Some(ty), Some(ty)));
        assert_eq!(ty.row_bytes(3 * ty.block_len()), Some(3 * ty.block_bytes()));
    }
    assert_eq!((QuantType::from_ggml(40), QuantType::from_name("NVFP4")), (None, None));
}
