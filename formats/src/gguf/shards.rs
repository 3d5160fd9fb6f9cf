//! The files of a base: one, or the shards of a split one.
//!
//! llama.cpp splits a base into `NAME-00001-of-00002.gguf` and so on. Each shard is a GGUF with the keys
//! `split.no` (from 0), `split.count` and `split.tensors.count` (tensors in all shards); the first holds all
//! other keys too. Any of them names the base.

use super::Gguf;
use super::reader::by_name;
use crate::mmap::Mapped;
use crate::{Code, Error, Result};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The keys that say how a base is split, and nothing about the model.
pub(super) const SPLIT: [&str; 3] = [NO, COUNT, TENSORS];
const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Most shards that are opened; their numbers have five digits, but each takes a file handle.
const SHARD_CAP: u32 = 999;
const REMEDY: &str = "download or copy all shards of one base again, into one folder";

/// The mapped files of one base, in order. Cloning shares them.
///
/// # Example
/// ```no_run
/// use conpet_formats::gguf::Shards;
///
/// # fn main() -> conpet_formats::Result<()> {
/// let files = Shards::open("base-00001-of-00002.gguf".as_ref())?;
/// let gguf = files.gguf()?;
/// println!("{} tensors in {} files", gguf.tensors().len(), files.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Shards(Vec<Shard>);

#[derive(Debug, Clone)]
struct Shard {
    path: PathBuf,
    map: Mapped,
    /// When the file was last written to before anything was read from it.
    modified: Option<SystemTime>,
}

impl Shards {
    /// Maps a base's file, and the other shards beside it if it is one of several.
    ///
    /// # Errors
    /// If a file cannot be mapped or a shard is missing.
    pub fn open(path: &Path) -> Result<Self> {
        let given = Shard::new(Mapped::open(path)?, path)?;
        // Only a name of this form can lead to the others; `gguf` refuses a shard without it.
        let Some(name) = ShardName::of(path) else { return Ok(Self(vec![given])) };
        if !is_split(&Gguf::parse(&given.map).map_err(|e| e.in_file(path))?)? {
            return Ok(Self(vec![given]));
        }
        if name.count > SHARD_CAP {
            return Err(Error::new(Code::Cap, format!("{} shards, cap {SHARD_CAP}", name.count)).in_file(path));
        }
        let shards = (1..=name.count).map(|no| {
            if no == name.no {
                return Ok(given.clone());
            }
            let path = name.path(no);
            match std::fs::metadata(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    Err(Error::new(Code::Missing, format!("shard {no} of {} is missing", name.count))
                        .in_file(path)
                        .hint(REMEDY))
                }
                _ => Shard::new(Mapped::open(&path)?, &path),
            }
        });
        Ok(Self(shards.collect::<Result<_>>()?))
    }

    /// The paths of all shards, in order, that a base has if a file of this path is one of them; of any other name,
    /// the path alone.
    pub fn named(path: &Path) -> Vec<PathBuf> {
        ShardName::of(path)
            .map_or_else(|| vec![path.to_owned()], |name| (1..=name.count).map(|no| name.path(no)).collect())
    }

    /// A base in one file that is mapped or in memory already; `path` only names it in messages.
    ///
    /// # Errors
    /// If the system does not say when the file was last written to.
    pub fn of(map: Mapped, path: &Path) -> Result<Self> {
        Ok(Self(vec![Shard::new(map, path)?]))
    }

    /// All files parsed and read as one (cheap: nothing is copied).
    ///
    /// # Errors
    /// If one is not a strict GGUF, or they are not all the shards of one base.
    pub fn gguf(&self) -> Result<Gguf<'_>> {
        let mut parsed = Vec::with_capacity(self.0.len());
        for (i, shard) in self.0.iter().enumerate() {
            let in_shard = |e: Error| e.in_file(&shard.path);
            let gguf = Gguf::parse(&shard.map).map_err(in_shard)?;
            self.check_number(i, &gguf).map_err(in_shard)?;
            if let Some(first) = parsed.first() {
                same_base(first, &gguf).map_err(in_shard)?;
            }
            parsed.push(gguf);
        }
        let mut parsed = parsed.into_iter();
        let Some(mut all) = parsed.next() else { return Err(Error::new(Code::Missing, "no file")) };
        for (i, shard) in parsed.enumerate() {
            all.files.extend(shard.files);
            all.tensors.extend(shard.tensors.into_iter().map(|mut t| {
                t.file = i + 1;
                t
            }));
        }
        if self.0.len() > 1 {
            let tensors = &all.tensors;
            let n = all.required_u32(TENSORS).map_err(|e| e.in_file(self.path()))?;
            if n as usize != tensors.len() {
                let text = format!("{n}, but the {} shards hold {} tensors", self.0.len(), tensors.len());
                return Err(differ(TENSORS, text).in_file(self.path()));
            }
            all.by_name = by_name(tensors.len(), |i| tensors[i].name).map_err(|i| {
                Error::new(Code::Duplicate, "an earlier shard has this tensor too")
                    .in_section(format!("tensor {}", tensors[i].name))
                    .in_file(&self.0[tensors[i].file].path)
                    .hint(REMEDY)
            })?;
        }
        Ok(all)
    }

    /// Checks that the `i`-th file says of itself that it is the `i`-th of so many.
    fn check_number(&self, i: usize, gguf: &Gguf<'_>) -> Result<()> {
        let count = self.0.len();
        if count == 1 {
            if !is_split(gguf)? {
                return Ok(());
            }
            let (no, count) = (gguf.u32(NO)?.unwrap_or(0), gguf.u32(COUNT)?.unwrap_or(0));
            let text = format!("shard {} of {count}, but its file is not named so", u64::from(no) + 1);
            return Err(Error::new(Code::Missing, text)
                .hint("name the shards NAME-00001-of-00002.gguf and so on, all of them in one folder"));
        }
        for (key, want) in [(NO, i), (COUNT, count)] {
            let got = gguf.required_u32(key)?;
            if got as usize != want {
                return Err(differ(key, format!("{got}, but by the file's name it is {want}")));
            }
        }
        Ok(())
    }

    /// The path of the first file.
    pub fn path(&self) -> &Path {
        &self.0[0].path
    }

    /// What the base's file would be called in one piece: `NAME.gguf`.
    pub fn whole_path(&self) -> PathBuf {
        let name = ShardName::of(self.path()).filter(|_| self.len() > 1);
        name.map_or_else(|| self.path().to_owned(), |n| n.stem.with_added_extension("gguf"))
    }

    /// The paths of all files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|s| s.path.as_path())
    }

    /// One file's bytes.
    ///
    /// # Panics
    /// If there are fewer files.
    pub fn map(&self, file: usize) -> &Mapped {
        &self.0[file].map
    }

    /// Number of files, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|s| s.map.len() as u64).sum()
    }

    /// Where bytes that were borrowed from one of the files lie.
    ///
    /// # Panics
    /// If they are not from any of them.
    pub fn locate(&self, data: &[u8]) -> (&Mapped, Range<usize>) {
        let at = |map: &Mapped| {
            let start = (data.as_ptr() as usize).checked_sub(map.as_ptr() as usize)?;
            (start + data.len() <= map.len()).then(|| start..start + data.len())
        };
        let found = self.0.iter().find_map(|s| Some((&s.map, at(&s.map)?)));
        found.expect("bytes of one of these files")
    }

    /// Fails if a file is not what it was when it was opened: cut short, unreadable, or written to.
    ///
    /// # Errors
    /// `E_CHANGED`.
    pub fn check(&self) -> Result<()> {
        self.0.iter().try_for_each(|s| s.check().map_err(|e| e.in_file(&s.path)))
    }
}

