//! State that a method keeps from stage to stage outside the bundle: Fisher information, memory, alignment. It
//! is a file for each stage in the work folder, so that a stopped stage starts again from what the one before
//! it kept.

use super::Services;
use crate::fit::checkpoint::{checked, write};
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{Code, Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Shapes and values by name.
pub type Kept = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A tensor that is always written, so that a stage may keep nothing else.
const STAGE: &str = "stage";

impl Services<'_> {
    /// Keeps `what` for the stage after that of task `t`; deletes files that no stage will need.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, t: usize, what: &Kept) -> Result<()> {
        let mut w = TensorsWriter::new();
        for (name, (shape, v)) in what {
            w.add_f32(name, shape, v)?;
        }
        w.add_i32(STAGE, &[1], &[t as i32])?;
        write(&self.kept_file(t), &w.finish()?)?;
        if let Some(old) = t.checked_sub(2) {
            let _ = std::fs::remove_file(self.kept_file(old));
        }
        Ok(())
    }

    /// What the stage of task `t` kept.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn kept(&self, t: usize) -> Result<Kept> {
        let file = self.kept_file(t);
        let bytes = conpet_formats::fs::read(&file).map_err(|_| {
            Error::new(Code::Missing, "the state that the method kept from the stage before is missing")
                .in_file(&file)
                .hint("keep the work folder beside the bundle, or learn the stream from the start")
        })?;
        let t = Tensors::parse_unscanned(checked(&bytes, &file)?).map_err(|e| e.in_file(&file))?;
        let found = t
            .names()
            .filter(|n| !n.starts_with("__pad") && *n != STAGE)
            .filter_map(|n| Some((n.to_owned(), t.get(n)?)));
        Ok(found.map(|(n, x)| (n, (x.shape.clone(), x.to_f32()))).collect())
    }

    fn kept_file(&self, t: usize) -> PathBuf {
        self.work.join(format!("method-{}.state", t + 1))
    }
}
