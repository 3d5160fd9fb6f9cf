//! Signatures, by which someone vouches for a stage. The stock `minisign` tool makes them over a short text that
//! names the file, the stage and the digest of its commit; they are kept in a commit of their own.
//!
//! A commit's digest covers its manifest, the digests of all its sections and, through its parent's digest, all
//! that came before. So does the signature.

use super::commit::Commit;
use super::reader::{Bundle, commit_len, newest};
use super::writer::Draft;
use super::{PAGE, commit};
use crate::{Code, Error, Result, fs};
use minisign_verify::{PublicKey, Signature};
use std::path::{Path, PathBuf};

/// Where public keys are looked for if no file is named.
pub const TRUST: &str = "/etc/conpet/trust";
/// Longest trust file, in bytes; a key is 56.
const TRUST_CAP: usize = 64 << 10;

/// Public keys whose signatures count.
#[derive(Debug)]
pub struct Trust {
    path: PathBuf,
    keys: Vec<(String, PublicKey)>,
}

impl Trust {
    /// Reads a trust file: minisign public keys, one a line; comments as in `minisign.pub`, or after `#`.
    ///
    /// # Errors
    /// If it cannot be read, a line is no key, or there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read_text(path)?;
        if text.len() > TRUST_CAP {
            return Err(Error::new(Code::Cap, format!("a trust file of {} bytes", text.len())).in_file(path));
        }
        let mut keys = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') || line.starts_with("untrusted comment:") {
                continue;
            }
            let key = PublicKey::from_base64(line).map_err(|e| {
                Error::new(Code::Signature, format!("not a minisign public key: {e}"))
                    .in_file(path)
                    .in_section(format!("line {}", i + 1))
                    .hint("put the second line of a minisign.pub there")
            })?;
            keys.push((line.to_owned(), key));
        }
        if keys.is_empty() {
            return Err(Error::new(Code::Signature, "the trust file has no key")
                .in_file(path)
                .hint("put minisign public keys into it, one a line"));
        }
        Ok(Self { path: path.to_owned(), keys })
    }

    /// The trust file that was named, else the machine's, else none.
    ///
    /// # Errors
    /// As [`Trust::open`].
    pub fn find(named: Option<&Path>) -> Result<Option<Self>> {
        match named {
            Some(path) => Self::open(path).map(Some),
            None if Path::new(TRUST).exists() => Self::open(Path::new(TRUST)).map(Some),
            None => Ok(None),
        }
    }

    /// The trusted key that signed a stage.
    ///
    /// # Errors
    /// `E_SIGNATURE` if there is no signature, it is not of this stage of this file, or by another key.
    pub fn check<'a>(&'a self, bundle: &Bundle) -> Result<&'a str> {
        self.check_commit(&bundle.slot.file_id, &bundle.commit).map_err(|e| e.in_file(bundle.path()))
    }

    pub(super) fn check_commit(&self, file_id: &[u8; 16], commit: &Commit) -> Result<&str> {
        self.check_text(&text(file_id, commit.stage, &commit.unsigned_hash()), &commit.signature)
            .map_err(|e| e.in_section(format!("stage {}", commit.stage)))
    }

    fn check_text(&self, text: &str, signature: &[u8]) -> Result<&str> {
        let refuse = |what: &str| Error::new(Code::Signature, what);
        if signature.is_empty() {
            return Err(refuse("it is not signed, and the trust file asks for it")
                .hint(format!("use a stage signed by a key of {}", self.path.display())));
        }
        let signature = parse(signature)?;
        let mut known = false;
        for (name, key) in &self.keys {
            match key.verify(text.as_bytes(), &signature, false) {
                Ok(()) => return Ok(name),
                Err(minisign_verify::Error::UnexpectedKeyId) => {}
                Err(_) => known = true,
            }
        }
        Err(if known {
            refuse("the signature is by a trusted key, but not of this stage of this file")
        } else {
            refuse("the signature is by no key of the trust file")
                .hint(format!("use a stage signed by a key of {}", self.path.display()))
        })
    }
}

