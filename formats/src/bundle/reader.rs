//! Opens one stage of a bundle and hands out verified sections.

use super::commit::{Commit, SectionRecord};
use super::manifest::Manifest;
use super::superblock::Superblock;
use super::{FIRST, PAGE, canonical, validate};
use crate::mmap::Mapped;
use crate::{Code, Error, Result, fs};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

/// One stage of a bundle, mapped.
///
/// # Example
/// ```
/// use conpet_formats::bundle::Bundle;
/// use conpet_formats::head;
/// use conpet_formats::tensors::Tensors;
/// # use conpet_formats::bundle::Draft;
/// # use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
/// # use conpet_formats::tiny;
///
/// # fn main() -> conpet_formats::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("skills.cpb");
/// # let feature = FeatureSpec::single(2, Pool::Mean, StateNorm::Rms);
/// # let draft = Draft::new(tiny::no_base(), "dynamic", 0);
/// # tiny::with_task(draft, "colour", &["red", "blue"], feature, &[0.5; 8], &[0.0; 2])?.create(&path)?;
/// let bundle = Bundle::open(&path)?;
/// let task = &bundle.manifest().tasks[0];
/// assert_eq!((task.name.as_str(), task.stage), ("colour", 1));
///
/// // A section's digest is checked when its bytes are first asked for.
/// let entry = &bundle.manifest().heads[0];
/// let payload = Tensors::parse(bundle.section(entry.section)?)?;
/// assert_eq!(payload.get(head::WEIGHT).map(|w| w.shape), Some(vec![2, 4]));
///
/// // Asked before an answer is given: are the bytes still those that were read?
/// bundle.check()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    pub(super) map: Mapped,
    pub(super) slot: Superblock,
    pub(super) commit: Commit,
    pub(super) commit_off: u64,
    pub(super) commit_hash: [u8; 32],
    manifest: Manifest,
    verified: Vec<OnceLock<()>>,
    /// When the file had last been written to, as of the last look.
    modified: Mutex<Option<SystemTime>>,
    pub(super) warnings: Vec<String>,
}

/// One stage in a bundle's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageInfo {
    /// Its number.
    pub stage: u64,
    /// The stage it was made from; 0 for the first.
    pub parent: u64,
    /// Where its commit lies, in bytes.
    pub offset: u64,
    /// BLAKE3 of its commit, lower-case hex.
    pub digest: String,
    /// Names of its tasks.
    pub tasks: Vec<String>,
    /// Bytes of its sections.
    pub section_bytes: u64,
    /// True if it carries a signature, trusted or not.
    pub signed: bool,
}

impl Bundle {
    /// Opens the current stage.
    ///
    /// # Errors
    /// If no superblock names a whole, intact commit, or the manifest breaks a rule.
    pub fn open(path: &Path) -> Result<Self> {
        settled(path, |map| Self::open_map(map, path))
    }

