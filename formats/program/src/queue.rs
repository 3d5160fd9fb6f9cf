//! Rows as they come: read on a thread of their own, so that whoever answers them can take those that are
//! there already and need not wait for more.

use crate::rows::{Row, Rows};
use conpet_formats::{Error, Result};
use std::fs::File;
use std::io::BufReader;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

/// How many rows are read ahead.
const AHEAD: usize = 16;

/// Rows of a file or of standard input.
#[derive(Debug)]
pub struct Queue {
    rows: Receiver<Result<Row>>,
    /// All rows are there: a regular file keeps nobody waiting, so every batch can be full.
    regular: bool,
}

impl Queue {
    /// Begins to read a file, or standard input.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(file: Option<&Path>) -> Result<Self> {
        let name = file.map_or_else(|| "standard input".into(), |p| p.display().to_string());
        let opened = match file {
            Some(path) => File::open(path),
            None => std::io::stdin().as_fd().try_clone_to_owned().map(File::from),
        };
        let file = opened.map_err(|e| Error::io("open", e).in_file(&name))?;
        let regular = file.metadata().is_ok_and(|m| m.is_file());
        let (send, rows) = sync_channel(AHEAD);
        let mut all = Rows::new(BufReader::new(file), &name);
        // It ends with the rows, or when nobody takes them any more.
        let read = move || drop(all.try_for_each(|row| send.send(row)));
        thread::Builder::new().name("rows".into()).spawn(read).map_err(|e| Error::io("start a thread", e))?;
        Ok(Self { rows, regular })
    }

    /// The next row, however long it takes to come; `None` at the end.
    pub fn wait(&self) -> Option<Result<Row>> {
        self.rows.recv().ok()
    }

    /// The next row if it is there.
    pub fn ready(&self) -> Option<Result<Row>> {
        if self.regular { self.wait() } else { self.rows.try_recv().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_there_whole_and_a_pipe_as_it_is_written() {
        let text = |r: Option<Result<Row>>| r.map(|r| r.unwrap().text);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "a\nb\n").unwrap();
        let file = Queue::open(Some(&dir.path().join("f"))).unwrap();
        assert_eq!(
            [text(file.ready()), text(file.ready()), text(file.ready())],
            [Some("a".into()), Some("b".into()), None]
        );
        let (end, mut pipe) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&end));
        let rows = Queue::open(Some(Path::new(&path))).unwrap();
        assert_eq!(text(rows.ready()), None);
        pipe.write_all(b"a\n").unwrap();
        assert_eq!((text(rows.wait()), text(rows.ready())), (Some("a".into()), None));
        drop((pipe, end));
        assert_eq!(text(rows.wait()), None);
        assert!(Queue::open(Some(&dir.path().join("absent"))).unwrap_err().file().unwrap().ends_with("absent"));
    }
}
