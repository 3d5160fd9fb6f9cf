//! A selector's payload, read and checked: what turns a feature into scores of classes.

use super::{BIAS, CLASS_TASK, Fast, SelectorKind, WEIGHT};
use crate::hidden::Hidden;
use crate::mmap::Mapped;
use crate::ngrams::{Ngrams, Table};
use crate::novelty::{Novelty, Root};
use crate::quant::QuantType;
use crate::refusal::Refusal;
use crate::tensors::{Dtype, Tensors};
use crate::{Code, Error, Result};
use std::ops::Range;

/// Scores over classes: `weight [classes, width]` in the map, `bias [classes]`, on a feature or on
/// the hidden layer before them.
#[derive(Debug, Clone)]
pub struct Scorer {
    /// The file that the payload lies in.
    pub map: Mapped,
    /// Where the weight lies in it.
    pub weight: Range<usize>,
    /// Type of the weight's values, F32 or F16.
    pub ty: QuantType,
    /// Length of a feature.
    pub dim: usize,
    /// The layer before the weight, if there is one.
    pub hidden: Option<Hidden>,
    /// What is added to each class's score; there is at least one class.
    pub bias: Vec<f32>,
    /// The task of each class, ascending, each below the number of tasks.
    pub class_task: Vec<usize>,
    /// Evidence from the tokens and characters themselves; none, one or two tables.
    pub ngrams: Vec<Ngrams>,
    /// When the n-grams alone may answer.
    pub fast: Option<Fast>,
    /// The space in which an input's likeness to classes is measured; without it, their scores are.
    pub root: Option<Root>,
    /// The limits beyond which an input is refused, if there are any.
    pub refusal: Option<Refusal>,
    /// The measure and the limit of bundles of earlier versions.
    pub novelty: Option<Novelty>,
}

impl Scorer {
    /// Reads the payload at `range` of `map`, for features of `dim` values.
    ///
    /// # Errors
    /// If a tensor is missing, or shapes, tasks or the feature's width do not agree.
    pub fn load(kind: SelectorKind, map: Mapped, range: Range<usize>, n_tasks: usize, dim: usize) -> Result<Self> {
        let base = map.as_ptr() as usize;
        let tensors = Tensors::parse(&map[range.clone()])?;
        let need = |name: &str| {
            tensors.get(name).ok_or_else(|| Error::new(Code::Missing, format!("the selector lacks tensor {name:?}")))
        };
        let hidden = Hidden::load(&map[range.clone()], dim)?;
        let width = hidden.as_ref().map_or(dim, Hidden::size);
        let (weight, bias) = (need(WEIGHT)?, need(BIAS)?);
        let classes = bias.shape.iter().product::<usize>();
        if weight.shape != [classes, width] || bias.shape != [classes] {
            return Err(Error::new(
                Code::Shape,
                format!(
                    "selector weight {:?} and bias {:?} do not fit a feature of {width} values",
                    weight.shape, bias.shape
                ),
            ));
        }
        let ty = match weight.dtype {
            Dtype::F32 => QuantType::F32,
            Dtype::F16 => QuantType::F16,
            other => return Err(Error::new(Code::Type, format!("selector weight of dtype {other:?}"))),
        };
        let class_task: Vec<usize> = match kind {
            SelectorKind::Conpet => (0..classes).collect(),
            _ => {
                let t = need(CLASS_TASK)?;
                if t.shape != [classes] || t.dtype != Dtype::I32 {
                    return Err(Error::new(Code::Shape, format!("class_task of {:?} {:?}", t.dtype, t.shape)));
                }
                t.to_i32().iter().map(|v| usize::try_from(*v).unwrap_or(usize::MAX)).collect()
            }
        };
        if let Some(bad) = class_task.iter().find(|t| **t >= n_tasks) {
            return Err(Error::new(
                Code::Value,
                format!("a class belongs to task {bad}, but there are {n_tasks} tasks"),
            ));
        }
        // A head's rows are found by their task's first class: classes in another order would be mistaken.
        if let Some(i) = (1..classes).find(|i| class_task[i - 1] > class_task[*i]) {
            return Err(Error::new(
                Code::Value,
                format!("class {i} belongs to task {}, the one before to task {}", class_task[i], class_task[i - 1]),
            )
            .hint("classes are in the order of the bundle's tasks; this selector was made for another order"));
        }
        let start = weight.data.as_ptr() as usize - base;
        let (weight, bias) = (start..start + weight.data.len(), bias.to_f32());
        let refusal = Refusal::load(&map[range.clone()], n_tasks)?;
        let fast = Fast::load(&map[range.clone()])?;
        let root = Root::load(&map, range.clone(), classes, dim)?;
        let novelty = match &root {
            Some(_) => None,
            None => Novelty::load(&map[range.clone()], classes)?,
        };
        let tables = Table::ALL.map(|t| Ngrams::load(t, &map, range.clone(), classes));
        let ngrams = tables.into_iter().filter_map(Result::transpose).collect::<Result<_>>()?;
        Ok(Self { weight, ty, dim, hidden, bias, class_task, ngrams, fast, root, refusal, novelty, map })
    }
}
