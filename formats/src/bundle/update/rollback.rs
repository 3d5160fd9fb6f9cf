//! Going back to another stage, by its number.

use super::state::State;
use crate::bundle::writer::point_to;
use crate::{Result, fs};
use std::path::Path;

/// Makes another stage of the file the current one: an older one, or one that an earlier call left
/// behind. Nothing is erased, and no number is used twice.
///
/// # Errors
/// If there is no such stage, it is below the floor, or the file cannot be written.
pub fn rollback(path: &Path, stage: u64) -> Result<()> {
    let (file, map) = fs::open_mapped(path, true)?;
    let (mut state, _) = State::load(path);
    state.allows(stage).map_err(|e| e.in_file(path))?;
    let target = point_to(&file, &map, stage, path)?;
    // Whoever asks for a stage by its number wants it, whatever became of its trial.
    let trial = state.trial.take_if(|t| t.commit == target.digest()).is_some();
    if state.forgive(&target.digest()) || trial {
        state.save(path)?;
    }
    Ok(())
}
