//! Joins reports of several runs.

use super::origin::without_folders;
use super::{MethodReport, Origin, Report};
use conpet_formats::{Code, Error, Result, fs};
use std::path::PathBuf;

/// Joins reports of runs on one stream into one.
///
/// # Errors
/// If a file is not a report, or the runs are on different tasks.
pub fn joined(paths: &[PathBuf]) -> Result<Report> {
    let mut all: Vec<Report> = Vec::new();
    for path in paths {
        let bytes = fs::read(path)?;
        all.push(serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(Code::Value, e.to_string()).in_file(path).hint("give report.json files written by conpet-train")
        })?);
    }
    let sorted = |m: &MethodReport| {
        let mut names = m.tasks.clone();
        names.sort();
        names
    };
    let tasks: Vec<_> = all.iter().flat_map(|r| &r.methods).map(sorted).collect();
    for (r, path) in all.iter().zip(paths) {
        if r.methods.iter().any(|m| sorted(m) != tasks[0]) {
            return Err(Error::new(Code::Value, "the reports are of different streams")
                .in_file(path)
                .hint("join runs on the same tasks, in any order"));
        }
    }
    let commands: Vec<String> = all.iter().map(|r| without_folders(&r.origin.command)).collect();
    let methods = all.iter().flat_map(|r| r.methods.clone()).collect();
    let first = all.swap_remove(0);
    Ok(Report::new(Origin { command: commands.join(" ; "), ..first.origin }).with(methods))
}
