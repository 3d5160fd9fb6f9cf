//! One file into the cache.

use crate::cache::Repo;
use crate::client::{Client, Failure, Remote, TRIES};
use conpet_formats::{Code, Error, Result, fs};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

/// What happens while a base is fetched.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A file is downloaded.
    Begin {
        /// Its name in the repository.
        file: &'a str,
        /// Its size.
        bytes: u64,
        /// Bytes of it that are here already.
        have: u64,
    },
    /// So many of its bytes are here.
    Received(u64),
    /// It is all here and compared with its checksum.
    Checking,
    /// It is right, and has its name.
    Done,
    /// Another process downloads it; this one waits.
    Waiting {
        /// Its name in the repository.
        file: &'a str,
    },
    /// A request failed and will be made again.
    Again {
        /// Why.
        why: &'a Error,
        /// After this time.
        wait: Duration,
    },
    /// The hub cannot be reached; what is in the cache is used.
    Cached {
        /// Why.
        why: &'a Error,
    },
}

/// Whoever wants to hear of it.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(Event<'_>);

/// Makes a request until it succeeds, or will not, or nothing came of it [`TRIES`] times.
pub(crate) fn patiently<T>(
    pause: Duration,
    tell: Tell<'_>,
    mut request: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut tries = 0;
    loop {
        match request() {
            Err(Failure { error, again: Some(asked) }) if tries + 1 < TRIES => {
                let wait = asked.unwrap_or(pause * 2u32.pow(tries));
                tell(Event::Again { why: &error, wait });
                std::thread::sleep(wait);
                tries += 1;
            }
            done => return done,
        }
    }
}

/// Where to download from, and to.
pub(crate) struct Download<'a> {
    pub(crate) client: &'a Client<'a>,
    pub(crate) cache: &'a Repo,
    /// `OWNER/NAME`.
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    /// The first wait before a request is made again; each further one is twice as long.
    pub(crate) pause: Duration,
}

impl Download<'_> {
    /// One file of the commit, downloaded unless it is here.
    pub(crate) fn file(&self, file: &str, tell: Tell<'_>) -> Result<PathBuf> {
        let path = self.cache.file(self.commit, file);
        if path.exists() {
            return Ok(path);
        }
        let remote = self.remote(file, tell)?;
        let checksum = remote.checksum.text().to_owned();
        let blob = self.cache.blob(&checksum);
        if !blob.exists() {
            let _lock = self.cache.lock(&checksum, || tell(Event::Waiting { file }))?;
            // Whoever held the lock may have fetched it.
            if !blob.exists() {
                self.fill(file, remote, tell).map_err(|e| e.in_file(self.cache.incomplete(&checksum)))?;
            }
        }
        self.cache.link(self.commit, file, &checksum)
    }

    fn remote(&self, file: &str, tell: Tell<'_>) -> Result<Remote> {
        patiently(self.pause, tell, || self.client.remote(self.repo, self.commit, file)).map_err(|f| f.error)
    }

    /// Downloads what is missing of a file, checks it, and gives it its name. The lock is held.
    fn fill(&self, file: &str, mut remote: Remote, tell: Tell<'_>) -> Result<()> {
        let part = self.cache.incomplete(remote.checksum.text());
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&part);
        let mut out = open.map_err(|e| Error::io("open", e))?;
        let begun = have(&mut out)?;
        let mut resumed = begun > 0;
        if begun > remote.bytes {
            empty(&mut out)?;
        }
        let here = have(&mut out)?;
        tell(Event::Begin { file, bytes: remote.bytes, have: here });
        fs::reserve(&out, here, remote.bytes - here, &part).inspect_err(|_| {
            if here == 0 {
                let _ = std::fs::remove_file(&part);
            }
        })?;
        loop {
            self.receive(file, &mut remote, &mut out, tell)?;
            tell(Event::Checking);
            out.seek(SeekFrom::Start(0)).map_err(|e| Error::io("read", e))?;
            let got = remote.checksum.measure(&mut out, remote.bytes).map_err(|e| Error::io("read", e))?;
            if got == remote.checksum.text() {
                break;
            }
            // The beginning may be from another program or a failing disk.
            empty(&mut out)?;
            if !std::mem::take(&mut resumed) {
                let _ = std::fs::remove_file(&part);
                let text = format!(
                    "the hub sent {file} with {} {got}, not {}",
                    remote.checksum.kind(),
                    remote.checksum.text()
                );
                return Err(Error::new(Code::Digest, text).hint(
                    "nothing of it was kept; try again, and check the proxy or mirror between here and the hub",
                ));
            }
        }
        fs::sync_data(&out, &part).map_err(|e| Error::io("sync", e))?;
        let blob = self.cache.blob(remote.checksum.text());
        std::fs::rename(&part, &blob).map_err(|e| Error::io("rename", e))?;
        fs::sync_dir(&fs::parent(&blob))?;
        tell(Event::Done);
        Ok(())
    }

    /// Receives until all bytes are here, beginning again where the connection was cut.
    fn receive(&self, file: &str, remote: &mut Remote, out: &mut File, tell: Tell<'_>) -> Result<()> {
        let mut tries = 0;
        let mut most = have(out)?;
        while have(out)? < remote.bytes {
            let cut = match self.stream(remote, out, tell) {
                Ok(()) => continue,
                Err(Failure { error, again: None }) => return Err(error),
                Err(cut) => cut,
            };
            let here = have(out)?;
            if here > most {
                (most, tries) = (here, 0);
            }
            tries += 1;
            if tries >= TRIES {
                return Err(cut.error);
            }
            let wait = cut.again.flatten().unwrap_or(self.pause * 2u32.pow(tries - 1));
            tell(Event::Again { why: &cut.error, wait });
            std::thread::sleep(wait);
            // The old address may have run out.
            remote.url = self.remote(file, tell)?.url;
        }
        Ok(())
    }

    /// Receives as much as one connection gives.
    fn stream(&self, remote: &Remote, out: &mut File, tell: Tell<'_>) -> Result<(), Failure> {
        let (answer, continues) = self.client.bytes(&remote.url, have(out)?)?;
        if !continues {
            empty(out)?;
        }
        let mut here = have(out)?;
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; 128 << 10];
        while here < remote.bytes {
            let n = match body.read(&mut buffer) {
                Ok(0) => {
                    let text = format!("the connection was cut after {here} of {} bytes", remote.bytes);
                    return Err(cut(Error::new(Code::Io, text)));
                }
                Ok(n) => n.min(usize::try_from(remote.bytes - here).unwrap_or(n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => {
                    let text = format!("the connection was cut after {here} of {} bytes: {e}", remote.bytes);
                    return Err(cut(Error::new(Code::Io, text)));
                }
            };
            out.write_all(&buffer[..n]).map_err(|e| Error::io("write", e))?;
            here += n as u64;
            tell(Event::Received(here));
        }
        Ok(())
    }
}

fn cut(error: Error) -> Failure {
    Failure {
        error: error.hint("run the command again: what is here is kept, and the rest is fetched"),
        again: Some(None),
    }
}

/// How long the file is; the next write goes to its end.
fn have(file: &mut File) -> Result<u64> {
    file.seek(SeekFrom::End(0)).map_err(|e| Error::io("read", e))
}

fn empty(file: &mut File) -> Result<()> {
    file.set_len(0).and_then(|()| file.rewind()).map_err(|e| Error::io("write", e))
}
