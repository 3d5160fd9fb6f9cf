//! Resuming a stopped run: what it was begun with, how far it came, and what it cost.
//!
//! The work folder holds `settings.toml`, `rows.json` (the digest of each task), `usage.json`, and
//! `scores-N.json` for each stage that was scored.

use super::Run;
use crate::config::Config;
use crate::metrics::StageScores;
use crate::services::usage::Usage;
use crate::settings::Group;
use crate::stream::Task;
use conpet_formats::bundle::Bundle;
use conpet_formats::fingerprint::file_digest;
use conpet_formats::{Code, Error, Result, fs};
use conpet_runtime::memory::Memory;
use std::collections::BTreeMap;
use std::path::Path;

impl Run<'_> {
    /// Number of stages already in the bundle.
    pub(super) fn resume_point(&mut self, resume: bool) -> Result<usize> {
        let settings = self.work.join("settings.toml");
        let begun = self.out.exists();
        if resume {
            same_settings(&settings, &self.config)?;
            self.services.count_from(self.earlier_usage());
        } else if begun {
            return Err(Error::new(Code::Duplicate, "the bundle already exists")
                .in_file(&self.out)
                .hint("continue it with --resume, add a task with conpet-train add, or choose another name"));
        } else {
            // Checkpoints of an earlier run are only valid for its own settings.
            let old = std::fs::read_dir(&self.work).map_err(|e| Error::io("list", e).in_file(&self.work))?;
            old.flatten().for_each(|e| drop(std::fs::remove_file(e.path())));
        }
        same_rows(&self.work.join("rows.json"), self.services.tasks())?;
        let text = self.config.toml()?;
        fs::write_atomic(&settings, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", e)))?;
        if !begun {
            return Ok(0);
        }
        let bundle = Bundle::open(&self.out)?;
        let (m, tasks) = (bundle.manifest(), self.services.tasks());
        let wrong = m.tasks.iter().zip(tasks).find(|(a, b)| a.name != b.name || a.labels != b.labels);
        if m.method != self.method.name || m.tasks.len() > tasks.len() || wrong.is_some() {
            return Err(Error::new(Code::Value, "the bundle holds another stream or method")
                .in_file(&self.out)
                .hint("resume with the same stream and settings"));
        }
        let done = if self.method.traits.at_once { 1 } else { m.tasks.len() };
        self.services.go_on_from(bundle);
        Ok(done)
    }

    /// The cost of earlier processes of this run, so that the report of a resumed run includes them.
    fn earlier_usage(&self) -> Usage {
        let kept = std::fs::read(self.work.join("usage.json")).unwrap_or_default();
        serde_json::from_slice(&kept).unwrap_or_default()
    }

    pub(super) fn keep_usage(&mut self) -> Result<()> {
        let mut usage = self.services.usage().clone();
        usage.peak_rss = usage.peak_rss.max(Memory::now().peak);
        write_json(&self.work.join("usage.json"), &usage)?;
        self.services.count_from(usage);
        Ok(())
    }
}

fn write_json(file: &Path, what: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_vec(what).map_err(|e| Error::new(Code::Value, e.to_string()))?;
    fs::write_atomic(file, |w| w.write_all(&json).map_err(|e| Error::io("write", e)))
}

/// Fails if the settings differ from those in `file`; names the first that differs.
fn same_settings(file: &Path, config: &Config) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(file) else { return Ok(()) };
    let old = Config::parse(&text).map_err(|e| e.in_file(file))?;
    let Some(key) = Config::keys().into_iter().find(|k| old.get(k) != config.get(k)) else { return Ok(()) };
    let [now, then] = [config, &old].map(|c| c.get(key).unwrap_or_default());
    Err(Error::new(Code::Value, format!("this run was begun with other settings: {key} was {then}, and is {now}"))
        .in_file(file)
        .hint("resume with the same command"))
}

/// Fails if tasks differ from those recorded in `file` when the run was begun, naming the first that differs;
/// records new ones.
pub(super) fn same_rows(file: &Path, tasks: &[Task]) -> Result<()> {
    let mut known: BTreeMap<String, String> = match std::fs::read(file) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|e| Error::new(Code::Value, e.to_string()).in_file(file))?
        }
        Err(_) => BTreeMap::new(),
    };
    for task in tasks {
        let digest = identity(task);
        if known.get(&task.name).is_some_and(|old| *old != digest) {
            let what = format!("task {:?} has other rows or labels than when this run was begun", task.name);
            return Err(Error::new(Code::Digest, what)
                .in_file(file)
                .hint("give it the rows it was begun with, or remove the folder (and the bundle) and begin anew"));
        }
        known.insert(task.name.clone(), digest);
    }
    write_json(file, &known)
}

/// A digest of everything that is learned from a task: its rows' files, labels, template and longest answer.
fn identity(task: &Task) -> String {
    let parts = format!("{} {:?} {:?} {}", task.digest, task.labels, task.template, task.max_answer);
    file_digest(parts.as_bytes())
}

/// Scores kept by an earlier process, if they are of the first `seen` tasks: earlier releases scored methods
/// that learn all tasks at once on all tasks together.
pub(super) fn kept_scores(file: &Path, seen: usize) -> Option<StageScores> {
    let scores: StageScores = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    scores.rows.iter().skip(seen).all(|n| *n == 0).then_some(scores)
}
