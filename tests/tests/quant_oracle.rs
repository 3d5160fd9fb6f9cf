//! Quantized blocks against implementations that share none of our code: candle's, and gguf-py's of llama.cpp.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file};
use conpet_formats::quant::{self, QuantType};
use sha2::{Digest, Sha256};

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

/// SHA-256 of what gguf-py decodes of [`exact_blocks`], from `tests/peers/quants.py`.
const DECODED: &[(&str, &str)] = &[
    ("Q4_0", "90f83b513fb8ec27a21dcbd763bb98f75bdd8fa5187295afd1c1f14aacab8dd5"),
    ("Q4_1", "f58111d402707ccc83134fa38083b5f20c126bd6ede3aa3bb089f6d836834ac6"),
    ("Q5_0", "4176cca938dcb5881001365acb475396f1ad5c0e844e03c91d643acce7374e00"),
    ("Q5_1", "5d0af8da5248dfa24c1eae2bb2f28ac99c6f6a29c7a930074a4ff47e783ca761"),
    ("Q8_0", "c37bb5400feeec3cbc340964c385717c64744bee955ee4fe70706e4f43f30ca7"),
    ("Q2_K", "c573ae5faa2f210bb9b7c3618d7b647350a3090ca7197ec68f73f3de6b25f67e"),
    ("Q3_K", "3ce9cc7f947b2fd0ea8c139cda30bb63bb99f0b57e96b917297874b477f5ef03"),
    ("Q4_K", "4eeee31127986632e1665e9faa42f66cf1489f52aa2e188e5a5a402607348741"),
    ("Q5_K", "145bab3b6f79a8c283df22fb907342d4c0f2b42216c8eff5d4ca745435422120"),
    ("Q6_K", "7f9c704a7749d52bc681f952e24734c410c762122ba0ad7dcc78c76910dc28ca"),
    ("IQ4_NL", "1a29305672622fea42486d998863ebd630e3cbdcd63549694e1fa4f1ada6f963"),
    ("IQ4_XS", "493bdea12fa5f77b384dd7cb7e5c4dd50f2a65a3e1c0049dec2043afdcda7a1b"),
    ("IQ3_S", "fbdcd6ef4e3379da8812bd3bf4cd19a6b9f411859a5931ed2257f83f5f8b7131"),
    ("IQ3_XXS", "d0455e26588e09ff2f38b64fc5d9030504a51d3642317b33d49bd0208c83bff6"),
    ("IQ2_S", "13f87597e5781ffa270207456c469c6f3e73e5f3bd925f083b3a2cecc2a4bb43"),
    ("IQ2_XS", "4fd7a42f47097c814f1b4c40fa834dbc7b53ebd97959323d42b890d27aa089b3"),
    ("IQ2_XXS", "7a6003a37172324c0ca3803af66854535490782564d60eee45a1cd45062e1b8d"),
    ("MXFP4", "2ce29013a64f618e83ac324f2b734ee77ac9edf36389f70a85966416419ce31f"),
    ("TQ1_0", "10b4f0a27d8e1c0ca60d2add4f309712f42ea19513019ee60fc9db85af233a6b"),
    ("TQ2_0", "01bc01a425324d4d537a2f43b04689c7251e28764c2099f75216c92be37501db"),
];

/// Bytes of every value, with scales that are powers of two: nothing is rounded then.
fn exact_blocks(ty: QuantType) -> Vec<u8> {
    let halves: &[usize] = match ty {
        QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4K | QuantType::Q5K => &[0, 2],
        QuantType::Q2K => &[80, 82],
        QuantType::Q3K => &[108],
        QuantType::Q6K => &[208],
        QuantType::Tq1_0 => &[52],
        QuantType::Tq2_0 => &[64],
        QuantType::Mxfp4 => &[],
        _ => &[0],
    };
    let mut bytes = blocks(ty, 4096, &[]);
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for at in halves {
            (block[*at], block[at + 1]) = (0, (8 + block[at + 1] % 8) << 2);
        }
        if ty == QuantType::Mxfp4 {
            block[0] = 100 + block[0] % 32;
        }
    }
    bytes
}

#[test]
fn every_type_decodes_to_the_very_numbers_of_llama_cpp() {
    let quantized: Vec<_> = QuantType::ALL.into_iter().filter(|ty| ty.block_len() > 1).collect();
    assert_eq!(quantized.len(), DECODED.len(), "a type is missing from the list");
    for ty in quantized {
        let mut values = vec![0.0; 4096 * ty.block_len()];
        quant::dequantize(ty, &exact_blocks(ty), &mut values);
        // Zeros without a sign.
        let bytes: Vec<u8> = values.iter().flat_map(|v| (v + 0.0).to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        let want = DECODED.iter().find(|(name, _)| *name == ty.name()).map(|(_, digest)| *digest);
        assert_eq!(Some(digest.as_str()), want, "{}", ty.name());
    }
}
