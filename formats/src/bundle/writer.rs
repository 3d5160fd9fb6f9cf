//! Creates bundles and appends stages. Old bytes never change, and at every instant the file
//! holds the old stage or the new one, whole.

use super::commit::{Commit, SectionKind, SectionRecord};
use super::manifest::{BaseRef, FORMAT, Manifest, SelectorEntry};
use super::reader::{Bundle, current, newest};
use super::rewrite::file_id;
use super::superblock::{MINOR, Superblock};
use super::{FIRST, PAGE, canonical, validate};
use crate::decimal::Decimal;
use crate::mmap::Mapped;
use crate::selector::SelectorKind;
use crate::{Code, Error, Result, fs};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// A stage being prepared: edit [`Draft::manifest`], add sections, then create or append.
///
/// # Example
/// A bundle whose first stage has one task, answered by the bare base, and a second stage after it:
///
/// ```
/// use conpet_formats::bundle::manifest::{TaskEntry, TaskKind};
/// use conpet_formats::bundle::{Bundle, Draft};
/// use conpet_formats::gguf::Gguf;
/// use conpet_formats::tiny::{self, TinyConfig};
/// use conpet_formats::{fingerprint, template};
///
/// # fn main() -> conpet_formats::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("skills.cpb");
/// let file = tiny::base(&TinyConfig::default())?;
/// let base = fingerprint::base_ref(&Gguf::parse(&file)?)?;
///
/// let mut draft = Draft::new(base, "dynamic", 0);
/// draft.manifest.tasks.push(TaskEntry {
///     ensemble: Vec::new(),
///     head: None,
///     id: 0,
///     kind: TaskKind::Generation,
///     labels: Vec::new(),
///     max_answer: 64,
///     module: None,
///     name: "echo".into(),
///     stage: draft.stage(),
///     template: template::INPUT.into(),
/// });
/// draft.create(&path)?;
///
/// let mut next = Draft::from_bundle(&Bundle::open(&path)?);
/// next.manifest.ext.insert("note".into(), "nothing new".into());
/// next.append(&path)?;
/// assert_eq!(Bundle::open(&path)?.stage(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Draft {
    /// The stage's manifest. Section numbers are those [`Draft::add_section`] gave;
    /// `stage` and `requires` are filled in when it is written.
    pub manifest: Manifest,
    sections: Vec<Source>,
    parent: Option<Parent>,
    /// A signature of the commit as it is without one; empty if there is none.
    pub(super) signature: Vec<u8>,
}

/// Where a section's bytes are.
#[derive(Debug, Clone)]
enum Source {
    /// In the file already.
    Old(SectionRecord),
    /// In memory, to be written.
    New(SectionKind, Vec<u8>),
}

/// The state of the file that the stage was drafted from.
#[derive(Debug, Clone, Copy)]
struct Parent {
    hash: [u8; 32],
    max_stage: u64,
}

impl Draft {
    /// A first stage on a base.
    pub fn new(base: BaseRef, method: &str, trunk: u32) -> Self {
        let manifest = Manifest {
            base,
            ext: BTreeMap::new(),
            format: FORMAT.into(),
            stage: 1,
            heads: Vec::new(),
            method: method.into(),
            modules: Vec::new(),
            requires: Vec::new(),
            selector: SelectorEntry {
                feature: None,
                kind: SelectorKind::Task,
                margin: Decimal::from_f64(0.0),
                module: None,
                section: None,
                stats: None,
                temperature: Decimal::from_f64(1.0),
                threshold: Decimal::from_f64(0.0),
                top_k: 1,
            },
            target_sets: BTreeMap::new(),
            tasks: Vec::new(),
            trunk,
        };
        Self { manifest, sections: Vec::new(), parent: None, signature: Vec::new() }
    }

    /// The next stage after an opened one.
    pub fn from_bundle(b: &Bundle) -> Self {
        let mut manifest = b.manifest().clone();
        // Saturates on a file that claims all numbers; `append` refuses such a file.
        manifest.stage = b.slot.max_stage.saturating_add(1);
        Self {
            manifest,
            sections: b.section_records().iter().map(|r| Source::Old(*r)).collect(),
            parent: Some(Parent { hash: b.commit_hash, max_stage: b.slot.max_stage }),
            signature: Vec::new(),
        }
    }

    /// The number this stage will have.
    pub fn stage(&self) -> u64 {
        self.manifest.stage
    }

    /// Adds a payload; returns the number to use in the manifest.
    pub fn add_section(&mut self, kind: SectionKind, bytes: Vec<u8>) -> u32 {
        self.sections.push(Source::New(kind, bytes));
        (self.sections.len() - 1) as u32
    }

