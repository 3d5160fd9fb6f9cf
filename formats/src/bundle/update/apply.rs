//! Applying a delta: everything is checked first, the tail is appended and read back, and only then
//! does the superblock move.

use super::delta::Delta;
use super::state::{State, TRIES, Trial};
use crate::bundle::signature::{Trust, last_signed};
use crate::bundle::superblock::Superblock;
use crate::bundle::writer::{publish, repair, write_tail};
use crate::bundle::{Bundle, PAGE};
use crate::fs::open_mapped;
use crate::mmap::Mapped;
use crate::{Code, Error, Result, fs};
use std::path::Path;

/// How to apply a delta.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApplyOptions<'a> {
    /// Put the stage on trial: the bundle goes back by itself unless the stage is marked good.
    pub trial: bool,
    /// The stage must be signed by one of these keys.
    pub trust: Option<&'a Trust>,
}

/// What applying a delta did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The stage before.
    pub before: u64,
    /// The stage now.
    pub now: u64,
    /// Bytes appended; none if the tail was there already.
    pub written: u64,
    /// The stage was already current, and nothing was done.
    pub already: bool,
}

/// Makes the stage of a delta the current one. Applying it twice does no more than once.
///
/// # Errors
/// If the delta is damaged, continues another stage or file, leads to a stage that failed or is below
/// the floor, or there is no room: then the bundle is as it was.
pub fn apply(path: &Path, delta: &Delta, options: ApplyOptions<'_>) -> Result<Applied> {
    let (file, map) = open_mapped(path, true)?;
    let bundle = Bundle::open_map(map.clone(), path).map_err(|e| e.in_file(path))?;
    let (slot, to) = (bundle.slot, delta.to);
    let (mut state, _) = State::load(path);
    if slot.file_id == to.file_id && slot.commit_hash == to.commit_hash {
        return Ok(Applied { before: bundle.stage(), now: bundle.stage(), written: 0, already: true });
    }
    fits(delta, &bundle, &state).map_err(|e| e.in_file(path))?;
    let written = to.end - slot.end;
    // Asked before anything is hashed: a length that cannot be stored is refused at once.
    fs::room(&file, written, path)?;
    let commit = delta.check(&map)?;
    match options.trust {
        Some(trust) => drop(trust.check_commit(&to.file_id, &commit).map_err(|e| e.in_file(delta.path()))?),
        None if commit.signature.is_empty() => still_unsigned(&bundle, delta)?,
        None => {}
    }
    // Part of the tail may be there: a stage that was tried and given up. It must be the same.
    let (have, rest) = delta.tail().split_at((slot.end - delta.from.end) as usize);
    if map[delta.from.end as usize..slot.end as usize] != *have {
        return Err(Error::new(Code::Parent, "the bundle has grown in another way than the delta").in_file(path));
    }

    repair(&file, &map, &slot, path)?;
    if !rest.is_empty() {
        write_tail(&file, slot.end, rest, path)?;
    }
    let new = Superblock {
        // As in the file the delta was made from, if this one has not moved more often since.
        seq: slot.seq.checked_add(1).ok_or_else(|| used_up(path))?.max(to.seq),
        minor: slot.minor,
        ..to
    };
    read_back(delta, Mapped::of(&file)?, &new).map_err(|e| e.in_file(path))?;
    if options.trial {
        state.trial = Some(Trial {
            stage: to.max_stage,
            commit: delta.digest(),
            good_stage: bundle.stage(),
            good_commit: bundle.digest(),
            tries_left: TRIES,
        });
        // Before the superblock moves: a trial that is named but not current is no trial.
        state.save(path)?;
    }
    publish(&file, &new, path)?;
    Ok(Applied { before: bundle.stage(), now: to.max_stage, written, already: false })
}

fn used_up(path: &Path) -> Error {
    Error::new(Code::Value, "the sequence number is used up").in_file(path)
}

/// Refuses an unsigned stage after a signed one, also where no trust file asks for signatures.
fn still_unsigned(bundle: &Bundle, delta: &Delta) -> Result<()> {
    if last_signed(bundle).is_none() {
        return Ok(());
    }
    let text = format!("stage {} is not signed, but the bundle has been so far", delta.to_stage());
    Err(Error::new(Code::Signature, text).in_file(delta.path()).hint("use a delta to a signed stage"))
}

/// Checks that the delta continues this bundle, and that its stage may be applied.
fn fits(delta: &Delta, bundle: &Bundle, state: &State) -> Result<()> {
    let (slot, from, to) = (&bundle.slot, &delta.from, &delta.to);
    let wrong_parent = |text: String, hint: String| Err(Error::new(Code::Parent, text).hint(hint));
    if slot.file_id != to.file_id {
        return wrong_parent(
            format!("{} was made for another bundle: the file ids differ", delta.path().display()),
            "use a delta of this bundle; a compacted or newly made bundle is copied whole".into(),
        );
    }
    state.allows(delta.to_stage())?;
    if state.bad.contains(&delta.digest()) {
        return Err(Error::new(
            Code::Rollback,
            format!("stage {} was tried here and was not marked good", delta.to_stage()),
        )
        .hint(format!(
            "send a newer stage; to use this one all the same: conpet-inspect rollback {} {}",
            bundle.path().display(),
            delta.to_stage()
        )));
    }
    if let Some(t) = state.in_force(bundle) {
        return Err(Error::new(Code::Value, format!("stage {} is on trial", t.stage))
            .hint("run `conpet-inspect mark-good` or `conpet-inspect rollback` first"));
    }
    if slot.commit_hash != from.commit_hash || bundle.commit_off != from.commit_off {
        return wrong_parent(
            format!(
                "the delta continues stage {} ({}), the bundle is at stage {} ({})",
                from.stage,
                short(&from.commit_hash),
                bundle.stage(),
                short(&slot.commit_hash)
            ),
            format!("use a delta from stage {}, or copy the whole new bundle", bundle.stage()),
        );
    }
    if slot.end < from.end || slot.end > to.end || !slot.end.is_multiple_of(PAGE) {
        return wrong_parent(
            format!("the bundle has {} bytes, the delta continues from {} to {}", slot.end, from.end, to.end),
            "the bundle has grown in another way; copy the whole new bundle".into(),
        );
    }
    Ok(())
}

/// Enough of a digest to compare by eye.
fn short(digest: &[u8; 32]) -> String {
    blake3::Hash::from(*digest).to_hex()[..16].to_owned()
}

/// Checks what was appended before any reader can see it: the delta's file may have changed while it was copied.
fn read_back(delta: &Delta, map: Mapped, new: &Superblock) -> Result<()> {
    let tail = map.get(delta.from.end as usize..new.end as usize);
    if tail.is_none_or(|t| *blake3::hash(t).as_bytes() != delta.tail_hash) {
        return Err(Error::new(Code::Digest, "what was appended is not what was checked; the old stage stays")
            .at(delta.from.end)
            .hint("run the command again, and let nothing write the delta meanwhile"));
    }
    Ok(())
}
