//! A delta: what a later stage of a bundle has beyond an earlier one, as a file of its own.
//!
//! One page of header (what it continues, the superblock it leads to, a digest of the tail), then
//! the tail of the bundle, byte for byte. `docs/bundle-format.md` has the bytes.

use crate::bundle::commit::Commit;
use crate::bundle::reader::{check_payload, newest};
use crate::bundle::superblock::Superblock;
use crate::bundle::verify::{Sections, first_stray};
use crate::bundle::{Bundle, COMMIT_CAP, FIRST, PAGE, SectionKind, canonical, validate};
use crate::bytes::Cursor;
use crate::mmap::Mapped;
use crate::tensors::Tensors;
use crate::{Code, Error, Result, fs};
use std::path::{Path, PathBuf};

/// Magic bytes in the manner of the bundle's.
const MAGIC: [u8; 8] = [0x89, b'C', b'P', b'D', 0x0d, 0x0a, 0x1a, 0x0a];
const MAJOR: u16 = 1;
/// Bytes of the header that are used before its digest.
const USED: usize = 256;

/// A delta whose header is whole; its tail is checked when it is applied.
#[derive(Debug)]
pub struct Delta {
    path: PathBuf,
    map: Mapped,
    pub(super) from: Origin,
    /// The superblock of the bundle it leads to.
    pub(super) to: Superblock,
    pub(super) tail_hash: [u8; 32],
}

/// The stage that a delta continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub stage: u64,
    pub commit_off: u64,
    pub commit_hash: [u8; 32],
    /// Where the tail begins.
    pub end: u64,
}

