//! What lies at which byte of a bundle, whole or damaged: a map to read it by in a hex editor.

use super::commit::{Commit, MAGIC};
use super::reader::{newest, slot};
use super::survey::Survey;
use super::{FIRST, PAGE};
use crate::Error;
use std::collections::BTreeMap;

/// A run of bytes, and what it is.
#[derive(Debug)]
pub struct Region {
    /// Where it begins in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: RegionKind,
}

/// What a run of bytes is. A `stage` is an index into [`Survey::stages`].
#[derive(Debug)]
pub enum RegionKind {
    /// A superblock: A or B, and what it names, or what is wrong with it.
    Superblock(char, Result<Slot, Error>),
    /// The header and the section table of a whole commit.
    Commit {
        /// Index of the stage.
        stage: usize,
    },
    /// The manifest of a whole commit.
    Manifest {
        /// Index of the stage.
        stage: usize,
    },
    /// The signature of a whole commit.
    Signature {
        /// Index of the stage.
        stage: usize,
    },
    /// A section.
    Section {
        /// The first stage that lists it.
        stage: usize,
        /// Its index there.
        index: u32,
        /// True if its digest matches.
        whole: bool,
    },
    /// Begins like a commit and is none, or not whole.
    BrokenCommit,
    /// Zeros up to the next page.
    Padding,
    /// Whole pages of zeros that belong to nothing.
    Zeros,
    /// Other bytes that belong to nothing.
    Unreachable,
}

/// RegionKind a whole superblock names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Changes so far.
    pub sequence: u64,
    /// Where the current commit lies.
    pub commit: u64,
    /// How far the file has ever grown.
    pub end: u64,
}

impl Survey {
    /// The whole file, byte for byte, in order. What lies behind a superblock's `end` is an unfinished append.
    pub fn regions(&self) -> Vec<Region> {
        let file = self.bytes();
        let mut map = BTreeMap::new();
        let mut ends = Vec::new();
        let mut heads = Vec::new();
        for (name, at) in [('A', 0), ('B', PAGE)] {
            let says = slot(file, at).map(|s| Slot { sequence: s.seq, commit: s.commit_off, end: s.end });
            ends.extend(says.as_ref().ok().map(|s| s.end));
            heads.extend(says.as_ref().ok().map(|s| s.commit));
            let len = PAGE.min((file.len() as u64).saturating_sub(at));
            claim(&mut map, at, len, RegionKind::Superblock(name, says));
        }
        heads.extend(ends.iter().filter_map(|end| newest(file, *end).ok()));
        // Commits that others name come before those that only look like it, such as a bundle within a section.
        let is_named = self.named(heads);
        let (named, loose): (Vec<usize>, Vec<usize>) = (0..is_named.len()).partition(|i| is_named[*i]);
        for stage in named.into_iter().chain(loose) {
            self.claim_stage(&mut map, stage);
        }
        fill(file, map, &ends)
    }

    /// For each stage, whether it can be reached from a commit at one of these places.
    fn named(&self, mut heads: Vec<u64>) -> Vec<bool> {
        let mut named = vec![false; self.stages().len()];
        while let Some(at) = heads.pop() {
            if let Ok(i) = self.stages().binary_search_by_key(&at, |s| s.offset)
                && !std::mem::replace(&mut named[i], true)
            {
                heads.extend([self.stages()[i].parent_offset, self.stages()[i].previous_offset]);
            }
        }
        named
    }

    fn claim_stage(&self, map: &mut BTreeMap<u64, Region>, stage: usize) {
        let s = &self.stages()[stage];
        let Some([head, manifest, signature]) = Commit::declared(&self.bytes()[s.offset as usize..]) else { return };
        claim(map, s.offset, head, RegionKind::Commit { stage });
        claim(map, s.offset + head, manifest, RegionKind::Manifest { stage });
        claim(map, s.offset + head + manifest, signature, RegionKind::Signature { stage });
        for (index, r) in (0..).zip(&s.sections) {
            if free(map, r.offset, r.len) {
                let whole = self.section(s, index).is_ok();
                claim(map, r.offset, r.len, RegionKind::Section { stage, index, whole });
            }
        }
    }
}

/// True if nothing is known to lie in this range yet.
fn free(map: &BTreeMap<u64, Region>, offset: u64, len: u64) -> bool {
    map.range(..offset + len).next_back().is_none_or(|(_, r)| r.offset + r.len <= offset)
}

fn claim(map: &mut BTreeMap<u64, Region>, offset: u64, len: u64, kind: RegionKind) {
    if len > 0 && free(map, offset, len) {
        map.insert(offset, Region { offset, len, kind });
    }
}

/// Adds the regions that lie between the known ones.
fn fill(file: &[u8], map: BTreeMap<u64, Region>, ends: &[u64]) -> Vec<Region> {
    let mut out: Vec<Region> = Vec::with_capacity(2 * map.len());
    let mut at = 0;
    let last = Region { offset: file.len() as u64, len: 0, kind: RegionKind::Padding };
    for region in map.into_values().chain([last]) {
        while at < region.offset {
            // A page, or what is left of one; and no further than an end.
            let mut stop = (at + 1).next_multiple_of(PAGE).min(region.offset);
            stop = ends.iter().copied().filter(|e| at < *e && *e < stop).min().unwrap_or(stop);
            let bytes = &file[at as usize..stop as usize];
            let kind = match bytes.iter().all(|b| *b == 0) {
                true if !at.is_multiple_of(PAGE) => RegionKind::Padding,
                true => RegionKind::Zeros,
                false if at >= FIRST && at.is_multiple_of(PAGE) && bytes.starts_with(&MAGIC) => {
                    RegionKind::BrokenCommit
                }
                false => RegionKind::Unreachable,
            };
            match out.last_mut() {
                Some(before) if !ends.contains(&at) && goes_on(&before.kind, &kind) => {
                    before.len = stop - before.offset
                }
                _ => out.push(Region { offset: at, len: stop - at, kind }),
            }
            at = stop;
        }
        at = at.max(region.offset + region.len);
        out.extend((region.len > 0).then_some(region));
    }
    out
}

/// Pages of one kind are one region; what follows a broken commit's first page may be the rest of it.
fn goes_on(before: &RegionKind, next: &RegionKind) -> bool {
    matches!(
        (before, next),
        (RegionKind::Zeros, RegionKind::Zeros)
            | (RegionKind::Unreachable | RegionKind::BrokenCommit, RegionKind::Unreachable)
    )
}
