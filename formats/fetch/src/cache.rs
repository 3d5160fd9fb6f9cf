//! A repository's folder in the hub's cache, as the hub's own library lays it out.
//!
//! `models--OWNER--NAME/blobs/CHECKSUM` holds the bytes; `snapshots/COMMIT/PATH` links to them; `refs/main` names the
//! commit that was fetched last. A file that is not whole yet is `blobs/CHECKSUM.incomplete`, and whoever writes it
//! holds `.locks/models--OWNER--NAME/CHECKSUM.lock`.

use conpet_formats::{Code, Error, Result, fs};
use std::fs::{DirBuilder, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder of one repository.
#[derive(Debug)]
pub(crate) struct Repo {
    root: PathBuf,
    locks: PathBuf,
}

impl Repo {
    /// Of this repository, `OWNER/NAME`, whether it exists or not.
    pub(crate) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the bytes of a checksum lie.
    pub(crate) fn blob(&self, checksum: &str) -> PathBuf {
        self.root.join("blobs").join(checksum)
    }

    /// Where they lie while they are not whole.
    pub(crate) fn incomplete(&self, checksum: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{checksum}.incomplete"))
    }

    /// Where a file of a commit lies.
    pub(crate) fn file(&self, commit: &str, file: &str) -> PathBuf {
        self.root.join("snapshots").join(commit).join(file)
    }

    /// The commit that was fetched last.
    pub(crate) fn main(&self) -> Result<String> {
        let path = self.root.join("refs/main");
        let absent = |e: Error| match path.exists() {
            true => e,
            false => Error::new(Code::Missing, "the repository is not in the cache")
                .in_file(&self.root)
                .hint("fetch it once with a connection and without --offline"),
        };
        let text = fs::read_text(&path).map_err(absent)?;
        let commit = text.trim();
        if !is_commit(commit) {
            return Err(Error::new(Code::Value, "not the name of a commit").in_file(path).hint("delete this file"));
        }
        Ok(commit.to_owned())
    }

    pub(crate) fn set_main(&self, commit: &str) -> Result<()> {
        if self.main().is_ok_and(|now| now == commit) {
            return Ok(());
        }
        let path = self.root.join("refs/main");
        folder_of(&path)?;
        fs::write_atomic(&path, |w| w.write_all(commit.as_bytes()).map_err(|e| Error::io("write", e)))
    }

    /// The files of a commit that are here, sorted.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        let root = self.root.join("snapshots").join(commit);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    folders.push(path);
                } else if path.is_file()
                    && let Ok(inside) = path.strip_prefix(&root)
                {
                    found.push(inside.to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }

    /// Links a file of a commit to the bytes of a checksum.
    pub(crate) fn link(&self, commit: &str, file: &str, checksum: &str) -> Result<PathBuf> {
        let path = self.file(commit, file);
        folder_of(&path)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{checksum}"));
        match std::os::unix::fs::symlink(&target, &path) {
            Ok(()) => Ok(path),
            Err(_) if path.exists() => Ok(path),
            // A link to bytes that are gone.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let relink = std::fs::remove_file(&path).and_then(|()| std::os::unix::fs::symlink(&target, &path));
                relink.map_err(|e| Error::io("link", e).in_file(&path))?;
                Ok(path)
            }
            Err(e) => Err(Error::io("link", e)
                .in_file(&path)
                .hint("the cache needs a file system with symbolic links; choose another folder with HF_HUB_CACHE")),
        }
    }

    /// Waits until no other process fetches this checksum; the lock is held until the file is dropped.
    pub(crate) fn lock(&self, checksum: &str, mut waits: impl FnMut()) -> Result<File> {
        let path = self.locks.join(format!("{checksum}.lock"));
        folder_of(&path)?;
        folder_of(&self.blob(checksum))?;
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|e| Error::io("open", e).in_file(&path))?;
        let mut said = false;
        loop {
            match fs::lock(&file, &path) {
                Err(e) if e.code() == Code::Locked => {
                    if !std::mem::replace(&mut said, true) {
                        waits();
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                done => return done.map(|()| file),
            }
        }
    }
}

/// Whether a text names a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Makes the folder that a path lies in.
fn folder_of(path: &Path) -> Result<()> {
    let folder = fs::parent(path);
    DirBuilder::new().recursive(true).create(&folder).map_err(|e| {
        Error::io("create", e).in_file(&folder).hint("choose another folder for the cache with HF_HUB_CACHE")
    })
}
