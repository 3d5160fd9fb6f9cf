//! Canonical JSON: one spelling for each manifest, or rejection.

use super::manifest::Manifest;
use super::{COMMA_CAP, MANIFEST_CAP};
use crate::{Code, Error, Result};

/// Serialises a manifest: struct fields are declared in alphabetical order and maps are sorted,
/// so serde_json's compact form is already canonical.
pub(super) fn write(m: &Manifest) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(m)
        .map_err(|e| Error::new(Code::Value, format!("cannot serialise: {e}")).in_section("manifest"))?;
    if bytes.len() as u64 > MANIFEST_CAP {
        return Err(Error::new(Code::Cap, format!("a manifest of {} bytes, cap {MANIFEST_CAP}", bytes.len())));
    }
    check_count(&bytes)?;
    Ok(bytes)
}

/// Bounds the number of values before memory is taken for them: an empty string is three bytes of text, but two dozen
/// in memory.
fn check_count(bytes: &[u8]) -> Result<()> {
    let commas = bytes.iter().filter(|b| **b == b',').count();
    if commas <= COMMA_CAP {
        return Ok(());
    }
    Err(Error::new(Code::Cap, format!("a manifest of more than {commas} values, cap {COMMA_CAP}"))
        .in_section("manifest")
        .hint("fewer labels, or shorter lists of sites"))
}

/// Parses a manifest and refuses any other spelling of it.
///
/// Comparing with the re-serialised form kills duplicate keys, white space, escapes, key order,
/// number forms and trailing data with one rule.
pub(super) fn read(bytes: &[u8]) -> Result<Manifest> {
    check_count(bytes)?;
    let m: Manifest = serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Code::Value, format!("{e}")).in_section("manifest").at(place(bytes, &e)))?;
    let again = write(&m)?;
    if again != bytes {
        let at = again.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(again.len().min(bytes.len()));
        return Err(Error::new(Code::NonCanonical, "not in canonical form").in_section("manifest").at(at as u64));
    }
    Ok(m)
}

/// Where the parser stopped: it counts lines, and columns from 1.
fn place(bytes: &[u8], e: &serde_json::Error) -> u64 {
    let lines = bytes.split_inclusive(|b| *b == b'\n').take(e.line().saturating_sub(1));
    (lines.map(<[u8]>::len).sum::<usize>() + e.column().saturating_sub(1)) as u64
}