    /// The current stage of a bundle in memory; `path` is only a name for messages.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        Self::open_map(Mapped::from_vec(bytes), path).map_err(|e| e.in_file(path))
    }

    /// Opens any stage of the file: of the current chain, or left behind by a rollback.
    ///
    /// # Errors
    /// If the file has no such stage.
    pub fn open_stage(path: &Path, stage: u64) -> Result<Self> {
        settled(path, |map| Self::stage_of(map, path, stage))
    }

    pub(super) fn stage_of(map: Mapped, path: &Path, stage: u64) -> Result<Self> {
        let (slot, warnings) = current(&map)?;
        let stages = commits(&map, slot.end)?;
        let Some((at, _)) = stages.iter().find(|(_, c)| c.stage == stage) else {
            let known: Vec<_> = stages.iter().rev().map(|(_, c)| c.stage.to_string()).collect();
            return Err(Error::new(Code::Missing, format!("no stage {stage}"))
                .hint(format!("this bundle has the stages {}", known.join(", "))));
        };
        let slot = Superblock { commit_off: *at, commit_len: commit_len(&map, *at)?, ..slot };
        Self::at(map, path, slot, warnings, false)
    }

    pub(super) fn open_map(map: Mapped, path: &Path) -> Result<Self> {
        let (slot, warnings) = current(&map)?;
        Self::at(map, path, slot, warnings, true)
    }

    /// Opens the stage whose commit `slot` names; `hashed` says that the commit was compared with its digest.
    fn at(map: Mapped, path: &Path, slot: Superblock, warnings: Vec<String>, hashed: bool) -> Result<Self> {
        // Asked before anything is read: what is written from now on is noticed later.
        let modified = Mutex::new(map.modified()?);
        let bytes = &map[slot.commit_off as usize..][..slot.commit_len as usize];
        let commit_hash = *blake3::hash(bytes).as_bytes();
        debug_assert!(!hashed || commit_hash == slot.commit_hash);
        let commit = Commit::decode(bytes, slot.commit_off)?;
        let manifest = canonical::read(&commit.manifest)?;
        if manifest.stage != commit.stage {
            return Err(Error::new(
                Code::Value,
                format!("the manifest says stage {}, its commit {}", manifest.stage, commit.stage),
            )
            .in_section("manifest"));
        }
        validate::check(&manifest, &commit.sections)?;
        Ok(Self {
            path: path.to_owned(),
            verified: commit.sections.iter().map(|_| OnceLock::new()).collect(),
            commit_off: slot.commit_off,
            map,
            modified,
            slot,
            commit,
            commit_hash,
            manifest,
            warnings,
        })
    }

    /// The stage's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    /// The stage's number.
    pub fn stage(&self) -> u64 {
        self.commit.stage
    }
    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Things worth telling the user, such as an interrupted append.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
    /// The stage's sections.
    pub fn section_records(&self) -> &[SectionRecord] {
        &self.commit.sections
    }
    /// Bytes of the file that belong to the bundle (later bytes are an unfinished append).
    pub fn end(&self) -> u64 {
        self.slot.end
    }
    /// BLAKE3 of this stage's commit, lower-case hex.
    pub fn digest(&self) -> String {
        blake3::Hash::from(self.commit_hash).to_hex().to_string()
    }

    /// The minisign signature it carries, as in a `.minisig` file.
    pub fn signature(&self) -> Option<&[u8]> {
        Some(self.commit.signature.as_slice()).filter(|s| !s.is_empty())
    }

    /// A section's bytes, their digest checked at the first call.
    ///
    /// # Errors
    /// `E_DIGEST` if they are damaged.
    pub fn section(&self, index: u32) -> Result<&[u8]> {
        let range = self.section_range(index)?;
        Ok(&self.map[range])
    }

    /// A section as a range of a shared map, verified as by [`Bundle::section`].
    pub fn section_map(&self, index: u32) -> Result<(Mapped, Range<usize>)> {
        Ok((self.map.clone(), self.section_range(index)?))
    }

    fn section_range(&self, index: u32) -> Result<Range<usize>> {
        let i = index as usize;
        let record = self
            .commit
            .sections
            .get(i)
            .ok_or_else(|| Error::new(Code::Missing, format!("no section {index}")).in_file(&self.path))?;
        let range = record.offset as usize..(record.offset + record.len) as usize;
        if self.verified[i].get().is_none() {
            check_section(&self.map, i, record).map_err(|e| e.in_file(&self.path))?;
            let _ = self.verified[i].set(());
        }
        Ok(range)
    }

    /// Fails if the stage's bytes are no longer what they were when they were read; ask before an answer
    /// computed from them is given. If the file was written to since the last look (an append does
    /// that, and so does a rewrite in place), all that was verified is verified again.
    ///
    /// # Errors
    /// `E_CHANGED` if the file was cut short or a page could not be read, `E_DIGEST` if it was rewritten.
    pub fn check(&self) -> Result<()> {
        let named = |e: Error| e.in_file(&self.path);
        self.map.check().map_err(named)?;
        let now = self.map.modified().map_err(named)?;
        let mut seen = self.modified.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen != now {
            let commit = &self.map[self.commit_off as usize..][..self.slot.commit_len as usize];
            if *blake3::hash(commit).as_bytes() != self.commit_hash {
                return Err(named(Error::new(Code::Digest, "the commit in use has changed").at(self.commit_off)));
            }
            for (i, record) in
                self.commit.sections.iter().enumerate().filter(|(i, _)| self.verified[*i].get().is_some())
            {
                check_section(&self.map, i, record).map_err(named)?;
            }
            // What was read may have faulted meanwhile.
            self.map.check().map_err(named)?;
            *seen = now;
        }
        Ok(())
    }

    /// The chain of stages up to this one, oldest first.
    ///
    /// # Errors
    /// If a link is broken.
    pub fn history(&self) -> Result<Vec<StageInfo>> {
        let mut out = Vec::new();
        let (mut off, mut hash, mut commit) = (self.commit_off, self.commit_hash, self.commit.clone());
        loop {
            let manifest = canonical::read(&commit.manifest).map_err(|e| e.in_file(&self.path))?;
            let parent = if commit.parent_off == 0 {
                None
            } else {
                let len = commit_len(&self.map, commit.parent_off)?;
                let bytes = &self.map[commit.parent_off as usize..][..len as usize];
                if *blake3::hash(bytes).as_bytes() != commit.parent_hash {
                    return Err(Error::new(Code::Digest, format!("stage {}'s parent does not match", commit.stage))
                        .in_file(&self.path)
                        .at(commit.parent_off));
                }
                Some(Commit::decode(bytes, commit.parent_off).map_err(|e| e.in_file(&self.path))?)
            };
            out.push(StageInfo {
                stage: commit.stage,
                parent: parent.as_ref().map_or(0, |p| p.stage),
                offset: off,
                digest: blake3::Hash::from(hash).to_hex().to_string(),
                tasks: manifest.tasks.into_iter().map(|t| t.name).collect(),
                section_bytes: commit.sections.iter().map(|s| s.len).sum(),
                signed: !commit.signature.is_empty(),
            });
            let Some(p) = parent else { break };
            if p.stage >= commit.stage {
                return Err(Error::new(Code::Layout, "stage numbers do not rise along the chain").in_file(&self.path));
            }
            (off, hash, commit) = (commit.parent_off, commit.parent_hash, p);
        }
        out.reverse();
        Ok(out)
    }
}

