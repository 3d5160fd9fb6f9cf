//! A stage as a file of its own: what compaction and rescue write. Payloads are copied from where they
//! are mapped, so that a large bundle needs no memory of its size.

use super::commit::{Commit, SectionKind, SectionRecord};
use super::manifest::Manifest;
use super::superblock::{MINOR, Superblock};
use super::{COMMIT_CAP, FIRST, PAGE, canonical, validate};
use crate::{Code, Error, Result};
use std::io::Write;

/// Writes a bundle whose only stage is this one; sections as the manifest numbers them. Returns its length.
pub(super) fn write_bundle(
    w: &mut dyn Write,
    mut manifest: Manifest,
    sections: &[(SectionKind, &[u8])],
) -> Result<u64> {
    manifest.requires = validate::requires(&manifest);
    let mut at = FIRST;
    let mut records = Vec::with_capacity(sections.len());
    for (kind, bytes) in sections {
        let len = bytes.len() as u64;
        records.push(SectionRecord { hash: *blake3::hash(bytes).as_bytes(), offset: at, len, kind: *kind });
        at += len.next_multiple_of(PAGE);
    }
    validate::check(&manifest, &records)?;
    let commit = Commit {
        stage: manifest.stage,
        parent_off: 0,
        parent_hash: [0; 32],
        previous_off: 0,
        sections: records,
        manifest: canonical::write(&manifest)?,
        signature: Vec::new(),
    }
    .encode();
    if commit.len() as u64 > COMMIT_CAP {
        return Err(Error::new(Code::Cap, format!("a commit of {} bytes", commit.len())));
    }
    let commit_hash = *blake3::hash(&commit).as_bytes();
    let slot = Superblock {
        minor: MINOR,
        file_id: file_id(&commit_hash),
        seq: 1,
        commit_off: at,
        commit_len: commit.len() as u32,
        end: at + (commit.len() as u64).next_multiple_of(PAGE),
        commit_hash,
        max_stage: manifest.stage,
    };
    let page = slot.encode();
    let pieces = [page.as_slice(), page.as_slice()].into_iter();
    for piece in pieces.chain(sections.iter().map(|(_, b)| *b)).chain([commit.as_slice()]) {
        let padding = piece.len().next_multiple_of(PAGE as usize) - piece.len();
        let done = w.write_all(piece).and_then(|()| w.write_all(&[0; PAGE as usize][..padding]));
        done.map_err(|e| Error::io("write", e))?;
    }
    Ok(slot.end)
}

/// The id of a file from its first commit: two runs with the same seed must give the same file.
pub(super) fn file_id(first_commit: &[u8; 32]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::derive_key("conpet 2026 bundle file id v1", first_commit)[..16]);
    id
}
