//! Opens the stage to serve from. This is the one place where `conpet-run` may write, and only during a trial.

use super::state::{State, Trial};
use crate::bundle::Bundle;
use crate::bundle::signature::{Trust, not_downgraded};
use crate::bundle::writer::point_to;
use crate::fs::open_mapped;
use crate::{Code, Error, Result};
use std::path::Path;
use std::time::Duration;

/// How often to ask for a lock that another start holds for a moment, and how long to wait between two times.
const PATIENCE: (u32, Duration) = (10, Duration::from_millis(20));

/// Opens the stage to serve from: `stage`, or the current one. A start of a stage on trial is counted
/// before anything is loaded; when all are used up without `mark_good`, the good stage becomes
/// current again.
///
/// With `trust` the stage must be signed by one of its keys; without, an unsigned stage after a signed one
/// is served only if its number is given.
///
/// # Errors
/// If the stage cannot be opened, is below the floor, or is not signed as it must be.
pub fn start(path: &Path, stage: Option<u64>, trust: Option<&Trust>) -> Result<Bundle> {
    let (state, damaged) = State::load(path);
    let mut bundle = match stage {
        Some(g) => Bundle::open_stage(path, g)?,
        None => {
            let now = Bundle::open(path)?;
            match state.in_force(&now) {
                None => now,
                Some(trial) => on_trial(path, trial.clone(), now)?,
            }
        }
    };
    // The floor stays as it was read: going back to the good stage does not lower it.
    state.allows(bundle.stage()).map_err(|e| e.in_file(path))?;
    match (trust, stage) {
        (Some(trust), _) => drop(trust.check(&bundle)?),
        (None, None) => not_downgraded(&bundle)?,
        (None, Some(_)) => {}
    }
    bundle.warnings.extend(damaged.map(|e| e.brief()));
    Ok(bundle)
}

/// Counts this start of a stage on trial, or ends the trial.
fn on_trial(path: &Path, trial: Trial, now: Bundle) -> Result<Bundle> {
    match count(path) {
        Ok(Counted::Started(t)) => {
            let nth = super::TRIES.saturating_sub(t.tries_left);
            let text = format!(
                "stage {} is on trial, start {nth} of {}; `conpet-inspect mark-good` keeps it, else stage {} comes back",
                t.stage,
                super::TRIES,
                t.good_stage
            );
            Ok(with_warning(now, text))
        }
        Ok(Counted::GaveUp(t)) => {
            let text = format!(
                "stage {} was not marked good in {} starts: stage {} is current again",
                t.stage,
                super::TRIES,
                t.good_stage
            );
            Ok(with_warning(Bundle::open(path)?, text))
        }
        Ok(Counted::Over) => Bundle::open(path),
        Err(e) if e.code() == Code::Locked => {
            Ok(with_warning(now, format!("{}; this start of stage {} is not counted", e.brief(), trial.stage)))
        }
        // A trial that cannot be counted might never end; the good stage needs no counting.
        Err(e) => {
            let good = good_stage(path, &trial)?;
            let text = format!(
                "the trial of stage {} cannot be counted ({}): stage {} is used instead",
                trial.stage,
                e.brief(),
                trial.good_stage
            );
            Ok(with_warning(good, text))
        }
    }
}

/// What became of a trial when its next start was counted.
enum Counted {
    /// It goes on, with one start less.
    Started(Trial),
    /// Its starts are used up, and the good stage is current again.
    GaveUp(Trial),
    /// Another process has ended the trial meanwhile.
    Over,
}

/// Counts a start under the file's lock.
fn count(path: &Path) -> Result<Counted> {
    let (file, map) = patiently(path)?;
    let now = Bundle::open_map(map.clone(), path)?;
    let (mut state, _) = State::load(path);
    let Some(mut trial) = state.in_force(&now).cloned() else { return Ok(Counted::Over) };
    if trial.tries_left > 0 {
        trial.tries_left -= 1;
        state.trial = Some(trial.clone());
        state.save(path)?;
        return Ok(Counted::Started(trial));
    }
    good_stage(path, &trial)?;
    // Whatever moment the power fails at, the next start comes here again or finds it done.
    state.condemn(&trial.commit);
    state.save(path)?;
    point_to(&file, &map, trial.good_stage, path)?;
    state.trial = None;
    state.save(path)?;
    Ok(Counted::GaveUp(trial))
}

/// The stage to go back to, which must be the very one that was current before.
fn good_stage(path: &Path, trial: &Trial) -> Result<Bundle> {
    let good = Bundle::open_stage(path, trial.good_stage)?;
    if good.digest() == trial.good_commit {
        return Ok(good);
    }
    Err(Error::new(Code::Parent, format!("stage {} is not the one that was good", trial.good_stage))
        .in_file(path)
        .hint("remove the .state file to use the current stage, or restore the bundle from a copy"))
}

/// Opens the file for writing, and waits a little where another start holds its lock.
fn patiently(path: &Path) -> Result<(crate::fs::Locked, crate::mmap::Mapped)> {
    for _ in 1..PATIENCE.0 {
        match open_mapped(path, true) {
            Err(e) if e.code() == Code::Locked => std::thread::sleep(PATIENCE.1),
            other => return other,
        }
    }
    open_mapped(path, true)
}

fn with_warning(mut bundle: Bundle, text: String) -> Bundle {
    bundle.warnings.push(text);
    bundle
}
