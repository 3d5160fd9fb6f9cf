//! Files mapped into memory. The only place of this crate with `unsafe`.

#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; argued at each block")]

mod sigbus;

use crate::{Code, Error, Result};
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Read-only bytes of a file, or of memory. Cloning shares them.
#[derive(Clone)]
pub struct Mapped(Arc<Inner>);

enum Inner {
    File(OfFile),
    Memory(Vec<u8>),
}

struct OfFile {
    // Before the map: fields are dropped in this order.
    guard: sigbus::Guard,
    map: memmap2::Mmap,
    file: File,
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({} bytes)", self.len())
    }
}

impl Mapped {
    /// Maps a regular, non-empty file.
    ///
    /// # Errors
    /// If it cannot be opened or mapped, is not a regular file, or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("open", e).in_file(path).hint("check the path"))?;
        if !meta.is_file() {
            return Err(Error::new(Code::Io, "not a regular file").in_file(path).hint("give the path of a file"));
        }
        let file = File::open(path).map_err(|e| Error::io("open", e).in_file(path))?;
        Self::of(&file).map_err(|e| e.in_file(path))
    }

    /// Maps an open file as it is now; later growth is not seen. If the file is cut short later, what is
    /// gone reads as zeros and [`Mapped::check`] fails.
    pub fn of(file: &File) -> Result<Self> {
        let meta = file.metadata().map_err(|e| Error::io("stat", e))?;
        if meta.len() == 0 {
            return Err(Error::new(Code::Truncated, "the file is empty").at(0).hint("copy or create it again"));
        }
        // SAFETY: the map is read-only and private to this process's view. The bytes could still
        // change if another process rewrites the file in place; bases and bundles are never
        // rewritten in place by this project (bundles only grow, and growth is outside the map),
        // and all parsers stay in bounds whatever the bytes are, so such a change can give wrong
        // numbers but no access outside the map. Pages that vanish are replaced by zeros.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io("map", e))?;
        let guard = sigbus::Guard::new(&map)?;
        let file = file.try_clone().map_err(|e| Error::io("keep open", e))?;
        Ok(Self(Arc::new(Inner::File(OfFile { guard, map, file }))))
    }

    /// Fails if the file no longer holds what was mapped: it was cut short, or a page of it could not be
    /// read. Whatever was read from the map since it was made may then be wrong; ask before
    /// an answer is given, not before it is computed.
    ///
    /// # Errors
    /// `E_CHANGED`.
    pub fn check(&self) -> Result<()> {
        let Inner::File(m) = &*self.0 else { return Ok(()) };
        let now = m.file.metadata().map_err(|e| Error::io("stat", e))?.len();
        // The rest of the last page reads as zeros without a fault, so the length counts too.
        let what = if now < m.map.len() as u64 {
            format!("the file was cut from {} to {now} bytes while it was in use", m.map.len())
        } else if m.guard.lost() {
            "part of the file could not be read while it was in use".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::new(Code::Changed, what))
    }

    /// True if the file is longer by now than what was mapped of it.
    pub(crate) fn outgrown(&self) -> bool {
        matches!(&*self.0, Inner::File(m) if m.file.metadata().is_ok_and(|f| f.len() > m.map.len() as u64))
    }

    /// When the file was last written to; `None` for bytes that are in no file.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn modified(&self) -> Result<Option<SystemTime>> {
        let Inner::File(m) = &*self.0 else { return Ok(None) };
        m.file.metadata().and_then(|m| m.modified()).map(Some).map_err(|e| Error::io("stat", e))
    }

    /// Bytes that are already in memory.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Inner::Memory(bytes)))
    }

    /// Takes a range out of this process's memory; the next use reads the file again. Bytes that were
    /// never in a file stay.
    pub fn forget(&self, range: Range<usize>) {
        if let Inner::File(OfFile { map: m, .. }) = &*self.0
            && range.start < range.end
            && range.end <= m.len()
        {
            // SAFETY: the map is of a file (or of zeros in place of one that vanished) and never written,
            // so the same bytes come back.
            let _ = unsafe {
                m.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.end - range.start)
            };
        }
    }

    /// Asks the kernel to read a range ahead; a hint, so failure is of no consequence.
    pub fn will_need(&self, range: Range<usize>) {
        if let Inner::File(OfFile { map: m, .. }) = &*self.0
            && range.start < range.end
            && range.end <= m.len()
        {
            let _ = m.advise_range(memmap2::Advice::WillNeed, range.start, range.end - range.start);
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Inner::File(m) => &m.map,
            Inner::Memory(v) => v,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    const PAGE: usize = 4096;

    fn file(dir: &tempfile::TempDir, pages: usize) -> std::path::PathBuf {
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; pages * PAGE]).unwrap();
        path
    }

    fn cut(path: &Path, len: u64) {
        File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    }

    #[test]
    fn u20_a_file_cut_short_reads_as_zeros_and_is_reported() {
        for left in [0, PAGE / 2, PAGE, 20 * PAGE, 39 * PAGE + 1] {
            let dir = tempfile::tempdir().unwrap();
            let path = file(&dir, 40);
            let (map, other) = (Mapped::open(&path).unwrap(), Mapped::from_vec(vec![1]));
            map.check().unwrap();
            cut(&path, left as u64);
            // From the end on, so that each look may fault.
            let sum: u64 = (0..40 * PAGE).rev().map(|i| u64::from(black_box(map[i]))).sum();
            assert_eq!(sum, 7 * left as u64, "what is left is read, and zeros for the rest");
            let e = map.check().unwrap_err();
            assert_eq!((e.code(), e.exit_code()), (Code::Changed, 1), "{e}");
            assert!(e.message().contains(&format!("to {left} bytes")), "{e}");
            other.check().unwrap();
            // A file that comes back does not heal what was already read.
            cut(&path, 40 * PAGE as u64);
            assert_eq!(map.check().is_err(), left <= 39 * PAGE, "{left}");
            drop(map);
            Mapped::open(&path).unwrap().check().unwrap();
        }
    }

    #[test]
    fn u20_one_cut_file_marks_no_other() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let paths = [file(&dirs[0], 3), file(&dirs[1], 3)];
        let [a, b] = [Mapped::open(&paths[0]).unwrap(), Mapped::open(&paths[1]).unwrap()];
        cut(&paths[0], 0);
        // Threads fault side by side.
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| assert_eq!(black_box(a[2 * PAGE]) + black_box(b[2 * PAGE]), 7));
            }
        });
        assert!(a.check().is_err());
        b.check().unwrap();
    }

    #[test]
    fn u20_a_fault_elsewhere_still_ends_the_process() {
        const CHILD: &str = "CONPET_FAULT_ELSEWHERE";
        if let Some(path) = std::env::var_os(CHILD) {
            let guarded = Mapped::open(Path::new(&path)).unwrap();
            // SAFETY: the fault that comes of it is what is tested.
            let bare = unsafe { memmap2::Mmap::map(&File::open(&path).unwrap()) }.unwrap();
            cut(Path::new(&path), 0);
            black_box(guarded[0]);
            black_box(bare[0]);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "mmap::tests::u20_a_fault_elsewhere_still_ends_the_process"]);
        let out = child.env(CHILD, file(&dir, 1)).output().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(out.status.signal(), Some(7), "{out:?}");
    }
}
