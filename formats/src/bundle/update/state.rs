//! The small file beside a bundle, `BUNDLE.state`: a stage on trial, stages that failed, and the floor.
//!
//! It is written whole, by renaming. Nothing needs it to run: if it is lost, empty or garbage, the bundle's current
//! stage is served, and no trial and no floor are in force.

use crate::bundle::Bundle;
use crate::fs::open_mapped;
use crate::{Code, Error, Result, fs};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Starts that a stage on trial has.
pub const TRIES: u32 = 3;
/// Failed stages that are remembered; older ones cannot be applied again anyway once others follow.
const BAD_CAP: usize = 16;
/// Longest state file that is read, in bytes; it has some hundred.
const CAP: u64 = 64 << 10;

/// What is kept beside a bundle. Unknown fields are left out when it is written again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Commits that were tried and not marked good, by digest, the newest last.
    pub bad: Vec<String>,
    /// No stage with a number below this is applied, returned to or served.
    pub floor: u64,
    /// The stage on trial, if there is one.
    pub trial: Option<Trial>,
}

/// A stage on trial. It is in force while its commit is the bundle's current one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The stage's number.
    pub stage: u64,
    /// Digest of its commit, lower-case hex.
    pub commit: String,
    /// The stage to go back to.
    pub good_stage: u64,
    /// Digest of that stage's commit.
    pub good_commit: String,
    /// Starts left before going back.
    pub tries_left: u32,
}

impl State {
    /// Where the state of a bundle lies.
    pub fn path(bundle: &Path) -> PathBuf {
        let mut name = bundle.as_os_str().to_owned();
        name.push(".state");
        name.into()
    }

    /// The state of a bundle, and the default where there is none. If it cannot be read or does not match its digest,
    /// the default and the error.
    pub fn load(bundle: &Path) -> (Self, Option<Error>) {
        let path = Self::path(bundle);
        match Self::read(&path) {
            Ok(state) => (state.unwrap_or_default(), None),
            Err(e) => (Self::default(), Some(e.in_file(&path))),
        }
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        let meta = match path.symlink_metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io("read", e))?,
        };
        if !meta.is_file() || meta.len() > CAP {
            return Err(damaged("is not a small regular file"));
        }
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|e| Error::io("read", e))?;
        file.take(CAP).read_to_string(&mut text).map_err(|_| damaged("is not text"))?;
        let (json, digest) = text.split_once('\n').ok_or_else(|| damaged("is cut short"))?;
        if digest.trim_end() != blake3::hash(json.as_bytes()).to_hex().as_str() {
            return Err(damaged("does not match its digest"));
        }
        serde_json::from_str(json).map(Some).map_err(|e| damaged(&format!("cannot be understood: {e}")))
    }

    /// Writes it beside the bundle, durably, and whole or not at all.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        let json =
            serde_json::to_string(self).map_err(|e| Error::new(Code::Value, format!("cannot serialise: {e}")))?;
        let text = format!("{json}\n{}\n", blake3::hash(json.as_bytes()).to_hex());
        fs::write_atomic(&Self::path(bundle), |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", e)))
    }

    /// The trial, if it is of this stage.
    pub fn in_force(&self, bundle: &Bundle) -> Option<&Trial> {
        self.trial.as_ref().filter(|t| t.commit == bundle.digest())
    }

    /// Refuses a stage below the floor.
    ///
    /// # Errors
    /// `E_ROLLBACK`.
    pub fn allows(&self, stage: u64) -> Result<()> {
        if stage >= self.floor {
            return Ok(());
        }
        Err(Error::new(Code::Rollback, format!("stage {stage} is below the floor, {}", self.floor))
            .hint("use a newer stage; an operator who wants this one all the same removes the .state file"))
    }

    /// Puts a commit on the list of those that failed.
    pub(super) fn condemn(&mut self, commit: &str) {
        self.forgive(commit);
        self.bad.push(commit.to_owned());
        let excess = self.bad.len().saturating_sub(BAD_CAP);
        self.bad.drain(..excess);
    }

    /// Takes a commit off the list of those that failed; true if it was on it.
    pub(super) fn forgive(&mut self, commit: &str) -> bool {
        let before = self.bad.len();
        self.bad.retain(|b| b != commit);
        self.bad.len() != before
    }
}

fn damaged(what: &str) -> Error {
    Error::new(Code::Digest, format!("the state {what}; it is ignored"))
        .hint("no trial and no floor is in force; remove the file, or write a new one with `conpet-inspect mark-good`")
}

/// What [`mark_good`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// The current stage.
    pub stage: u64,
    /// True if it was on trial.
    pub was_trial: bool,
    /// The floor now.
    pub floor: u64,
}

/// Ends the trial of the current stage, which has proven itself. With `floor`, earlier stages are refused from now on.
///
/// # Errors
/// If the bundle cannot be opened, another process writes, or the state cannot be written.
pub fn mark_good(path: &Path, floor: bool) -> Result<Marked> {
    let (_held, map) = open_mapped(path, true)?;
    let bundle = Bundle::open_map(map, path).map_err(|e| e.in_file(path))?;
    let (before, _) = State::load(path);
    let mut state = before.clone();
    let was_trial = state.in_force(&bundle).is_some();
    if was_trial {
        state.trial = None;
    }
    if floor {
        state.floor = state.floor.max(bundle.stage());
    }
    if state != before {
        state.save(path)?;
    }
    Ok(Marked { stage: bundle.stage(), was_trial, floor: state.floor })
}