/// A signature file's text as minisign knows it.
fn parse(signature: &[u8]) -> Result<Signature> {
    let text = std::str::from_utf8(signature).ok().and_then(|s| Signature::decode(s).ok());
    text.ok_or_else(|| Error::new(Code::Signature, "it is no whole minisign signature").hint("sign the text again"))
}

/// The text that is signed: lines that a person can read.
fn text(file_id: &[u8; 16], stage: u64, unsigned: &[u8; 32]) -> String {
    let id: String = file_id.iter().map(|b| format!("{b:02x}")).collect();
    format!("conpet stage 1\nfile {id}\nstage {stage}\ncommit {}\n", blake3::Hash::from(*unsigned).to_hex())
}

/// The text to sign, of the stage that [`sign`] will append: the current one again, under the next number.
///
/// # Errors
/// If the bundle cannot be opened.
pub fn signing_text(path: &Path) -> Result<String> {
    let bundle = Bundle::open(path)?;
    let slot = bundle.slot;
    let mut draft = Draft::from_bundle(&bundle);
    draft.prune();
    let previous = newest(&bundle.map, slot.end).map_err(|e| e.in_file(path))?;
    let (_, new) = draft.layout(slot.end.next_multiple_of(PAGE), &slot, previous).map_err(|e| e.in_file(path))?;
    Ok(text(&slot.file_id, new.max_stage, &new.commit_hash))
}

/// Appends the current stage again, under the next number, with the signature of [`signing_text`].
/// Returns that number and the key.
///
/// # Errors
/// If the signature is not of that text by a trusted key, or appending fails.
pub fn sign<'a>(path: &Path, signature: &Path, trust: &'a Trust) -> Result<(u64, &'a str)> {
    let bundle = Bundle::open(path)?;
    let text = signing_text(path)?;
    let bytes = fs::read(signature)?;
    let check = || {
        if bytes.len() > commit::SIGNATURE_CAP {
            let text = format!("a signature of {} bytes, cap {}", bytes.len(), commit::SIGNATURE_CAP);
            return Err(Error::new(Code::Cap, text).hint("sign with a shorter comment"));
        }
        trust.check_text(&text, &bytes)
    };
    let key = check().map_err(|e| {
        e.in_file(signature).hint("sign what `conpet-inspect signing-text` says now, with a key of the trust file")
    })?;
    let mut draft = Draft::from_bundle(&bundle);
    draft.signature.clone_from(&bytes);
    let stage = draft.stage();
    draft.append(path)?;
    Ok((stage, key))
}

/// Refuses a stage that is not signed although an earlier one of its chain is: whoever signs once is expected
/// to go on.
pub(super) fn not_downgraded(bundle: &Bundle) -> Result<()> {
    match last_signed(bundle) {
        Some(stage) if stage != bundle.stage() => Err(Error::new(
            Code::Signature,
            format!("stage {} is not signed, although stage {stage} was", bundle.stage()),
        )
        .in_file(bundle.path())
        .hint("sign it (docs/updates.md), or choose it by number with --stage")),
        _ => Ok(()),
    }
}

/// The newest stage of the chain that carries a signature. A chain that is broken further back ends there:
/// that is `verify`'s to report, and no reason not to serve.
pub(super) fn last_signed(bundle: &Bundle) -> Option<u64> {
    let mut commit = bundle.commit.clone();
    while commit.signature.is_empty() && commit.parent_off != 0 {
        let at = commit.parent_off;
        let bytes = &bundle.map[at as usize..][..commit_len(&bundle.map, at).ok()? as usize];
        if *blake3::hash(bytes).as_bytes() != commit.parent_hash {
            return None;
        }
        commit = Commit::decode(bytes, at).ok()?;
    }
    (!commit.signature.is_empty()).then_some(commit.stage)
}
