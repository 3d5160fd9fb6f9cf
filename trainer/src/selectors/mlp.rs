//! A network with one hidden layer on features, trained on a bounded memory and the new rows ([`super::softmax`]).

use super::fitting::Fit;
use super::softmax;
use crate::services::Services;
use crate::settings::range::such;
use crate::settings::settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::hidden;

settings! { "mlp" Settings Flags {
    /// mlp: hidden units.
    selector_hidden: usize = 256, such(format!("1 to {}", hidden::MOST), |n| (1..=hidden::MOST).contains(n));
}}

pub(super) fn fit(services: &mut Services<'_>, own: &Settings, draft: &mut Draft, new: &Fit<'_>) -> Result<bool> {
    softmax::fit(services, draft, new, own.selector_hidden)
}

#[cfg(test)]
mod tests {
    use crate::selectors::memory::Memory;
    use crate::selectors::softmax::train;

    #[test]
    fn a_hidden_layer_learns_what_no_line_can() {
        // The XOR function.
        let corners = [[0.0f32, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]];
        let m = Memory { rows: corners.concat(), classes: vec![0, 1, 1, 0] };
        let net = train(&m, 2, 2, 16, 300, 1).unwrap();
        let (w, b) = net.hidden.unwrap();
        for (x, want) in corners.iter().zip(&m.classes) {
            let h: Vec<f32> =
                w.chunks_exact(2).zip(&b).map(|(w, b)| (w[0] * x[0] + w[1] * x[1] + b).max(0.0)).collect();
            let s = net.scores.of(&h);
            assert!(s[*want] > s[1 - want] + 1.0, "{x:?}: {s:?}");
        }
        let line = train(&m, 2, 2, 0, 300, 1).unwrap().scores;
        let right = corners.iter().zip(&m.classes).filter(|(x, c)| line.of(*x)[**c] > line.of(*x)[1 - **c]).count();
        assert!(right < 4);
    }
}