impl Shard {
    fn new(map: Mapped, path: &Path) -> Result<Self> {
        let modified = map.modified().map_err(|e| e.in_file(path))?;
        Ok(Self { path: path.to_owned(), map, modified })
    }

    fn check(&self) -> Result<()> {
        self.map.check()?;
        if self.map.modified()? == self.modified {
            return Ok(());
        }
        Err(Error::new(Code::Changed, "the base was written to while it was in use"))
    }
}

/// True for a shard; a file that was joined from shards has the keys too, with a count of 0.
fn is_split(gguf: &Gguf<'_>) -> Result<bool> {
    Ok(gguf.u32(COUNT)?.is_some_and(|n| n > 1))
}

/// Checks that what a later shard says of the base is what the first says.
fn same_base(first: &Gguf<'_>, later: &Gguf<'_>) -> Result<()> {
    for (key, value) in later.metadata() {
        // The alignment is each file's own.
        if key == NO || key == COUNT || key == "general.alignment" || first.get(key) == Some(value) {
            continue;
        }
        return Err(differ(key, "the first shard says otherwise or does not have it".into()));
    }
    later.required_u32(TENSORS).map(drop)
}

fn differ(key: &str, text: String) -> Error {
    Error::new(Code::Value, text).in_section(format!("key {key}")).hint(REMEDY)
}

/// The parts of `NAME-00001-of-00002.gguf`.
struct ShardName {
    /// Everything before the number.
    stem: PathBuf,
    /// From 1.
    no: u32,
    count: u32,
}

impl ShardName {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, no) = rest.rsplit_once('-')?;
        let number = |digits: &str| {
            let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<u32>().ok().filter(|n| plain && *n > 0)
        };
        let (no, count) = (number(no)?, number(count)?);
        (no <= count).then(|| Self { stem: path.with_file_name(stem), no, count })
    }

    fn path(&self, no: u32) -> PathBuf {
        let mut path = self.stem.clone().into_os_string();
        path.push(format!("-{no:05}-of-{:05}.gguf", self.count));
        path.into()
    }
}

#[cfg(test)]
mod tests;
