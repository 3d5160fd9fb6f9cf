//! Bundles to damage, and what it means that one is whole.

use conpet_formats::bundle::update::{ApplyOptions, Delta, apply, mark_good, write_delta};
use conpet_formats::bundle::{Bundle, CompactOptions, Draft, compact, recover, rollback, verify};
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::{Error, Result, tiny};
use std::path::{Path, PathBuf};

/// Bytes before the first section: the superblocks.
pub(crate) const FIRST: usize = 8192;

/// A stage with one more task, whose head fills about `pages` pages that are all different.
fn with_task(d: Draft, pages: usize) -> Draft {
    let (id, stage) = (d.manifest.tasks.len(), d.stage());
    let values: Vec<f32> = (0..1024 * pages).map(|i| (stage as f32) + (i % 4093) as f32 / 4096.0).collect();
    let feature = FeatureSpec::single(1, Pool::Mean, StateNorm::Output);
    let name = format!("task {id} of stage {stage}");
    tiny::with_task(d, &name, &["no", "yes"], feature, &values, &[0.0, 1.0]).unwrap()
}

/// Makes a bundle of one stage.
pub(crate) fn create(path: &Path, pages: usize) -> Result<()> {
    with_task(Draft::new(tiny::no_base(), "dynamic", 1), pages).create(path)
}

/// Appends a stage to the one in force.
pub(crate) fn append(path: &Path, pages: usize) -> Result<()> {
    with_task(Draft::from_bundle(&Bundle::open(path)?), pages).append(path)
}

/// What changes a bundle or the state beside it, in the order in which the tests go through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Create,
    Append,
    Rollback,
    Apply,
    ApplyOnTrial,
    MarkGood,
    Compact,
    Recover,
}

impl Protocol {
    pub(crate) const ALL: [Self; 8] = [
        Self::Create,
        Self::Append,
        Self::Rollback,
        Self::Apply,
        Self::ApplyOnTrial,
        Self::MarkGood,
        Self::Compact,
        Self::Recover,
    ];

    /// Makes a file that was not there.
    pub(crate) fn creates(self) -> bool {
        matches!(self, Self::Create | Self::Recover)
    }

    /// What stands before it: nothing, or a bundle of two stages; and in [`beside`] what else it needs.
    pub(crate) fn prepare(self, path: &Path, pages: usize) {
        if self == Self::Create {
            return;
        }
        let kit = beside(path);
        std::fs::create_dir_all(&kit).unwrap();
        create(path, 1).unwrap();
        append(path, pages).unwrap();
        match self {
            Self::Apply | Self::ApplyOnTrial | Self::MarkGood => {
                let new = kit.join("new.cpb");
                std::fs::copy(path, &new).unwrap();
                append(&new, pages).unwrap();
                write_delta(path, &new, &kit.join("d.cpd")).unwrap();
                if self == Self::MarkGood {
                    Self::ApplyOnTrial.run(path, pages).unwrap();
                }
            }
            Self::Recover => {
                // Damaged, so that something is left out.
                let at = Bundle::open(path).unwrap().section_records()[0].offset as usize;
                let mut bytes = std::fs::read(path).unwrap();
                bytes[at + 200] ^= 1;
                std::fs::write(kit.join("damaged.cpb"), bytes).unwrap();
                std::fs::remove_file(path).unwrap();
            }
            _ => {}
        }
    }

    pub(crate) fn run(self, path: &Path, pages: usize) -> Result<()> {
        match self {
            Self::Create => create(path, pages),
            Self::Append => append(path, pages),
            Self::Rollback => rollback(path, 1),
            Self::Apply => apply_delta(path, &beside(path), false),
            Self::ApplyOnTrial => apply_delta(path, &beside(path), true),
            Self::MarkGood => mark_good(path, true).map(drop),
            Self::Compact => compact(path, CompactOptions::default()).map(drop),
            Self::Recover => recover(&beside(path).join("damaged.cpb"), path, None).map(drop),
        }
    }
}

/// The folder of what a protocol needs beside the bundle: deltas, damaged files.
pub(crate) fn beside(path: &Path) -> PathBuf {
    path.with_extension("kit")
}

/// Applies the delta of `kit`.
pub(crate) fn apply_delta(path: &Path, kit: &Path, trial: bool) -> Result<()> {
    apply(path, &Delta::open(&kit.join("d.cpd"))?, ApplyOptions { trial, trust: None }).map(drop)
}

/// Which stage a file holds, told by its commit's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) stage: u64,
    pub(crate) digest: String,
}

/// The stage of an opened bundle, after reading all of it.
pub(crate) fn whole(b: &Bundle) -> Result<Stage> {
    for i in 0..b.section_records().len() {
        b.section(i as u32)?;
    }
    b.history()?;
    Ok(Stage { stage: b.stage(), digest: b.digest() })
}

/// The stage in force in a file, all of it read.
pub(crate) fn stage_of(path: &Path) -> Result<Stage> {
    whole(&Bundle::open(path)?)
}

/// As [`stage_of`], for bytes.
pub(crate) fn stage_in(bytes: &[u8]) -> Result<Stage> {
    whole(&Bundle::from_bytes(bytes.to_vec(), Path::new("image.cpb"))?)
}

/// Nothing is damaged, to the last byte (an unfinished append after the end is no damage).
pub(crate) fn assert_sound(path: &Path, context: &str) {
    let found = verify(path, true).unwrap();
    assert!(found.iter().all(|f| !f.damage), "{context}: {found:?}");
}

/// An error must say which file, and what to do.
pub(crate) fn assert_clear(e: &Error, path: &Path, context: &str) {
    let folder = path.parent().unwrap();
    // The bundle, the state beside it, or the folder of both.
    let named = e.file().is_some_and(|f| Path::new(f).starts_with(folder));
    assert!(named && e.exit_code() == 4 && !e.remedy().is_empty(), "{context}: {e}");
}
