//! One hidden layer on features, trained on a bounded memory and the new rows ([`super::softmax`]).

use super::{New, softmax};
use crate::run::Run;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::selector::SelectorKind;

pub(super) fn fit(run: &mut Run<'_>, draft: &mut Draft, new: &New<'_>) -> Result<bool> {
    let units = run.config.selector_hidden;
    softmax::fit(run, draft, new, SelectorKind::Mlp, units)
}

#[cfg(test)]
mod tests {
    use crate::selectors::Memory;
    use crate::selectors::softmax::train;

    #[test]
    fn a_hidden_layer_learns_what_no_line_can() {
        // Exclusive or.
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
