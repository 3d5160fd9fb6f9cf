//! Compaction: the current stage as a file of its own, under the name of the old one.

use super::commit::{SectionKind, SectionRecord};
use super::reader::Bundle;
use super::rewrite::write_bundle;
use super::update::State;
use crate::fs::open_mapped;
use crate::{Code, Error, Result, fs};
use std::path::Path;

/// What to leave out, apart from what no reader of the current stage needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct CompactOptions {
    /// Also the selector's current statistics: the bundle then answers as before, but learns no further
    /// task without data of the earlier ones.
    pub drop_statistics: bool,
    /// Compact although the stage is signed; what is written is not signed.
    pub drop_signature: bool,
}

/// What compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// The stage's number in the old file.
    pub before: u64,
    /// Its number in the new file; the same if there was nothing to leave out and the file was not touched.
    pub now: u64,
    /// Length of the file before, in bytes.
    pub bytes_before: u64,
    /// Length of the file now.
    pub bytes_now: u64,
}

/// Replaces a bundle by its current stage alone. Readers keep the old file; the new one has an id of its own
/// and a stage number never used before, and says in `ext` what it was made from.
///
/// # Errors
/// If another process writes, a section is damaged, a stage is on trial, the stage is signed, or writing
/// fails: then the file is as it was.
pub fn compact(path: &Path, options: CompactOptions) -> Result<Compacted> {
    let (_held, map) = open_mapped(path, true)?;
    let bundle = Bundle::open_map(map, path).map_err(|e| e.in_file(path))?;
    let refuse = |code, text: String, hint: &str| Err(Error::new(code, text).in_file(path).hint(hint));
    if State::load(path).0.in_force(&bundle).is_some() {
        let text = format!("stage {} is on trial", bundle.stage());
        return refuse(Code::Value, text, "run `conpet-inspect mark-good` or `conpet-inspect rollback` first");
    }
    let mut manifest = bundle.manifest().clone();
    if options.drop_statistics {
        manifest.selector.stats = None;
    }
    let ignorable = |r: &SectionRecord| matches!(r.kind, SectionKind::Other(_));
    let kept = manifest.renumber(bundle.section_records().iter().map(ignorable).collect());
    let (stage, bytes_before) = (bundle.stage(), bundle.map.len() as u64);
    let alone = bundle.commit.previous_off == 0 && bytes_before == bundle.end();
    if alone && kept.len() == bundle.section_records().len() {
        return Ok(Compacted { before: stage, now: stage, bytes_before, bytes_now: bytes_before });
    }
    if !bundle.commit.signature.is_empty() && !options.drop_signature {
        let text = format!("stage {stage} is signed, and the compacted file would not be");
        return refuse(Code::Signature, text, "compact with --drop-signature, then sign the result anew");
    }
    manifest.stage = bundle
        .slot
        .max_stage
        .checked_add(1)
        .ok_or_else(|| Error::new(Code::Value, "the file has used up all stage numbers").in_file(path))?;
    let of = format!("stage {stage}, commit {}", bundle.digest());
    manifest.ext.insert("compacted_from".into(), of);
    // Each digest is compared before its bytes are copied: damage is not handed on.
    let sections = kept
        .iter()
        .map(|i| Ok((bundle.section_records()[*i as usize].kind, bundle.section(*i)?)))
        .collect::<Result<Vec<(SectionKind, &[u8])>>>()?;
    let now = manifest.stage;
    let mut bytes_now = 0;
    fs::write_atomic(path, |w| {
        bytes_now = write_bundle(w, manifest, &sections)?;
        Ok(())
    })?;
    Ok(Compacted { before: stage, now, bytes_before, bytes_now })
}
