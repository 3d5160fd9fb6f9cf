//! Files written so that a crash leaves the old or the new, never half of either.

mod seam;

pub(crate) use seam::step;
pub use seam::{Op, sync_data, watched, write_all_at};

use crate::mmap::Mapped;
use crate::{Code, Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Writes a new file under a temporary name, syncs it, and renames it over `path`, whose permissions it takes.
///
/// # Errors
/// On any failure `path` is as it was before, and the temporary file is removed. Only if the folder
/// cannot be synced, `path` is already new, and the error says so.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    replace(path, fill, seam::rename).map_err(|(e, placed)| match placed {
        true => e.hint("the new content is in place, but may not survive a power cut; write it again"),
        false => e,
    })
}

/// As [`write_atomic`], but refuses if `path` exists.
///
/// # Errors
/// Also if something already has that name. On any failure there is no such file.
pub fn create_new(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let refuse = || {
        Error::new(Code::Duplicate, "the file already exists")
            .in_file(path)
            .hint("choose another name, or remove it first if it is not needed")
    };
    if path.symlink_metadata().is_ok() {
        return Err(refuse());
    }
    replace(path, fill, seam::rename_new).map_err(|(e, placed)| {
        if placed {
            // Nobody has been told of it yet.
            let _ = seam::remove(path);
        }
        e
    })
}

/// Writes a file under a temporary name, syncs it and publishes it. An error also says whether the file had its new
/// name by then.
fn replace(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    publish: impl FnOnce(&Path, &Path) -> std::io::Result<()>,
) -> Result<(), (Error, bool)> {
    let io = |what: &'static str| move |e| Error::io(what, e).in_file(path);
    let dir = parent(path);
    let name = path.file_name().ok_or_else(|| (Error::new(Code::Value, "not a file name").in_file(path), false))?;
    let name = name.to_string_lossy();
    sweep(&dir, &name);
    let tmp = dir.join(format!("{TEMPORARY}{}-{name}", std::process::id()));
    let file = Locked(seam::create(&tmp).map_err(|e| (io("create a temporary file beside")(e), false))?);
    let mut placed = false;
    let result = (|| {
        lock(&file, path)?;
        // Swept away by another process, between its making and its lock.
        if file.metadata().map_err(io("stat"))?.nlink() == 0 {
            return Err(locked().in_file(path));
        }
        // From the first byte on: what others may not read must never be there for them.
        if let Ok(old) = std::fs::metadata(path) {
            file.set_permissions(old.permissions()).map_err(io("set the permissions of a temporary file beside"))?;
        }
        let mut w = BufWriter::with_capacity(1 << 20, Tail { file: &file, at: 0, path: &tmp });
        fill(&mut w).map_err(|e| e.in_file(path))?;
        w.flush().map_err(io("write"))?;
        drop(w);
        seam::sync_all(&file, &tmp).map_err(io("sync"))?;
        publish(&tmp, path).map_err(io("publish"))?;
        placed = true;
        sync_dir(&dir)
    })();
    result.map_err(|e| {
        // Gone if it was renamed; still there if it was linked.
        let _ = seam::remove(&tmp);
        (e, placed)
    })
}

/// How the names of temporary files and folders begin; the process and the final name follow.
const TEMPORARY: &str = ".conpet-tmp-";

/// Removes temporary files of this name that a killed process has left: those that nobody has locked.
fn sweep(dir: &Path, name: &str) {
    let ours = |n: &str| {
        let (process, of) = n.strip_prefix(TEMPORARY)?.split_once('-')?;
        (of == name && process.bytes().all(|b| b.is_ascii_digit())).then_some(())
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().and_then(ours).is_some()
            && entry.file_type().is_ok_and(|t| t.is_file())
            && File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok())
        {
            let _ = seam::remove(&entry.path());
        }
    }
}

/// Writes a file from its beginning on.
struct Tail<'a> {
    file: &'a File,
    at: u64,
    path: &'a Path,
}

impl Write for Tail<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        write_all_at(self.file, bytes, self.at, self.path)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file that is unlocked when dropped. Closing it may not be enough: a process that another thread
/// has just started, or a map, may hold the same open file a little longer.
#[derive(Debug)]
pub(crate) struct Locked(File);

