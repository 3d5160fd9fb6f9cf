//! Choice heads: labels as texts, scored by the language model itself.
//!
//! `score[c] = Σ_j log p(token_j of label c | prompt, tokens before it)`, the end-of-text token among them
//! where the base has one, so that a label that begins another is no favourite; `choice-mean` divides
//! by the number of tokens (Brown et al. 2020, section 2.4). Softmax over the scores of all labels
//! gives probabilities, as from a linear head's logits.
//!
//! Payload (section kind `head`): [`TOKENS`] I32 `[tokens of all labels]`, [`FIRST`] I32 `[classes + 1]`:
//! where each label begins.

use crate::tensors::{Dtype, Tensors, TensorsWriter};
use crate::{Code, Error, Result};

/// Name of the tokens of all labels, one after another.
pub const TOKENS: &str = "choice.tokens";
/// Name of the first token of each label.
pub const FIRST: &str = "choice.first";

/// The payload of labels given as tokens.
///
/// # Errors
/// If a tensor cannot be written.
pub fn write(labels: &[Vec<u32>]) -> Result<Vec<u8>> {
    let mut first = vec![0i32];
    labels.iter().for_each(|l| first.push(first[first.len() - 1] + l.len() as i32));
    let tokens: Vec<i32> = labels.iter().flatten().map(|t| *t as i32).collect();
    let mut w = TensorsWriter::new();
    w.add_i32(TOKENS, &[tokens.len()], &tokens)?;
    w.add_i32(FIRST, &[first.len()], &first)?;
    w.finish()
}

/// The tokens of `classes` labels from a head's payload, each below `vocab`.
///
/// # Errors
/// If a tensor is missing, a label is empty, or a token is none of the base's.
pub fn read(payload: &[u8], classes: usize, vocab: usize) -> Result<Vec<Vec<u32>>> {
    let tensors = Tensors::parse(payload)?;
    let ints = |name: &str| -> Result<Vec<i32>> {
        let t = tensors.get(name).ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")))?;
        if t.dtype != Dtype::I32 {
            return Err(Error::new(Code::Type, format!("tensor {name:?} is of dtype {:?}", t.dtype)));
        }
        Ok(t.to_i32())
    };
    let (tokens, first) = (ints(TOKENS)?, ints(FIRST)?);
    let ends = first.first() == Some(&0) && first.last() == i32::try_from(tokens.len()).ok().as_ref();
    if first.len() != classes + 1 || !ends || !first.windows(2).all(|w| w[0] < w[1]) {
        return Err(Error::new(Code::Shape, format!("the choices do not cut {} tokens into {classes}", tokens.len())));
    }
    if let Some(t) = tokens.iter().find(|t| usize::try_from(**t).map_or(true, |t| t >= vocab)) {
        return Err(Error::new(Code::Value, format!("a choice has token {t}, the base has {vocab}")));
    }
    Ok(first.windows(2).map(|w| tokens[w[0] as usize..w[1] as usize].iter().map(|t| *t as u32).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_and_misfits_are_refused() {
        let labels = vec![vec![5], vec![5, 6, 7], vec![1, 2]];
        let payload = write(&labels).unwrap();
        assert_eq!(read(&payload, 3, 8).unwrap(), labels);
        assert_eq!(read(&payload, 2, 8).unwrap_err().code(), Code::Shape);
        assert_eq!(read(&payload, 3, 7).unwrap_err().code(), Code::Value);
        assert_eq!(read(&write(&[vec![1], vec![]]).unwrap(), 2, 8).unwrap_err().code(), Code::Shape);
        assert_eq!(read(&TensorsWriter::new().finish().unwrap(), 1, 8).unwrap_err().code(), Code::Missing);
    }
}