impl Delta {
    /// Opens a delta and checks its header and its length.
    ///
    /// # Errors
    /// If it is no delta, is cut short, or its header is damaged or contradicts itself.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(Mapped::open(path)?, path).map_err(|e| e.in_file(path))
    }

    fn of(map: Mapped, path: &Path) -> Result<Self> {
        let mut c = Cursor::new(&map);
        if c.take(8)? != MAGIC {
            return Err(Error::new(Code::Magic, "not a delta: the magic bytes are wrong")
                .at(0)
                .hint("give a file that `conpet-inspect delta` wrote"));
        }
        let head = map.get(..PAGE as usize).ok_or_else(|| {
            Error::new(Code::Truncated, format!("{} bytes are too few for a delta", map.len())).at(map.len() as u64)
        })?;
        if *blake3::hash(&head[..USED]).as_bytes() != head[USED..USED + 32] {
            return Err(Error::new(Code::Digest, "the header is damaged: its digest does not match").at(USED as u64));
        }
        let (major, _minor) = (c.u16()?, c.u16()?);
        if major != MAJOR {
            return Err(Error::new(Code::Version, format!("delta format {major}, this reader knows {MAJOR}"))
                .at(8)
                .hint("use a newer conpet"));
        }
        let reserved = c.u32()?;
        let (stage, commit_off, commit_hash, end) = (c.u64()?, c.u64()?, c.digest()?, c.u64()?);
        let (tail_len, tail_hash) = (c.u64()?, c.digest()?);
        if reserved != 0 || head[112..128].iter().chain(&head[USED + 32..]).any(|b| *b != 0) {
            return Err(Error::new(Code::Reserved, "reserved bytes of the header are not zero"));
        }
        let mut page = [0; PAGE as usize];
        page[..128].copy_from_slice(&head[128..USED]);
        let to = Superblock::decode(&page).map_err(|e| e.in_section("the superblock it leads to"))?;
        let from = Origin { stage, commit_off, commit_hash, end };
        // The commit ends the tail: then the next append finds it, and nothing hides behind it.
        let ends = to.commit_off.checked_add(to.commit_len.into()).and_then(|e| e.checked_next_multiple_of(PAGE));
        if end < FIRST
            || !end.is_multiple_of(PAGE)
            || to.commit_off < end
            || ends != Some(to.end)
            || end.checked_add(tail_len) != Some(to.end)
        {
            let text = format!("{tail_len} bytes from {end} on do not lead to {}", to.end);
            return Err(Error::new(Code::Layout, text).at(64));
        }
        let have = map.len() as u64 - PAGE;
        if have != tail_len {
            let code = if have < tail_len { Code::Truncated } else { Code::Layout };
            return Err(Error::new(code, format!("{tail_len} bytes of tail declared, {have} are there")).at(72));
        }
        Ok(Self { path: path.to_owned(), map, from, to, tail_hash })
    }

    /// The stage it continues.
    pub fn from_stage(&self) -> u64 {
        self.from.stage
    }
    /// The stage it leads to.
    pub fn to_stage(&self) -> u64 {
        self.to.max_stage
    }
    /// Digest of the commit it leads to, lower-case hex.
    pub fn digest(&self) -> String {
        blake3::Hash::from(self.to.commit_hash).to_hex().to_string()
    }
    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The bytes to append.
    pub fn tail(&self) -> &[u8] {
        &self.map[PAGE as usize..]
    }

    /// Checks everything about the tail, read as the continuation of `old`: digests of the tail, of every
    /// commit and of every section that they use; that the commits chain to one another and to those
    /// of `old`; the manifests; the payloads; and that nothing else is in it. Returns the commit it leads to.
    pub(super) fn check(&self, old: &[u8]) -> Result<Commit> {
        self.check_inner(old).map_err(|e| e.in_file(&self.path))
    }

    fn check_inner(&self, old: &[u8]) -> Result<Commit> {
        let (start, tail) = (self.from.end, self.tail());
        if *blake3::hash(tail).as_bytes() != self.tail_hash {
            return Err(Error::new(Code::Digest, "the tail is damaged: its digest does not match").at(PAGE));
        }
        let joined = Joined { old, start, tail };
        let before = newest(old, start)?;
        let mut ranges = Vec::new();
        let mut last = None;
        let mut met = Sections::default();
        let (mut at, mut below) = (self.to.commit_off, u64::MAX);
        loop {
            let bytes = joined.commit(at)?;
            let commit = Commit::decode(bytes, at)?;
            if commit.stage >= below {
                return Err(Error::new(Code::Layout, "stage numbers do not rise along the file").at(at));
            }
            if at < start {
                break;
            }
            if at == self.to.commit_off {
                let is = (bytes.len() as u64, *blake3::hash(bytes).as_bytes(), commit.stage);
                if is != (self.to.commit_len.into(), self.to.commit_hash, self.to.max_stage) {
                    return Err(Error::new(Code::Digest, "the superblock names another commit").at(at));
                }
            }
            ranges.push((at, at + bytes.len() as u64));
            let parent = joined.commit(commit.parent_off)?;
            if *blake3::hash(parent).as_bytes() != commit.parent_hash {
                return Err(Error::new(Code::Parent, format!("stage {}'s parent does not match", commit.stage))
                    .at(commit.parent_off));
            }
            let manifest = canonical::read(&commit.manifest)?;
            validate::check(&manifest, &commit.sections)?;
            if manifest.stage != commit.stage {
                return Err(Error::new(Code::Value, "manifest and commit name different stages").at(at));
            }
            for (i, s) in commit.sections.iter().enumerate() {
                let place = || format!("stage {}, section {i}", commit.stage);
                if !met.is_new(s).map_err(|e| e.in_section(place()))? {
                    continue;
                }
                let payload = joined.get(s.offset, s.len).map_err(|e| e.in_section(place()))?;
                check_payload(payload, i, s).map_err(|e| e.in_section(place()))?;
                if !matches!(s.kind, SectionKind::Other(_)) {
                    Tensors::parse(payload).map_err(|e| e.in_section(place()))?;
                }
                if s.offset >= start {
                    ranges.push((s.offset, s.offset + s.len));
                }
            }
            (at, below) = (commit.previous_off, commit.stage);
            last.get_or_insert(commit);
        }
        if at != before {
            return Err(Error::new(Code::Parent, "the tail does not continue the file's last commit").at(at));
        }
        match first_stray(tail, start, ranges) {
            Some(at) => Err(Error::new(Code::Reserved, "bytes that belong to nothing").at(at)),
            None => last.ok_or_else(|| Error::new(Code::Layout, "no commit is in the tail")),
        }
    }
}

