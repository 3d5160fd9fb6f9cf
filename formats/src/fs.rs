//! Files written so that a crash leaves the old or the new, never half of either.

use crate::{Code, Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a new file under a temporary name, syncs it, and renames it over `path`.
///
/// # Errors
/// On any failure `path` is as it was before, and the temporary file is removed.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    replace(path, fill, |tmp, path| std::fs::rename(tmp, path))
}

/// As [`write_atomic`], but refuses if `path` exists.
///
/// # Errors
/// Also if something already has that name.
pub fn create_new(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let refuse = || {
        Error::new(Code::Duplicate, "the file already exists")
            .in_file(path)
            .hint("choose another name, or remove it first if it is not needed")
    };
    if path.symlink_metadata().is_ok() {
        return Err(refuse());
    }
    replace(path, fill, |tmp, path| {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, tmp, CWD, path, RenameFlags::NOREPLACE) {
            // A file system without that: a link, too, fails if the name was taken meanwhile.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                std::fs::hard_link(tmp, path).and_then(|()| std::fs::remove_file(tmp))
            }
            other => other.map_err(Into::into),
        }
    })
}

fn replace(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    publish: impl FnOnce(&Path, &Path) -> std::io::Result<()>,
) -> Result<()> {
    let io = |what: &'static str| move |e| Error::io(what, e).in_file(path);
    let dir = parent(path);
    let name = path.file_name().ok_or_else(|| Error::new(Code::Value, "not a file name").in_file(path))?;
    let tmp = dir.join(format!(".conpet-tmp-{}-{}", std::process::id(), name.to_string_lossy()));
    let result = (|| {
        let file =
            OpenOptions::new().write(true).create_new(true).open(&tmp).map_err(io("create a temporary file beside"))?;
        let mut w = BufWriter::with_capacity(1 << 20, &file);
        fill(&mut w).map_err(|e| e.in_file(path))?;
        w.flush().map_err(io("write"))?;
        drop(w);
        file.sync_all().map_err(io("sync"))?;
        publish(&tmp, path).map_err(io("publish"))?;
        sync_dir(&dir)
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&tmp);
    }
    result
}

/// Makes a new folder: filled under a temporary name, synced, and renamed to `path`, which must be free
/// or an empty folder.
///
/// # Errors
/// On any failure `path` is as it was before, and the temporary folder is removed.
pub fn create_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let io = |what: &'static str| move |e| Error::io(what, e).in_file(path);
    let empty = |p: &Path| std::fs::read_dir(p).is_ok_and(|mut d| d.next().is_none());
    if path.symlink_metadata().is_ok() && !empty(path) {
        return Err(Error::new(Code::Duplicate, "the name is taken")
            .in_file(path)
            .hint("give a new name or an empty folder"));
    }
    let dir = parent(path);
    let name = path.file_name().ok_or_else(|| Error::new(Code::Value, "not a folder's name").in_file(path))?;
    let tmp = dir.join(format!(".conpet-tmp-{}-{}", std::process::id(), name.to_string_lossy()));
    std::fs::create_dir(&tmp).map_err(io("create a temporary folder beside"))?;
    // The rename fails if the name was taken meanwhile.
    let result = fill(&tmp)
        .and_then(|()| sync_dir(&tmp))
        .and_then(|()| std::fs::rename(&tmp, path).map_err(io("publish")))
        .and_then(|()| sync_dir(&dir));
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&tmp);
    }
    result
}

/// Reads a whole file, which must be a regular one: a pipe might never end.
///
/// # Errors
/// Names the file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |what: &'static str| move |e| Error::io(what, e).in_file(path);
    let meta = std::fs::metadata(path).map_err(io("read"))?;
    if !meta.is_file() {
        return Err(Error::new(Code::Io, "it is not a regular file").in_file(path).hint("check the path"));
    }
    std::fs::read(path).map_err(io("read"))
}

/// As [`read`], for text.
///
/// # Errors
/// Also if it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|e| {
        Error::new(Code::Text, "the file is not UTF-8")
            .in_file(path)
            .at(e.utf8_error().valid_up_to() as u64)
            .hint("convert it to UTF-8")
    })
}

/// Makes a directory entry durable (fsync(2): syncing the file does not).
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync the directory", e).in_file(dir))
}

/// The directory a path lies in.
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Takes the exclusive lock of a file, without waiting.
///
/// # Errors
/// `E_LOCKED` if another process holds it.
pub fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::new(Code::Locked, "another process is writing this file")
            .in_file(path)
            .hint("wait for it to finish, then run the command again")),
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io("lock", e).in_file(path)),
    }
}

/// Reserves `len` bytes from `offset`, so that a full disk is found before anything is written.
///
/// # Errors
/// `E_SPACE` if the disk is full.
pub fn reserve(file: &File, offset: u64, len: u64, path: &Path) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
    let free = fstatvfs(file).map_err(|e| Error::io("ask for free space", e.into()).in_file(path))?;
    // Keep a reserve, as ostree does: a box whose disk is completely full cannot even log.
    let have = free.f_bavail.saturating_mul(free.f_frsize);
    let keep = (8 << 20).min(free.f_blocks.saturating_mul(free.f_frsize) / 33);
    if have < len.saturating_add(keep) {
        return Err(Error::new(Code::Space, format!("{len} bytes needed, {have} free"))
            .in_file(path)
            .hint("free some space; nothing was changed"));
    }
    match fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        Err(e) => Err(Error::io("reserve space", e.into()).in_file(path).hint("free some space; nothing was changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("a");
        write_atomic(&p, |w| w.write_all(b"old").map_err(|e| Error::io("write", e))).unwrap();
        let e = write_atomic(&p, |w| {
            w.write_all(b"new").map_err(|e| Error::io("write", e))?;
            Err(Error::new(Code::Value, "stop"))
        });
        assert!(e.is_err());
        assert_eq!(std::fs::read(&p).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(create_new(&p, |_| Ok(())).unwrap_err().code(), Code::Duplicate);
        let q = dir.path().join("b");
        create_new(&q, |w| w.write_all(b"x").map_err(|e| Error::io("write", e))).unwrap();
        assert_eq!(std::fs::read(&q).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
