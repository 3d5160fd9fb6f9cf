//! Memory of this process, as Linux counts it.

use serde::Serialize;

/// Resident memory, in bytes; 0 where the system does not report it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Private memory: heap, stacks, work space.
    pub anonymous: u64,
    /// Mapped files: weights that the system may drop and read again.
    pub file: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

impl Memory {
    /// Reads `/proc/self/status`.
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |key: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(key))
                .and_then(|v| v.trim().trim_end_matches(" kB").trim().parse::<u64>().ok())
                .map_or(0, |k| k * 1024)
        };
        Self { anonymous: kib("RssAnon:"), file: kib("RssFile:"), peak: kib("VmHWM:") }
    }
}