/// A bundle as it will be: a file up to `start`, then the tail.
struct Joined<'a> {
    old: &'a [u8],
    start: u64,
    tail: &'a [u8],
}

impl<'a> Joined<'a> {
    /// A range that lies wholly on one side.
    fn get(&self, at: u64, len: u64) -> Result<&'a [u8]> {
        let outside = || Error::new(Code::Layout, format!("{at}+{len} is not in the file or the tail")).at(at);
        let stop = at.checked_add(len).ok_or_else(outside)?;
        let (side, base) =
            if at < self.start { (&self.old[..self.start as usize], 0) } else { (self.tail, self.start) };
        side.get((at - base) as usize..(stop - base) as usize).ok_or_else(outside)
    }

    fn commit(&self, at: u64) -> Result<&'a [u8]> {
        let len = Commit::declared_len(self.get(at, 144)?).unwrap_or(u64::MAX);
        if at < FIRST || !at.is_multiple_of(PAGE) || len > COMMIT_CAP {
            return Err(Error::new(Code::Layout, format!("no commit can lie at {at}")).at(at));
        }
        self.get(at, len)
    }
}

/// Writes what the bundle `new` has beyond `old` as a delta; `old` must be an earlier state of `new`.
///
/// # Errors
/// If `old` is no earlier state of `new`, there is nothing to send, a part of the tail is damaged, or the
/// file exists.
pub fn write_delta(old: &Path, new: &Path, to: &Path) -> Result<Delta> {
    let (a, b) = (Bundle::open(old)?, Bundle::open(new)?);
    let parent = |text: String, hint: &str| Err(Error::new(Code::Parent, text).in_file(new).hint(hint));
    if a.slot.file_id != b.slot.file_id {
        return parent(
            format!("it is not a later state of {}: the file ids differ", old.display()),
            "a compacted or newly made bundle is another file: copy it whole",
        );
    }
    let end = a.slot.end;
    if b.slot.end < end || a.map[FIRST as usize..end as usize] != b.map[FIRST as usize..end as usize] {
        return parent(
            format!("it is not a later state of {}: their bytes differ", old.display()),
            "give the older bundle first; if the two have grown apart, copy the new one whole",
        );
    }
    if b.slot.end == end || b.stage() != b.slot.max_stage {
        return parent(
            format!("there is no newer stage to send: stage {} is current", b.stage()),
            "add a stage, or go back where the bundle is with `conpet-inspect rollback`",
        );
    }
    let tail = &b.map[end as usize..b.slot.end as usize];
    let mut head = [0; PAGE as usize];
    head[..8].copy_from_slice(&MAGIC);
    head[8..10].copy_from_slice(&MAJOR.to_le_bytes());
    head[16..24].copy_from_slice(&a.stage().to_le_bytes());
    head[24..32].copy_from_slice(&a.commit_off.to_le_bytes());
    head[32..64].copy_from_slice(&a.commit_hash);
    head[64..72].copy_from_slice(&end.to_le_bytes());
    head[72..80].copy_from_slice(&(tail.len() as u64).to_le_bytes());
    head[80..112].copy_from_slice(blake3::hash(tail).as_bytes());
    head[128..USED].copy_from_slice(&b.slot.encode()[..128]);
    let digest = blake3::hash(&head[..USED]);
    head[USED..USED + 32].copy_from_slice(digest.as_bytes());
    fs::create_new(to, |w| {
        let io = |e| Error::io("write", e);
        w.write_all(&head).map_err(io)?;
        w.write_all(tail).map_err(io)
    })?;
    // A delta that would be refused is of no use to anyone.
    let checked = Delta::open(to).and_then(|d| d.check(&a.map).map(|_| d));
    checked.inspect_err(|_| {
        let _ = std::fs::remove_file(to);
    })
}