    /// The bytes of a section added to this draft; `None` for those already in the file.
    pub fn new_section(&self, index: u32) -> Option<&[u8]> {
        match self.sections.get(index as usize)? {
            Source::New(_, bytes) => Some(bytes),
            Source::Old(_) => None,
        }
    }

    /// Writes a new file with this as its only stage.
    ///
    /// # Errors
    /// If the file exists, the manifest breaks a rule, or writing fails; then there is no file.
    pub fn create(mut self, path: &Path) -> Result<()> {
        self.prune();
        let (tail, slot) = self.layout(
            FIRST,
            &Superblock {
                minor: MINOR,
                file_id: [0; 16],
                seq: 0,
                commit_off: 0,
                commit_len: 0,
                end: FIRST,
                commit_hash: [0; 32],
                max_stage: 0,
            },
            0,
        )?;
        let mut slot = slot;
        slot.file_id = file_id(&slot.commit_hash);
        let page = slot.encode();
        fs::create_new(path, |w| {
            let io = |e| Error::io("write", e);
            w.write_all(&page).map_err(io)?;
            w.write_all(&page).map_err(io)?;
            w.write_all(&tail).map_err(io)
        })
    }

    /// Appends this stage to the file it was drafted from, by the protocol of
    /// `docs/bundle-format.md`.
    ///
    /// # Errors
    /// If another process writes, the file has moved on since, space runs out, or writing fails.
    /// Before the superblock is written nothing has happened; an error after that says so.
    pub fn append(mut self, path: &Path) -> Result<()> {
        let parent = self
            .parent
            .ok_or_else(|| Error::new(Code::Value, "this stage was not drafted from a bundle").in_file(path))?;
        if parent.max_stage == u64::MAX {
            return Err(Error::new(Code::Value, "the file has used up all stage numbers").in_file(path));
        }
        self.prune();
        let (file, map) = fs::open_mapped(path, true)?;
        let (slot, _) = current(&map).map_err(|e| e.in_file(path))?;
        if slot.commit_hash != parent.hash || slot.max_stage != parent.max_stage {
            return Err(Error::new(Code::Layout, "the bundle has changed since this stage was begun")
                .in_file(path)
                .hint("run the command again on the bundle as it is now"));
        }
        repair(&file, &map, &slot, path)?;
        let start = slot.end.next_multiple_of(PAGE);
        let previous = newest(&map, slot.end).map_err(|e| e.in_file(path))?;
        let (tail, new) = self.layout(start, &slot, previous)?;
        write_tail(&file, start, &tail, path)?;
        publish(&file, &new, path)
    }

    /// Drops the sections that nothing refers to any more from the table (their bytes stay in the file), and renumbers
    /// the others in the manifest.
    pub(super) fn prune(&mut self) {
        let ignorable = |s: &Source| matches!(s, Source::Old(r) if matches!(r.kind, SectionKind::Other(_)));
        let kept = self.manifest.renumber(self.sections.iter().map(ignorable).collect());
        let mut i = 0..;
        self.sections.retain(|_| i.next().is_some_and(|i| kept.binary_search(&i).is_ok()));
    }

    /// The bytes from `start` on, and the superblock that publishes them; `previous` is the
    /// newest commit of the file, of whatever branch.
    pub(super) fn layout(mut self, start: u64, slot: &Superblock, previous: u64) -> Result<(Vec<u8>, Superblock)> {
        self.manifest.requires = validate::requires(&self.manifest);
        let mut tail = Vec::new();
        let mut records = Vec::with_capacity(self.sections.len());
        for s in &self.sections {
            match s {
                Source::Old(r) => records.push(*r),
                Source::New(kind, bytes) => {
                    let offset = start + tail.len() as u64;
                    records.push(SectionRecord {
                        hash: *blake3::hash(bytes).as_bytes(),
                        offset,
                        len: bytes.len() as u64,
                        kind: *kind,
                    });
                    tail.extend(bytes);
                    tail.resize(tail.len().next_multiple_of(PAGE as usize), 0);
                }
            }
        }
        validate::check(&self.manifest, &records)?;
        let commit = Commit {
            stage: self.manifest.stage,
            parent_off: slot.commit_off,
            parent_hash: slot.commit_hash,
            previous_off: previous,
            sections: records,
            manifest: canonical::write(&self.manifest)?,
            signature: self.signature,
        };
        let bytes = commit.encode();
        if bytes.len() as u64 > super::COMMIT_CAP {
            return Err(Error::new(Code::Cap, format!("a commit of {} bytes", bytes.len())));
        }
        let commit_off = start + tail.len() as u64;
        tail.extend(&bytes);
        tail.resize(tail.len().next_multiple_of(PAGE as usize), 0);
        let new = Superblock {
            minor: slot.minor,
            file_id: slot.file_id,
            seq: slot.seq.checked_add(1).ok_or_else(|| Error::new(Code::Value, "the sequence number is used up"))?,
            commit_off,
            commit_len: bytes.len() as u32,
            end: start + tail.len() as u64,
            commit_hash: *blake3::hash(&bytes).as_bytes(),
            max_stage: self.manifest.stage,
        };
        Ok((tail, new))
    }
}

