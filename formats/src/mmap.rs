//! Files mapped into memory. The only place of this crate with `unsafe`.

#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; argued at the one call")]

use crate::{Code, Error, Result};
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// Read-only bytes of a file, or of memory. Cloning shares them.
#[derive(Clone)]
pub struct Mapped(Arc<Inner>);

enum Inner {
    File(memmap2::Mmap),
    Memory(Vec<u8>),
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

    /// Maps an open file as it is now; later growth is not seen.
    pub fn of(file: &File) -> Result<Self> {
        let meta = file.metadata().map_err(|e| Error::io("stat", e))?;
        if meta.len() == 0 {
            return Err(Error::new(Code::Truncated, "the file is empty").at(0).hint("copy or create it again"));
        }
        // SAFETY: the map is read-only and private to this process's view. The bytes could still
        // change if another process rewrites the file in place; bases and bundles are never
        // rewritten in place by this project (bundles only grow, and growth is outside the map),
        // and all parsers stay in bounds whatever the bytes are, so such a change can give wrong
        // numbers but no access outside the map.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io("map", e))?;
        Ok(Self(Arc::new(Inner::File(map))))
    }

    /// Bytes that are already in memory.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Inner::Memory(bytes)))
    }

    /// Takes a range out of this process's memory; the next use reads the file again. Bytes that were
    /// never in a file stay.
    pub fn forget(&self, range: Range<usize>) {
        if let Inner::File(m) = &*self.0
            && range.start < range.end
            && range.end <= m.len()
        {
            // SAFETY: the map is of a file and never written, so the same bytes come back.
            let _ = unsafe {
                m.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.end - range.start)
            };
        }
    }

    /// Asks the kernel to read a range ahead; a hint, so failure is of no consequence.
    pub fn will_need(&self, range: Range<usize>) {
        if let Inner::File(m) = &*self.0
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
            Inner::File(m) => m,
            Inner::Memory(v) => v,
        }
    }
}