/// Every commit of the file with its place, newest first, whatever branch it is on.
///
/// The newest is the one that ends the file; each names the one before it.
///
/// # Errors
/// If one of them is damaged, or their stage numbers do not fall.
pub(super) fn commits(file: &[u8], end: u64) -> Result<Vec<(u64, Commit)>> {
    let mut out: Vec<(u64, Commit)> = Vec::new();
    let mut at = newest(file, end)?;
    while at != 0 {
        let len = commit_len(file, at)?;
        let commit = Commit::decode(&file[at as usize..][..len as usize], at)?;
        if out.last().is_some_and(|(_, later)| commit.stage >= later.stage) {
            return Err(Error::new(Code::Layout, "stage numbers do not rise along the file").at(at));
        }
        // Decoding proved that the one before lies before this one, so this ends.
        let before = commit.previous_off;
        out.push((at, commit));
        at = before;
    }
    Ok(out)
}

/// Where the commit that ends at `end` begins.
pub(super) fn newest(file: &[u8], end: u64) -> Result<u64> {
    let mut at = end.saturating_sub(PAGE);
    while at >= FIRST && end - at <= super::COMMIT_CAP + PAGE {
        let begins = file.get(at as usize..).is_some_and(|b| b.starts_with(&super::commit::MAGIC));
        if begins && commit_len(file, at).is_ok_and(|len| (at + u64::from(len)).next_multiple_of(PAGE) == end) {
            return Ok(at);
        }
        at -= PAGE;
    }
    Err(Error::new(Code::Layout, "no commit ends where the file's last one should").at(end))
}

/// Compares a section's bytes with its recorded digest.
pub(super) fn check_section(map: &[u8], index: usize, r: &SectionRecord) -> Result<()> {
    check_payload(&map[r.offset as usize..(r.offset + r.len) as usize], index, r)
}

/// As [`check_section`], for bytes that were found already.
pub(super) fn check_payload(bytes: &[u8], index: usize, r: &SectionRecord) -> Result<()> {
    if *blake3::hash(bytes).as_bytes() == r.hash { Ok(()) } else { Err(damaged(index, r)) }
}

/// The error for a section whose bytes do not match its digest.
pub(super) fn damaged(index: usize, r: &SectionRecord) -> Error {
    Error::new(Code::Digest, format!("the {} is damaged: its digest does not match", r.kind.name()))
        .in_section(format!("section {index}"))
        .at(r.offset)
        .hint("restore the file from a copy; other sections can still be used")
}

/// How often a file is read again because a writer was seen at work.
const LOOKS: usize = 100;

