//! The one door to the disk for everything that must survive a crash.
//!
//! Each function makes one system call (a write makes as many as it takes) and announces it first.
//! A test can listen with [`watched`]: record what is done, or let any call fail. What goes past
//! this file goes past those tests, so `clippy.toml` forbids it.

#![expect(clippy::disallowed_methods, reason = "this is the file that the others must go through")]

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A system call that is about to be made on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// stat(2).
    Stat,
    /// open(2) of a file that is there.
    Open,
    /// open(2) of a file that must not be there.
    Create,
    /// flock(2).
    Lock,
    /// mmap(2).
    Map,
    /// fstatvfs(3): how much room there is.
    Free,
    /// fallocate(2).
    Reserve,
    /// pwrite(2) of these bytes from this place on.
    Write(u64, &'a [u8]),
    /// fdatasync(2) or fsync(2) of the file.
    Sync,
    /// rename(2) or link(2) to this name.
    Publish(&'a Path),
    /// unlink(2).
    Remove,
    /// fsync(2) of the directory.
    SyncDir,
}

/// A listener. It may refuse a call, which is then not made; of a write it says how many bytes the call may take.
type Watch = Box<dyn FnMut(Op<'_>, &Path) -> Result<usize>>;

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Runs `body` while `watch` hears of every call that this thread makes through this module, just
/// before it is made. `watch` returns an error in its place, or the most bytes that a write may take.
pub fn watched<T>(watch: impl FnMut(Op<'_>, &Path) -> Result<usize> + 'static, body: impl FnOnce() -> T) -> T {
    struct Restore(Option<Watch>);
    impl Drop for Restore {
        fn drop(&mut self) {
            WATCH.set(self.0.take());
        }
    }
    let _restore = Restore(WATCH.replace(Some(Box::new(watch))));
    body()
}

/// Announces a call that the caller makes itself.
pub(crate) fn step(op: Op<'_>, path: &Path) -> Result<usize> {
    WATCH.with_borrow_mut(|w| w.as_mut().map_or(Ok(usize::MAX), |w| w(op, path)))
}

/// Opens a file that is there, for reading or for both; follows no link, and waits for no pipe.
pub(crate) fn open(path: &Path, writable: bool) -> Result<File> {
    use rustix::fs::OFlags;
    step(Op::Open, path)?;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new().read(true).write(writable).custom_flags(flags.bits() as i32).open(path)
}

/// Makes a file that must not be there.
pub(crate) fn create(path: &Path) -> Result<File> {
    step(Op::Create, path)?;
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Times that one write is begun again after a signal before that counts as an error.
const INTERRUPTIONS: u32 = 16;

/// Writes all of `bytes` from `at` on. Short writes go on; signals are borne, but not for ever.
///
/// # Errors
/// Those of pwrite(2); how much was written is then unknown.
pub fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64, path: &Path) -> Result<()> {
    let mut interrupted = 0;
    while !bytes.is_empty() {
        let wrote = step(Op::Write(at, bytes), path).and_then(|n| file.write_at(&bytes[..n.min(bytes.len())], at));
        match wrote {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => (bytes, at, interrupted) = (&bytes[n..], at + n as u64, 0),
            Err(e) if e.kind() == ErrorKind::Interrupted && interrupted < INTERRUPTIONS => interrupted += 1,
            // Callers such as `BufWriter` would begin an interrupted write again, and never end.
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(Error::other("interrupted again and again")),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes a file's bytes durable, and its length as far as they need it. One call, whatever comes of it:
/// after a failure the kernel may have dropped the pages and call the next try a success.
///
/// # Errors
/// Those of fdatasync(2); what is on the disk is then unknown.
pub fn sync_data(file: &File, path: &Path) -> Result<()> {
    step(Op::Sync, path)?;
    Ok(rustix::fs::fdatasync(file)?)
}

/// As [`sync_data`], with the file's metadata too.
pub(crate) fn sync_all(file: &File, path: &Path) -> Result<()> {
    step(Op::Sync, path)?;
    Ok(rustix::fs::fsync(file)?)
}

/// Gives a file another name; what had that name is gone.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    step(Op::Publish(to), from)?;
    std::fs::rename(from, to)
}

/// Gives a file another name that must be free.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    let renamed =
        step(Op::Publish(to), from).and_then(|_| Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?));
    match renamed {
        // A file system without that: a link, too, fails if the name was taken meanwhile.
        Err(e) if [Errno::INVAL, Errno::NOSYS].map(|e| Some(e.raw_os_error())).contains(&e.raw_os_error()) => {
            step(Op::Publish(to), from)?;
            std::fs::hard_link(from, to)?;
            remove(from)
        }
        other => other,
    }
}

/// Removes a file's name.
pub(crate) fn remove(path: &Path) -> Result<()> {
    step(Op::Remove, path)?;
    std::fs::remove_file(path)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    step(Op::SyncDir, dir)?;
    Ok(rustix::fs::fsync(File::open(dir)?)?)
}
