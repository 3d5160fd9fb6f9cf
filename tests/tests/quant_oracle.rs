//! Quantized blocks against an implementation that shares none of our code: candle's.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file};
use conpet_formats::quant::{self, QuantType};

/// Bytes of every value, with scales that are small and finite.
fn blocks(ty: QuantType, n: usize, scales: &[usize]) -> Vec<u8> {
    let mut x = 12345u32;
    let mut bytes: Vec<u8> = (0..n * ty.block_bytes())
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 24) as u8
        })
        .collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for at in scales {
            block[at + 1] = 0x20 | block[at + 1] & 0x83;
        }
    }
    bytes
}

#[test]
fn every_type_candle_knows_decodes_alike() {
    for (ty, theirs, scales) in [
        (QuantType::Q8_0, GgmlDType::Q8_0, &[0][..]),
        (QuantType::Q4_0, GgmlDType::Q4_0, &[0]),
        (QuantType::Q4_1, GgmlDType::Q4_1, &[0, 2]),
        (QuantType::Q5_0, GgmlDType::Q5_0, &[0]),
        (QuantType::Q5_1, GgmlDType::Q5_1, &[0, 2]),
        (QuantType::Q2K, GgmlDType::Q2K, &[80, 82]),
        (QuantType::Q3K, GgmlDType::Q3K, &[108]),
        (QuantType::Q4K, GgmlDType::Q4K, &[0, 2]),
        (QuantType::Q5K, GgmlDType::Q5K, &[0, 2]),
        (QuantType::Q6K, GgmlDType::Q6K, &[208]),
    ] {
        let n = 64;
        let (bytes, len) = (blocks(ty, n, scales), n * ty.block_len());
        let mut ours = vec![0.0; len];
        quant::dequantize(ty, &bytes, &mut ours);
        let tensor = ggml_file::qtensor_from_ggml(theirs, &bytes, vec![1, len], &Device::Cpu).unwrap();
        let want = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let size = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (i, (a, b)) in ours.iter().zip(&want).enumerate() {
            // We compute `scale · code + min` where candle computes `scale · (code - offset)`; they differ by
            // one rounding.
            assert!((a - b).abs() <= 1e-6 * size, "{} number {i}: {a} for {b}", ty.name());
        }
    }
}