impl std::ops::Deref for Locked {
    type Target = File;
    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Opens a bundle and maps it through the same handle: what is mapped is what was opened, and
/// (`writable`) locked, whatever happens to the name meanwhile. Nor does it wait for whoever writes
/// to a pipe.
///
/// # Errors
/// If it is not a regular file, cannot be opened or mapped, another process is writing it, or
/// writing would change it under another name too.
pub(crate) fn open_mapped(path: &Path, writable: bool) -> Result<(Locked, Mapped)> {
    let io = |what: &'static str| move |e| Error::io(what, e).in_file(path).hint("check the path of the bundle");
    let irregular =
        || Error::new(Code::Io, "a bundle must be a regular file, not a link, directory or device").in_file(path);
    let file = seam::open(path, writable).map_err(|e| {
        let known = path.symlink_metadata().is_ok_and(|m| !m.is_file());
        if known { irregular() } else { io(if writable { "open for writing" } else { "open" })(e) }
    })?;
    let file = Locked(file);
    // Asked of the open file: a name can change its meaning between a question and the opening.
    let meta = step(Op::Stat, path).and_then(|_| file.metadata()).map_err(io("open"))?;
    if !meta.is_file() {
        return Err(irregular());
    }
    if writable {
        if meta.nlink() > 1 {
            return Err(Error::new(Code::Unsupported, format!("the file has {} names (hard links)", meta.nlink()))
                .in_file(path)
                .hint("writing would change the file under its other names too; copy it and write to the copy"));
        }
        lock(&file, path)?;
        // Between opening and locking, compaction may have put another file under this name.
        let named = path.symlink_metadata().ok();
        if named.is_none_or(|m| (m.dev(), m.ino()) != (meta.dev(), meta.ino())) {
            return Err(Error::new(Code::Locked, "the file was replaced while it was being opened")
                .in_file(path)
                .hint("run the command again"));
        }
    }
    step(Op::Map, path).map_err(io("map"))?;
    let map = Mapped::of(&file).map_err(|e| e.in_file(path))?;
    Ok((file, map))
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
    let tmp = dir.join(format!("{TEMPORARY}{}-{}", std::process::id(), name.to_string_lossy()));
    std::fs::create_dir(&tmp).map_err(io("create a temporary folder beside"))?;
    // The rename fails if the name was taken meanwhile.
    let result = fill(&tmp)
        .and_then(|()| sync_dir(&tmp))
        .and_then(|()| seam::rename(&tmp, path).map_err(io("publish")))
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
    seam::sync_dir(dir).map_err(|e| Error::io("sync the directory", e).in_file(dir))
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
    let io = |e| Error::io("lock", e).in_file(path);
    step(Op::Lock, path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(locked().in_file(path)),
        Err(std::fs::TryLockError::Error(e)) => Err(io(e)),
    }
}

fn locked() -> Error {
    Error::new(Code::Locked, "another process is writing this file")
        .hint("wait for it to finish, then run the command again")
}

/// Checks that there is room for `len` more bytes.
///
/// # Errors
/// `E_SPACE` if not.
pub fn room(file: &File, len: u64, path: &Path) -> Result<()> {
    let io = |e| Error::io("ask for free space", e).in_file(path).hint("free some space; nothing was changed");
    let free = step(Op::Free, path).and_then(|_| Ok(rustix::fs::fstatvfs(file)?)).map_err(io)?;
    // Keep a reserve, as ostree does: a box whose disk is completely full cannot even log.
    let have = free.f_bavail.saturating_mul(free.f_frsize);
    let keep = (8 << 20).min(free.f_blocks.saturating_mul(free.f_frsize) / 33);
    if have < len.saturating_add(keep) {
        return Err(Error::new(Code::Space, format!("{len} bytes needed, {have} free"))
            .in_file(path)
            .hint("free some space; nothing was changed"));
    }
    Ok(())
}

/// Reserves `len` bytes from `offset`, so that a full disk is found before anything is written.
///
/// # Errors
/// `E_SPACE` if the disk is full.
pub fn reserve(file: &File, offset: u64, len: u64, path: &Path) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    room(file, len, path)?;
    let io = |e| Error::io("reserve space", e).in_file(path).hint("free some space; nothing was changed");
    step(Op::Reserve, path).map_err(io)?;
    match fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        Err(e) => Err(io(e.into())),
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

    #[test]
    fn what_is_replaced_keeps_its_permissions_at_every_moment() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("a");
        std::fs::write(&p, "old").unwrap();
        std::fs::set_permissions(&p, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
        let watch = move |op: Op<'_>, of: &Path| {
            assert!(!matches!(op, Op::Write(..) | Op::Publish(_)) || mode(of) == 0o600);
            Ok(usize::MAX)
        };
        let put = || write_atomic(&p, |w| w.write_all(b"new").map_err(|e| Error::io("write", e)));
        watched(watch, put).unwrap();
        assert_eq!((std::fs::read(&p).unwrap().as_slice(), mode(&p)), (b"new".as_slice(), 0o600));
    }
}
