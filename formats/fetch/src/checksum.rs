//! The checksum that the hub gives with a file, and by whose text the cache names it.

use conpet_formats::{Code, Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;

/// The checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// Of a large file: SHA-256.
    Sha256(String),
    /// Of a small one: git's, the SHA-1 of `blob LENGTH`, a zero byte, and the content.
    Git(String),
}

impl Checksum {
    /// Reads an ETag.
    pub(crate) fn of_etag(etag: &str) -> Result<Self> {
        let text = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
        let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (text.len(), hex) {
            (64, true) => Ok(Self::Sha256(text.to_owned())),
            (40, true) => Ok(Self::Git(text.to_owned())),
            _ => Err(Error::new(Code::Digest, format!("the hub gives {:?} where a checksum should be", short(etag)))
                .hint("the file could not be checked, so it is not fetched; check HF_ENDPOINT")),
        }
    }

    /// Its digits.
    pub(crate) fn text(&self) -> &str {
        let (Self::Sha256(text) | Self::Git(text)) = self;
        text
    }

    /// The digits of the first `len` bytes of a file.
    pub(crate) fn measure(&self, file: &mut File, len: u64) -> std::io::Result<String> {
        match self {
            Self::Sha256(_) => hash(Sha256::new(), file),
            Self::Git(_) => hash(Sha1::new_with_prefix(format!("blob {len}\0")), file),
        }
    }

    /// What it is called.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Git(_) => "SHA-1",
        }
    }
}

fn hash(mut state: impl Digest, file: &mut File) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(state.finalize().iter().map(|b| format!("{b:02x}")).collect());
        }
        state.update(&buffer[..n]);
    }
}

/// The beginning of a text from the network, fit for a message.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(120).collect()
}
