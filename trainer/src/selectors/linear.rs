//! Multinomial logistic regression on features, trained on a bounded memory and the new rows
//! ([`super::softmax`]).

use super::fitting::Fit;
use super::softmax;
use crate::services::Services;
pub use crate::settings::NoSettings as Settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;

pub(super) fn fit(services: &mut Services<'_>, _: &Settings, draft: &mut Draft, new: &Fit<'_>) -> Result<bool> {
    softmax::fit(services, draft, new, 0)
}

#[cfg(test)]
mod tests {
    use crate::selectors::memory::Memory;
    use crate::selectors::softmax::train;

    /// Old classes have two rows each, the newest two hundred.
    fn rows() -> Memory {
        let mut m = Memory::default();
        for (class, n) in [(0, 2), (1, 2), (2, 200)] {
            for i in 0..n {
                let noise = 0.3 * (i as f32 * 2.4 + class as f32).sin();
                let x = [[900.0, 0.0], [903.0, 0.0], [901.5, 3.0]][class];
                m.rows.extend([x[0] + noise, x[1] - noise]);
                m.classes.push(class);
            }
        }
        m
    }

    #[test]
    fn remembered_classes_hold_out_against_the_new_one() {
        let m = rows();
        let net = train(&m, 2, 4, 0, 200, 1).unwrap();
        assert!(net.hidden.is_none());
        for (x, want) in [([900.2, 0.1], 0), ([902.8, -0.1], 1), ([901.4, 2.8], 2)] {
            let s = net.scores.of(&x);
            assert!((0..4).all(|c| c == want || s[c] < s[want]), "{x:?}: {s:?}");
            assert!(s[3] < -1e3, "a class without rows must not win: {s:?}");
        }
        // Without the memory the old classes are forgotten.
        let new = Memory { rows: m.rows[8..].to_vec(), classes: m.classes[4..].to_vec() };
        let s = train(&new, 2, 3, 0, 200, 1).unwrap().scores.of(&[900.2, 0.1]);
        assert!(s[2] > s[0], "{s:?}");
    }
}