impl Manifest {
    /// Closes up the section numbers over sections that nothing refers to. Returns those that stay: the ones
    /// referred to, and the `wanted` ones (of kinds this release does not know).
    pub(super) fn renumber(&mut self, mut wanted: Vec<bool>) -> Vec<u32> {
        self.for_each_section(|s| wanted.get_mut(*s as usize).into_iter().for_each(|w| *w = true));
        let kept: Vec<u32> = (0..wanted.len() as u32).filter(|i| wanted[*i as usize]).collect();
        // A number that names nothing stays so, and validation refuses it.
        self.for_each_section(|s| *s = kept.binary_search(s).map_or(u32::MAX, |i| i as u32));
        kept
    }

    /// Visits every section number.
    pub(super) fn for_each_section(&mut self, mut f: impl FnMut(&mut u32)) {
        self.modules.iter_mut().for_each(|m| f(&mut m.section));
        self.heads.iter_mut().for_each(|h| f(&mut h.section));
        self.selector.section.iter_mut().for_each(&mut f);
        self.selector.stats.iter_mut().for_each(&mut f);
    }
}

/// Makes another stage of the file the current one, for a caller who holds the lock.
pub(super) fn point_to(file: &File, map: &Mapped, stage: u64, path: &Path) -> Result<Bundle> {
    let target = Bundle::stage_of(map.clone(), path, stage).map_err(|e| e.in_file(path))?;
    let (slot, _) = current(map).map_err(|e| e.in_file(path))?;
    repair(file, map, &slot, path)?;
    let new = Superblock {
        seq: slot
            .seq
            .checked_add(1)
            .ok_or_else(|| Error::new(Code::Value, "the sequence number is used up").in_file(path))?,
        commit_off: target.commit_off,
        commit_len: target.slot.commit_len,
        commit_hash: target.commit_hash,
        ..slot
    };
    publish(file, &new, path)?;
    Ok(target)
}

/// The hint of errors that come before the commit point.
const UNCHANGED: &str = "the stage in force is whole and unchanged; free some space, or check the disk";

/// Writes behind everything that a reader maps, and makes it durable. Nothing refers to it yet.
pub(super) fn write_tail(file: &File, start: u64, bytes: &[u8], path: &Path) -> Result<()> {
    let io = |what: &'static str| move |e| Error::io(what, e).in_file(path).hint(UNCHANGED);
    fs::reserve(file, start, bytes.len() as u64, path)?;
    fs::write_all_at(file, bytes, start, path).map_err(io("append to"))?;
    // A failed sync is never retried: the kernel may have dropped the pages and call it clean.
    fs::sync_data(file, path).map_err(io("sync"))
}

/// Makes both slots durably the current one before anything else, or a torn write to slot A could
/// lose a durable stage. Slot B is written even if it reads right: a sync of it may have failed in
/// an earlier run, which then stands in memory only. Where the slots differ, so may slot A.
pub(super) fn repair(file: &File, map: &[u8], slot: &Superblock, path: &Path) -> Result<()> {
    let page = slot.encode();
    let io = |e| Error::io("repair the superblocks of", e).in_file(path).hint(UNCHANGED);
    let (a, b) = map[..FIRST as usize].split_at(PAGE as usize);
    for at in if a == b { [PAGE].as_slice() } else { &[0, PAGE] } {
        fs::write_all_at(file, &page, *at, path).map_err(io)?;
        fs::sync_data(file, path).map_err(io)?;
    }
    Ok(())
}

/// Slot A, sync (the commit point), slot B, sync.
pub(super) fn publish(file: &File, slot: &Superblock, path: &Path) -> Result<()> {
    let page = slot.encode();
    for (at, hint) in [
        (0, "it is not known whether the new stage is in force; open the bundle to see"),
        (PAGE, "the new stage is in force; the next append repairs the second superblock"),
    ] {
        let done = fs::write_all_at(file, &page, at, path).and_then(|()| fs::sync_data(file, path));
        done.map_err(|e| Error::io("write the superblock of", e).in_file(path).hint(hint))?;
    }
    Ok(())
}
