//! The superblock: which commit is the current stage, and how far the file has ever grown.

use super::{FIRST, PAGE};
use crate::bytes::Cursor;
use crate::{Code, Error, Result};

/// Magic in the manner of PNG: a text-mode copy or a 7-bit channel breaks it visibly.
pub(super) const MAGIC: [u8; 8] = [0x89, b'C', b'P', b'B', 0x0d, 0x0a, 0x1a, 0x0a];
const MAJOR: u16 = 1;
/// What this release writes into a new file.
pub(super) const MINOR: u16 = 0;

/// One decoded slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Kept as it was found: an older program must not take a newer one's mark away.
    pub minor: u16,
    pub file_id: [u8; 16],
    pub seq: u64,
    pub commit_off: u64,
    pub commit_len: u32,
    /// High-water mark; never falls.
    pub end: u64,
    pub commit_hash: [u8; 32],
    /// Never falls either: a stage number is never used twice.
    pub max_stage: u64,
}

impl Superblock {
    pub(super) fn encode(&self) -> [u8; PAGE as usize] {
        let mut b = [0; PAGE as usize];
        b[..8].copy_from_slice(&MAGIC);
        b[8..10].copy_from_slice(&MAJOR.to_le_bytes());
        b[10..12].copy_from_slice(&self.minor.to_le_bytes());
        b[16..32].copy_from_slice(&self.file_id);
        b[32..40].copy_from_slice(&self.seq.to_le_bytes());
        b[40..48].copy_from_slice(&self.commit_off.to_le_bytes());
        b[48..52].copy_from_slice(&self.commit_len.to_le_bytes());
        b[56..64].copy_from_slice(&self.end.to_le_bytes());
        b[64..96].copy_from_slice(&self.commit_hash);
        b[96..104].copy_from_slice(&self.max_stage.to_le_bytes());
        let crc = crc32c::crc32c(&b[..124]);
        b[124..128].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Decodes one slot page.
    pub(super) fn decode(page: &[u8]) -> Result<Self> {
        let mut c = Cursor::new(page);
        let magic = c.take(8)?;
        if magic != MAGIC {
            let e = Error::new(Code::Magic, "not a bundle: the magic bytes are wrong").at(0);
            return Err(if magic.starts_with(b"GGUF") {
                e.hint("this is a GGUF base; give it with -m and the bundle with -b")
            } else {
                e.hint("give a .cpb file written by conpet-train; a copy in text mode damages it")
            });
        }
        let crc = crc32c::crc32c(&page[..124]);
        let (major, minor) = (c.u16()?, c.u16()?);
        let _flags = c.u32()?;
        let mut file_id = [0; 16];
        file_id.copy_from_slice(c.take(16)?);
        let (seq, commit_off, commit_len, _reserved) = (c.u64()?, c.u64()?, c.u32()?, c.u32()?);
        let (end, commit_hash, max_stage) = (c.u64()?, c.digest()?, c.u64()?);
        c.take(20)?;
        if c.u32()? != crc {
            return Err(Error::new(Code::Digest, "the superblock's checksum does not match").at(124));
        }
        if major != MAJOR {
            return Err(Error::new(Code::Version, format!("bundle format {major}, this reader knows {MAJOR}"))
                .at(8)
                .hint("use a newer conpet"));
        }
        c.take(PAGE - 128)?;
        if let Some(at) = (12..16).chain(52..56).chain(104..124).chain(128..PAGE).find(|i| page[*i as usize] != 0) {
            return Err(Error::new(Code::Reserved, "reserved bytes of the superblock are not zero").at(at));
        }
        let commit_end = commit_off.checked_add(commit_len.into());
        if commit_off < FIRST || commit_off % PAGE != 0 || commit_len == 0 || commit_end.is_none_or(|e| e > end) {
            return Err(Error::new(
                Code::Layout,
                format!("commit at {commit_off}+{commit_len} is not within [{FIRST}, {end})"),
            )
            .at(40));
        }
        if u64::from(commit_len) > super::COMMIT_CAP {
            return Err(Error::new(Code::Cap, format!("a commit of {commit_len} bytes")).at(48));
        }
        Ok(Self { minor, file_id, seq, commit_off, commit_len, end, commit_hash, max_stage })
    }
}
