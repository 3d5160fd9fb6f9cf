//! A model of a disk: what may be on it when the power goes at any moment.
//!
//! The rules are those of ALICE and of redb's tests. A write is durable once a later sync of the same
//! file has returned; until then each of its 4 KiB pages may have reached the disk or not, in any
//! order, and the last may be torn between 512-byte sectors. The superblock pages are torn between
//! 8-byte words too, since all they hold lies in one sector. A file's growth may be lost, or be
//! there without its bytes. A name is durable once its folder has been synced.

use conpet_formats::fs::{Op, watched};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const WORD: usize = 8;
/// Unsynced pages of which every subset is tried; of more, a sample.
const EXHAUSTIVE: usize = 12;

/// Something that changes a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Create(PathBuf),
    Write(PathBuf, usize, Vec<u8>),
    Sync(PathBuf),
    Publish(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir,
}

/// Runs `body` and returns the changes it made to the disk. Where `refuse` is the number of a sync
/// (from 0), that sync fails.
pub(crate) fn trace<T>(refuse: Option<usize>, body: impl FnOnce() -> T) -> (T, Vec<Event>) {
    let events = Rc::new(RefCell::new(Vec::new()));
    let (seen, mut syncs) = (events.clone(), 0);
    let watch = move |op: Op<'_>, path: &Path| {
        let path = path.to_owned();
        let event = match op {
            Op::Create => Event::Create(path),
            Op::Write(at, bytes) => Event::Write(path, at as usize, bytes.to_vec()),
            Op::Sync => {
                syncs += 1;
                if refuse == Some(syncs - 1) {
                    return Err(std::io::Error::from_raw_os_error(5));
                }
                Event::Sync(path)
            }
            Op::Publish(to) => Event::Publish(path, to.to_owned()),
            Op::Remove => Event::Remove(path),
            Op::SyncDir => Event::SyncDir,
            Op::Stat | Op::Open | Op::Lock | Op::Map | Op::Free | Op::Reserve => return Ok(usize::MAX),
        };
        seen.borrow_mut().push(event);
        Ok(usize::MAX)
    };
    let out = watched(watch, body);
    (out, events.take())
}

/// The bytes of one file: those that are safe, and those on their way, page by page.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bytes {
    pub(crate) durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

impl Bytes {
    fn write(&mut self, mut at: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (page, rest) = bytes.split_at(bytes.len().min(PAGE - at % PAGE));
            self.pending.push((at, page.to_vec()));
            (at, bytes) = (at + page.len(), rest);
        }
    }

    fn sync(&mut self) {
        for (at, page) in std::mem::take(&mut self.pending) {
            put(&mut self.durable, at, &page);
        }
    }

    /// What the system shows to a reader: everything written.
    pub(crate) fn seen(&self) -> Vec<u8> {
        let mut all = self.clone();
        all.sync();
        all.durable
    }

    /// Calls `see` with what may be on the disk, until it returns false. Repeats are possible.
    pub(crate) fn images(&self, dice: &mut Dice, see: &mut dyn FnMut(Vec<u8>) -> bool) -> bool {
        let n = self.pending.len();
        let all = self.seen().len();
        // The telling ones first: all, none, all but one, only one. Then every other, or a sample.
        let whole: u64 = (1 << n) - 1;
        let mut subsets = vec![whole, 0];
        subsets.extend((0..n).flat_map(|i| [whole & !(1 << i), 1 << i]));
        subsets.extend((0..1 << n.min(EXHAUSTIVE)).map(|i| if n <= EXHAUSTIVE { i } else { dice.roll() & whole }));
        // Beside many pages a few tearings each; of a superblock alone all of them.
        let tears = if n <= 2 { usize::MAX } else { 8 };
        for chosen in subsets {
            let mut image = self.durable.clone();
            for (at, page) in pages_of(&self.pending, chosen) {
                put(&mut image, *at, page);
            }
            // The growth may be lost, or may have come before its bytes.
            for len in [image.len(), self.durable.len(), all] {
                let mut image = image.clone();
                image.resize(len, 0);
                if !see(image) {
                    return false;
                }
            }
            // One page more, torn; and a second.
            let Some((at, page)) = self.pending.get(dice.below(n.max(1))) else { continue };
            for torn in tearings(&image, *at, page, dice).take(tears) {
                let (at, page) = &self.pending[dice.below(n)];
                let skip = dice.below(64);
                let two = tearings(&torn, *at, page, dice).nth(skip);
                if two.is_some_and(|two| n > 1 && !see(two)) || !see(torn) {
                    return false;
                }
            }
        }
        true
    }
}

