//! Tables of rotary position embeddings.

/// Cosines and sines of the rotary embedding at `position` (Su et al. 2021):
/// `out[2i], out[2i+1] = cos, sin of position · base^(-2i / rope_dim)`, `out [rope_dim]`.
pub fn rope_table(base: f32, position: usize, out: &mut [f32]) {
    let dim = out.len() as f64;
    for (i, pair) in out.chunks_exact_mut(2).enumerate() {
        let freq = f64::from(base).powf(-2.0 * i as f64 / dim);
        let (sin, cos) = (position as f64 * freq).sin_cos();
        pair[0] = cos as f32;
        pair[1] = sin as f32;
    }
}
