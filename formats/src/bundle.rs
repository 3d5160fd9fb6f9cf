//! `.cpb`: the append-only bundle, specified byte by byte in `docs/bundle-format.md`.
//!
//! Two mirrored superblocks, page-aligned immutable sections with BLAKE3 digests, one
//! hash-chained commit for each stage. Learning one more task only appends: old bytes never
//! change, so a reader that has mapped a stage keeps it, and forgetting cannot enter through the
//! container.

mod canonical;
mod commit;
mod compact;
pub mod manifest;
mod reader;
mod recover;
mod regions;
mod rewrite;
mod signature;
mod superblock;
mod survey;
pub mod update;
mod validate;
mod verify;
mod writer;

pub use commit::{SectionKind, SectionRecord};
pub use compact::{CompactOptions, Compacted, compact};
pub use reader::{Bundle, StageInfo};
pub use recover::{Recovered, recover};
pub use regions::{Region, RegionKind, Slot};
pub use signature::{TRUST, Trust, sign, signing_text};
pub use survey::{FoundStage, Survey};
pub use update::rollback;
pub use validate::check_manifest;
pub use verify::{Finding, verify, verify_bytes};
pub use writer::Draft;

/// Alignment of sections and commits, in bytes.
pub const PAGE: u64 = 4096;
/// Where sections begin, after the two superblocks.
pub const FIRST: u64 = 2 * PAGE;
/// Longest commit, in bytes.
pub const COMMIT_CAP: u64 = 8 << 20;
/// Longest manifest, in bytes.
pub const MANIFEST_CAP: u64 = 4 << 20;
/// Most commas in a manifest. They bound the number of its values, of which even the shortest then take less than
/// 64 MiB of memory.
pub const COMMA_CAP: usize = 1 << 19;
/// Most sections in one stage.
pub const SECTION_CAP: u64 = 16_384;

#[cfg(test)]
mod tests;
