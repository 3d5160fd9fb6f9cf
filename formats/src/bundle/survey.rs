//! What can still be read of a damaged bundle: stages found by looking at every page.
//!
//! A commit carries the digests of its own table and manifest, so a stage can be trusted without
//! any superblock. Only its place in the chain is then unproven, which is why this is for
//! inspection and rescue, never for running.

use super::commit::{Commit, SectionRecord};
use super::manifest::Manifest;
use super::reader::{check_section, commit_len, damaged, map};
use super::{FIRST, PAGE, canonical, validate};
use crate::mmap::Mapped;
use crate::{Code, Error, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file read without trusting its superblocks.
#[derive(Debug)]
pub struct Survey {
    path: PathBuf,
    map: Mapped,
    stages: Vec<FoundStage>,
    /// Sections that were asked for (offset, length, digest), and whether they are whole: stages share most of theirs.
    checked: RefCell<BTreeMap<(u64, u64, [u8; 32]), bool>>,
}

/// A stage whose commit is whole.
#[derive(Debug)]
pub struct FoundStage {
    /// Its number.
    pub stage: u64,
    /// Where its commit lies, in bytes.
    pub offset: u64,
    /// Where its parent's commit lies; 0 for the first stage.
    pub parent_offset: u64,
    /// Where the commit before it in the file lies, of whatever branch; 0 for the first.
    pub previous_offset: u64,
    /// BLAKE3 of its commit, lower-case hex.
    pub digest: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// True if it carries a signature, trusted or not.
    pub signed: bool,
    /// Its sections; each is checked when asked for.
    pub sections: Vec<SectionRecord>,
}

impl Survey {
    /// Looks for whole commits at every page, in file order.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no whole stage.
    pub fn open(path: &Path) -> Result<Self> {
        let found = Self::look(path)?;
        if found.stages.is_empty() {
            return Err(Error::new(Code::Missing, "no whole stage is left in this file")
                .in_file(path)
                .hint("restore the file from a copy"));
        }
        Ok(found)
    }

    /// As [`Survey::open`], of a file that may hold no whole stage.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn look(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let mut stages = Vec::new();
        let mut at = FIRST;
        while at + PAGE <= map.len() as u64 {
            if let Some(s) = stage(&map, at) {
                stages.push(s);
            }
            at += PAGE;
        }
        Ok(Self { path: path.to_owned(), map, stages, checked: RefCell::default() })
    }

    /// All bytes of the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The stages found, in file order.
    pub fn stages(&self) -> &[FoundStage] {
        &self.stages
    }

    /// The newest stage with this number, or the newest of all.
    pub fn stage(&self, number: Option<u64>) -> Option<&FoundStage> {
        let mut found = self.stages.iter().filter(|s| number.is_none_or(|g| s.stage == g));
        found.next_back()
    }

    /// A section's bytes, their digest checked at the first call.
    ///
    /// # Errors
    /// `E_DIGEST` if they are damaged.
    pub fn section(&self, stage: &FoundStage, index: u32) -> Result<&[u8]> {
        let r = stage
            .sections
            .get(index as usize)
            .ok_or_else(|| Error::new(Code::Missing, format!("no section {index}")).in_file(&self.path))?;
        let mut checked = self.checked.borrow_mut();
        let check = || check_section(&self.map, index as usize, r).is_ok();
        if !*checked.entry((r.offset, r.len, r.hash)).or_insert_with(check) {
            return Err(damaged(index as usize, r).in_file(&self.path));
        }
        // Decoding proved that sections lie before their commit, and the commit in the file.
        Ok(&self.map[r.offset as usize..(r.offset + r.len) as usize])
    }
}

/// The stage whose commit begins at `at`, if it is whole.
fn stage(map: &[u8], at: u64) -> Option<FoundStage> {
    let len = commit_len(map, at).ok()?;
    let bytes = map.get(at as usize..at as usize + len as usize)?;
    let commit = Commit::decode(bytes, at).ok()?;
    let manifest = canonical::read(&commit.manifest).ok()?;
    validate::check(&manifest, &commit.sections).ok()?;
    (manifest.stage == commit.stage).then(|| FoundStage {
        stage: commit.stage,
        offset: at,
        parent_offset: commit.parent_off,
        previous_offset: commit.previous_off,
        digest: blake3::hash(bytes).to_hex().to_string(),
        manifest,
        signed: !commit.signature.is_empty(),
        sections: commit.sections,
    })
}
