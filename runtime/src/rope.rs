//! Tables of rotary position embeddings.

use conpet_formats::model_spec::Rope;

/// Cosines and sines of a rotary embedding at `position` (Su et al. 2021):
/// `out[2i], out[2i+1] = cos, sin of position · frequency_i`, times the embedding's magnitude, `out [dim]`.
pub fn rope_table(rope: &Rope, position: usize, out: &mut [f32]) {
    let magnitude = f64::from(rope.magnitude);
    for (frequency, pair) in rope.frequencies.iter().zip(out.chunks_exact_mut(2)) {
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        pair[0] = (cos * magnitude) as f32;
        pair[1] = (sin * magnitude) as f32;
    }
}
