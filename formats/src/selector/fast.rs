//! When n-grams alone may answer, without a pass of the base.
//!
//! Their own posterior is `softmax(scores / temperature)`, over the classes of all tasks. They answer if its best class
//! reaches the threshold, which is set where rows left out change their answers for it as seldom as is promised.
//!
//! Payload, beside a selector's weights and n-grams: [`FAST`] F32 `[2]`, temperature and threshold.

use crate::head::log_softmax;
use crate::tensors::Tensors;
use crate::{Code, Error, Result};

/// Name of the tensor.
pub const FAST: &str = "ngrams.fast";

/// The temperature and the threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fast {
    /// Temperature of the n-grams' scores.
    pub temperature: f32,
    /// The least posterior that answers; above 1 none does.
    pub threshold: f32,
}

impl Fast {
    /// Finds it in a selector's payload; `None` if there is none.
    ///
    /// # Errors
    /// If the tensor has another shape, or a value is out of range.
    pub fn load(payload: &[u8]) -> Result<Option<Self>> {
        let Some(t) = Tensors::parse(payload)?.get(FAST).map(|t| t.to_f32()) else { return Ok(None) };
        match t.as_slice() {
            [temperature, threshold] if *temperature > 0.0 && *threshold >= 0.0 => {
                Ok(Some(Self { temperature: *temperature, threshold: *threshold }))
            }
            _ => Err(Error::new(Code::Value, format!("tensor {FAST:?} is {t:?}, not a temperature and a threshold"))),
        }
    }

    /// The best class of these scores and its posterior.
    pub fn best(self, mut scores: Vec<f32>) -> (usize, f32) {
        log_softmax(&mut scores, self.temperature);
        let best = (0..scores.len()).fold(0, |b, i| if scores[i] > scores[b] { i } else { b });
        (best, scores[best].exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::TensorsWriter;

    #[test]
    fn payloads_are_read_and_checked() {
        let load = |v: &[f32]| {
            let mut w = TensorsWriter::new();
            w.add_f32(FAST, &[v.len()], v).unwrap();
            Fast::load(&w.finish().unwrap())
        };
        let fast = load(&[2.0, 0.9]).unwrap().unwrap();
        let (class, p) = fast.best(vec![0.0, 2.0 * 9.0f32.ln()]);
        assert_eq!(class, 1);
        assert!((p - 0.9).abs() < 1e-6, "{p}");
        assert!(load(&[0.0, 0.9]).is_err() && load(&[1.0]).is_err() && load(&[1.0, -0.1]).is_err());
        assert_eq!(Fast::load(&TensorsWriter::new().finish().unwrap()).unwrap(), None);
    }
}
