//! Canonical JSON: one spelling for each manifest, or rejection.

use super::MANIFEST_CAP;
use super::manifest::Manifest;
use crate::{Code, Error, Result};

/// Serialises a manifest: struct fields are declared in alphabetical order and maps are sorted,
/// so serde_json's compact form is already canonical.
pub(super) fn write(m: &Manifest) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(m)
        .map_err(|e| Error::new(Code::Value, format!("cannot serialise: {e}")).in_section("manifest"))?;
    if bytes.len() as u64 > MANIFEST_CAP {
        return Err(Error::new(Code::Cap, format!("a manifest of {} bytes, cap {MANIFEST_CAP}", bytes.len())));
    }
    Ok(bytes)
}

/// Parses a manifest and refuses any other spelling of it.
///
/// Comparing with the re-serialised form kills duplicate keys, white space, escapes, key order,
/// number forms and trailing data with one rule.
pub(super) fn read(bytes: &[u8]) -> Result<Manifest> {
    let m: Manifest = serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Code::Value, format!("{e}")).in_section("manifest").at(e.column() as u64))?;
    let again = write(&m)?;
    if again != bytes {
        let at = again.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(again.len().min(bytes.len()));
        return Err(Error::new(Code::NonCanonical, "not in canonical form").in_section("manifest").at(at as u64));
    }
    Ok(m)
}