/// Reads a file that a writer may be changing. One slot is whole at every moment, but not always
/// both: a reader that is held up between them, or that mapped the file before it grew, finds
/// neither. Then the superblocks have changed meanwhile or the file has grown, and it looks again.
fn settled<T>(path: &Path, read: impl Fn(Mapped) -> Result<T>) -> Result<T> {
    let mut looks = 0;
    loop {
        let map = map(path)?;
        let slots = |m: &Mapped| m.get(..FIRST as usize).map(<[u8]>::to_vec);
        let (before, same) = (slots(&map), map.clone());
        looks += 1;
        match read(map) {
            // The same map shows the superblocks as they are now.
            Err(_) if looks < LOOKS && (slots(&same) != before || same.outgrown()) => {}
            other => return other.map_err(|e| e.in_file(path)),
        }
    }
}

pub(super) fn map(path: &Path) -> Result<Mapped> {
    fs::open_mapped(path, false).map(|(_, map)| map)
}

/// The slot that names the current stage, and what there is to warn about.
pub(super) fn current(file: &[u8]) -> Result<(Superblock, Vec<String>)> {
    if (file.len() as u64) < FIRST + PAGE {
        let head = Superblock::decode(&[file, &[0; PAGE as usize]].concat()[..PAGE as usize]);
        let e = Error::new(Code::Truncated, format!("{} bytes are too few for a bundle", file.len())).at(0);
        return Err(match head {
            Err(magic) if magic.code() == Code::Magic => magic,
            _ => e.hint("the file is cut short; copy it again"),
        });
    }
    let name = |e: Error, which: &str| e.in_section(format!("superblock {which}"));
    match (slot(file, 0), slot(file, PAGE)) {
        (Ok(a), Ok(b)) if a == b => Ok((a, Vec::new())),
        (Ok(a), Ok(b)) if a.file_id != b.file_id || a.seq == b.seq => {
            Err(Error::new(Code::Layout, "the two superblocks contradict each other")
                .in_section("superblock")
                .hint("two files were mixed; restore the bundle from a copy"))
        }
        (Ok(a), Ok(b)) => {
            let (newer, older) = if a.seq > b.seq { (a, b) } else { (b, a) };
            if newer.end < older.end || newer.max_stage < older.max_stage {
                return Err(Error::new(
                    Code::Layout,
                    "the newer superblock has a smaller end or stage number than the older one",
                )
                .in_section("superblock")
                .at(if newer.end < older.end { 56 } else { 96 }));
            }
            Ok((newer, vec!["the superblocks differ: an append was interrupted; the next append repairs it".into()]))
        }
        (Ok(s), Err(e)) => Ok((s, vec![format!("superblock B is unusable ({}); superblock A is used", e.brief())])),
        (Err(e), Ok(s)) => Ok((s, vec![format!("superblock A is unusable ({}); superblock B is used", e.brief())])),
        (Err(a), Err(_)) => Err(name(a, "A")),
    }
}

/// The slot at `at`, if it and the commit it names are whole.
pub(super) fn slot(file: &[u8], at: u64) -> Result<Superblock> {
    let short = || Error::new(Code::Truncated, "the file ends before its superblocks do").at(at);
    let s = Superblock::decode(file.get(at as usize..(at + PAGE) as usize).ok_or_else(short)?)?;
    if s.end > file.len() as u64 {
        return Err(Error::new(
            Code::Truncated,
            format!("the bundle needs {} bytes, the file has {}", s.end, file.len()),
        )
        .at(at + 56)
        .hint("the file is cut short; copy it again"));
    }
    let bytes = &file[s.commit_off as usize..][..s.commit_len as usize];
    if *blake3::hash(bytes).as_bytes() != s.commit_hash {
        return Err(Error::new(Code::Digest, "the commit it names is damaged").at(s.commit_off));
    }
    Ok(s)
}

/// The length of the commit at `at`, from its own header.
pub(super) fn commit_len(file: &[u8], at: u64) -> Result<u32> {
    let short = || Error::new(Code::Truncated, "a commit lies outside the file").at(at);
    if at < FIRST || !at.is_multiple_of(PAGE) {
        return Err(Error::new(Code::Layout, "a commit is not page-aligned").at(at));
    }
    let len = file.get(at as usize..).and_then(Commit::declared_len).ok_or_else(short)?;
    if len > super::COMMIT_CAP || at + len > file.len() as u64 {
        return Err(short());
    }
    Ok(len as u32)
}
