//! The origin of a report: how, where and with what it was made.

use super::SCHEMA;
use conpet_runtime::engine::Engine;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a reader needs to reproduce the report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, if known.
    pub commit: Option<String>,
    /// The command line.
    pub command: String,
    /// The machine it ran on.
    pub machine: Machine,
    /// Name of the base.
    pub base: String,
}

impl Origin {
    /// The origin for this process, on this machine, with this base.
    pub fn here(e: &Engine) -> Self {
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            commit: std::env::var("CONPET_COMMIT").ok(),
            command: own_command(),
            machine: Machine::here(e.cpu().threads.n(), e.cpu().kernels.name()),
            base: format!("{} {}", e.base.spec.name, e.base.quant_name()),
        }
    }
}

/// This process's command line, as a report shows it.
pub(crate) fn own_command() -> String {
    without_folders(&conpet_program::without_token(std::env::args()).join(" "))
}

/// A command line with file names only, without folders, which would expose private paths.
pub(crate) fn without_folders(command: &str) -> String {
    let short = |w: &str| match Path::new(w).file_name() {
        Some(name) if w.starts_with('/') || w.starts_with("../") => name.to_string_lossy().into_owned(),
        _ => w.to_owned(),
    };
    command.split(' ').map(short).collect::<Vec<_>>().join(" ")
}

/// The machine that a report was made on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor.
    pub cpu: String,
    /// Worker threads.
    pub threads: usize,
    /// Main memory, in bytes.
    pub memory: u64,
    /// Instruction set in use.
    pub kernels: String,
}

impl Machine {
    /// This machine.
    pub fn here(threads: usize, kernels: &str) -> Self {
        let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu
            .lines()
            .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown", |x| x.1.trim())
            .to_owned();
        let memory = read("/proc/meminfo");
        let memory = memory
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .map_or(0, |k| k * 1024);
        Self { cpu, threads, memory, kernels: kernels.to_owned() }
    }
}
