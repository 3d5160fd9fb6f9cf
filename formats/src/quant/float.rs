//! The types that are plain floats.

#[inline(always)]
pub(super) fn f32s(bytes: &[u8], out: &mut [f32]) {
    bytes.chunks_exact(4).zip(out).for_each(|(b, o)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
}

#[inline(always)]
pub(super) fn f16s(bytes: &[u8], out: &mut [f32]) {
    bytes.chunks_exact(2).zip(out).for_each(|(b, o)| *o = super::f16([b[0], b[1]]));
}

#[inline(always)]
pub(super) fn bf16s(bytes: &[u8], out: &mut [f32]) {
    bytes
        .chunks_exact(2)
        .zip(out)
        .for_each(|(b, o)| *o = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
}