fn pages_of(pending: &[(usize, Vec<u8>)], chosen: u64) -> impl Iterator<Item = &(usize, Vec<u8>)> {
    pending.iter().enumerate().filter(move |(i, _)| chosen >> i & 1 == 1).map(|(_, p)| p)
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Images with part of a page: some of its sectors, and of a superblock some of its words.
fn tearings<'a>(
    image: &'a [u8],
    at: usize,
    page: &'a [u8],
    dice: &mut Dice,
) -> impl Iterator<Item = Vec<u8>> + use<'a> {
    let slot = at < 2 * PAGE;
    let units: &[usize] = if slot { &[WORD, SECTOR] } else { &[SECTOR] };
    let mut plans = Vec::new();
    for unit in units {
        let pieces = (0..page.len()).step_by(*unit).map(|i| i..(i + unit).min(page.len()));
        let differs: Vec<_> = pieces
            .filter(|r| image.get(at..at + page.len()).is_none_or(|was| was[r.clone()] != page[r.clone()]))
            .collect();
        let all = slot && differs.len() <= EXHAUSTIVE;
        let mut chosen: Vec<u64> =
            if all { (1..(1 << differs.len()) - 1).collect() } else { (0..8).map(|_| dice.roll()).collect() };
        chosen.sort_by_cached_key(|_| dice.roll());
        plans.push((differs, chosen));
    }
    plans.into_iter().flat_map(move |(differs, chosen)| {
        chosen.into_iter().map(move |chosen: u64| {
            let mut torn = image.to_vec();
            torn.resize(torn.len().max(at + page.len()), 0);
            for (_, r) in differs.iter().enumerate().filter(|(i, _)| chosen >> (i % 64) & 1 == 1) {
                torn[at..][r.clone()].copy_from_slice(&page[r.clone()]);
            }
            torn
        })
    })
}

/// A folder: its files, the names they have now, and the names that are safe.
#[derive(Debug, Clone, Default)]
pub(crate) struct Folder {
    files: Vec<Bytes>,
    names: BTreeMap<PathBuf, usize>,
    safe: BTreeMap<PathBuf, usize>,
}

impl Folder {
    /// A folder with one file, all of it safe.
    pub(crate) fn with(path: &Path, bytes: Vec<u8>) -> Self {
        Self::default().and(path, bytes)
    }

    /// The same with another file, all of it safe.
    pub(crate) fn and(mut self, path: &Path, bytes: Vec<u8>) -> Self {
        self.names.insert(path.to_owned(), self.files.len());
        self.files.push(Bytes { durable: bytes, pending: Vec::new() });
        self.safe = self.names.clone();
        self
    }

    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Create(p) => {
                self.names.insert(p.clone(), self.files.len());
                self.files.push(Bytes::default());
            }
            Event::Write(p, at, bytes) => self.files[self.names[p]].write(*at, bytes),
            Event::Sync(p) => self.files[self.names[p]].sync(),
            Event::Publish(from, to) => {
                let file = self.names.remove(from).expect("what is published is there");
                self.names.insert(to.clone(), file);
            }
            Event::Remove(p) => drop(self.names.remove(p)),
            Event::SyncDir => self.safe = self.names.clone(),
        }
    }

    /// What a name leads to if its latest changes are lost.
    pub(crate) fn safe(&self, path: &Path) -> Option<&Bytes> {
        self.safe.get(path).map(|i| &self.files[*i])
    }

    /// What a name leads to now.
    pub(crate) fn now(&self, path: &Path) -> Option<&Bytes> {
        self.names.get(path).map(|i| &self.files[*i])
    }
}

/// Numbers without a pattern, the same in every run (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }
}

/// Images that were seen, so that each counts once.
#[derive(Default)]
pub(crate) struct Seen(HashSet<[u8; 32]>);

impl Seen {
    pub(crate) fn is_new(&mut self, image: &[u8]) -> bool {
        self.0.insert(*blake3::hash(image).as_bytes())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
