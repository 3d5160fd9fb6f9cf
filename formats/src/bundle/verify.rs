//! Checks everything a bundle promises about its bytes.

use super::FIRST;
use super::commit::{SectionKind, SectionRecord};
use super::reader::{Bundle, check_section, commit_len, commits, current, map};
use crate::mmap::Mapped;
use crate::tensors::Tensors;
use crate::{Code, Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// A fault, or a remark, about a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule, e.g. `E_DIGEST`.
    pub code: &'static str,
    /// What is wrong, and where.
    pub text: String,
    /// False for remarks that lose nothing, e.g. an interrupted append.
    pub damage: bool,
}

impl From<&Error> for Finding {
    fn from(e: &Error) -> Self {
        Self { code: e.code().as_str(), text: e.to_string(), damage: true }
    }
}

/// Checks superblocks, the chain of commits, the manifest, every section's digest, and the strict
/// form of every payload. With `full`, also that every byte of `[8192, end)` is accounted for:
/// a section or commit of some stage, or zero padding.
///
/// # Errors
/// Only if the file cannot be read at all; what is wrong with it is in the findings.
pub fn verify(path: &Path, full: bool) -> Result<Vec<Finding>> {
    Ok(verify_map(&map(path)?, path, full))
}

/// [`verify`] of a bundle in memory; `path` is only a name for messages.
pub fn verify_bytes(bytes: Vec<u8>, path: &Path, full: bool) -> Vec<Finding> {
    verify_map(&Mapped::from_vec(bytes), path, full)
}

fn verify_map(map: &Mapped, path: &Path, full: bool) -> Vec<Finding> {
    let mut out = Vec::new();
    if let Ok((_, warnings)) = current(map) {
        out.extend(warnings.into_iter().map(|text| Finding { code: "W_SUPERBLOCK", text, damage: true }));
    }
    let bundle = match Bundle::open_map(map.clone(), path).map_err(|e| e.in_file(path)) {
        Ok(b) => b,
        Err(e) => {
            out.push(Finding::from(&e));
            return out;
        }
    };
    if let Err(e) = bundle.history() {
        out.push(Finding::from(&e));
    }
    let mut met = Sections::default();
    for (i, r) in bundle.section_records().iter().enumerate() {
        let payload = met.is_new(r).and_then(|_| check_section(map, i, r)).and_then(|()| {
            if matches!(r.kind, SectionKind::Other(_)) {
                return Ok(());
            }
            let bytes = &map[r.offset as usize..(r.offset + r.len) as usize];
            Tensors::parse(bytes).map(drop).map_err(|e| e.in_section(format!("section {i}")))
        });
        if let Err(e) = payload {
            out.push(Finding::from(&e.in_file(path)));
        }
    }
    if full && let Err(e) = account(map, &bundle, met) {
        out.push(Finding::from(&e.in_file(path)));
    }
    if (map.len() as u64) > bundle.end() {
        out.push(Finding {
            code: "W_TAIL",
            text: format!("{} bytes after the end: an unfinished append, ignored", map.len() as u64 - bundle.end()),
            damage: false,
        });
    }
    out
}

/// Accounts for every byte of `[FIRST, end)`: it belongs to a commit, to a section of one, or is
/// zero padding. Commits are followed from the newest back, so that stages left behind by a rollback
/// account for their bytes too, and a commit that nothing names does not. What was `met` is not hashed again.
fn account(map: &[u8], bundle: &Bundle, mut met: Sections) -> Result<()> {
    let end = bundle.end();
    let mut ranges = vec![(0, FIRST)];
    for (at, c) in commits(map, end)? {
        ranges.push((at, at + u64::from(commit_len(map, at)?)));
        for (i, s) in c.sections.iter().enumerate() {
            let place = |e: Error| e.in_section(format!("stage {}", c.stage));
            if met.is_new(s).map_err(place)? {
                check_section(map, i, s).map_err(place)?;
            }
            ranges.push((s.offset, s.offset + s.len));
        }
    }
    match first_stray(&map[..end as usize], 0, ranges) {
        Some(at) => Err(Error::new(Code::Reserved, "bytes that belong to nothing").at(at)),
        None => Ok(()),
    }
}

/// The sections that were met, so that each is hashed once: stages share most of theirs, and hashing one again for
/// every commit that lists it would take for ever. Different sections lie apart, so all of them together have no more
/// bytes than the file.
#[derive(Debug, Default)]
pub(super) struct Sections(BTreeMap<u64, (u64, [u8; 32])>);

impl Sections {
    /// Notes a section; true if it was not met before.
    ///
    /// # Errors
    /// `E_LAYOUT` if it lies over another one.
    pub(super) fn is_new(&mut self, r: &SectionRecord) -> Result<bool> {
        let stop = r.offset + r.len;
        // As none lie over one another, the last that begins before `stop` is the one that reaches furthest.
        match self.0.range(..stop).next_back() {
            Some((at, (end, hash))) if *end > r.offset => {
                let same = (*at, *end, *hash) == (r.offset, stop, r.hash);
                let other = || Error::new(Code::Layout, format!("two sections lie at {}", r.offset)).at(r.offset);
                if same { Ok(false) } else { Err(other()) }
            }
            _ => Ok(self.0.insert(r.offset, (stop, r.hash)).is_none()),
        }
    }
}

/// The first byte that is neither zero nor within one of the ranges (begin, end) of the file;
/// `bytes` begin at `base`.
pub(super) fn first_stray(bytes: &[u8], base: u64, mut ranges: Vec<(u64, u64)>) -> Option<u64> {
    ranges.sort_unstable();
    let (mut covered, end) = (base, base + bytes.len() as u64);
    for (start, stop) in ranges.into_iter().chain([(end, end)]) {
        if start > covered
            && let Some(i) = bytes[(covered - base) as usize..(start - base) as usize].iter().position(|b| *b != 0)
        {
            return Some(covered + i as u64);
        }
        covered = covered.max(stop);
    }
    None
}
