//! The types that are plain floats.

pub(super) fn f32s(bytes: &[u8], out: &mut [f32]) {
    bytes.chunks_exact(4).zip(out).for_each(|(b, o)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
}

pub(super) fn f16s(bytes: &[u8], out: &mut [f32]) {
    bytes.chunks_exact(2).zip(out).for_each(|(b, o)| *o = half::f16::from_le_bytes([b[0], b[1]]).to_f32());
}

pub(super) fn bf16s(bytes: &[u8], out: &mut [f32]) {
    bytes.chunks_exact(2).zip(out).for_each(|(b, o)| *o = half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
}
