//! The commit record of one stage: section table, manifest, and the hash of the stage before.

use super::{FIRST, MANIFEST_CAP, PAGE, SECTION_CAP};
use crate::bytes::Cursor;
use crate::{Code, Error, Result};

pub(super) const MAGIC: [u8; 8] = *b"CPBCMT01";
const HEADER: usize = 144;
const RECORD: usize = 96;
/// Longest signature, in bytes.
pub(super) const SIGNATURE_CAP: usize = 1024;
/// This bit of a kind's id says that readers which do not know the kind may ignore its sections.
const IGNORABLE: u16 = 0x8000;

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// A PET module, strict safetensors.
    Module,
    /// A selector, strict safetensors.
    Selector,
    /// A head, strict safetensors.
    Head,
    /// Sufficient statistics of a closed-form selector, strict safetensors; readers may ignore it.
    Stats,
    /// A kind this release does not know, marked as ignorable.
    Other(u16),
}

impl SectionKind {
    pub(super) fn id(self) -> u16 {
        match self {
            Self::Module => 1,
            Self::Selector => 2,
            Self::Head => 3,
            Self::Stats => IGNORABLE | 8,
            Self::Other(id) => id,
        }
    }

    fn from_id(id: u16) -> Result<Self> {
        match id {
            1 => Ok(Self::Module),
            2 => Ok(Self::Selector),
            3 => Ok(Self::Head),
            0x8008 => Ok(Self::Stats),
            id if id & IGNORABLE != 0 => Ok(Self::Other(id)),
            id => Err(Error::new(Code::Type, format!("section kind {id} is unknown")).hint("use a newer conpet")),
        }
    }

    /// The name that is shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Selector => "selector",
            Self::Head => "head",
            Self::Stats => "stats",
            Self::Other(_) => "other",
        }
    }
}

/// Where a section lies, and the digest that its bytes must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionRecord {
    /// BLAKE3 of the payload.
    pub hash: [u8; 32],
    /// Absolute offset, a multiple of [`PAGE`].
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it holds.
    pub kind: SectionKind,
}

impl SectionRecord {
    /// The digest as lower-case hex.
    pub fn hex(&self) -> String {
        blake3::Hash::from(self.hash).to_hex().to_string()
    }
}

/// A decoded commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    pub stage: u64,
    /// Offset of the stage this one was made from; 0 for the first.
    pub parent_off: u64,
    pub parent_hash: [u8; 32],
    /// The commit that was current when this one was appended; 0 for the first.
    pub previous_off: u64,
    pub sections: Vec<SectionRecord>,
    pub manifest: Vec<u8>,
    /// A minisign signature file, or nothing.
    pub signature: Vec<u8>,
}

impl Commit {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.sections.len() * RECORD);
        for s in &self.sections {
            table.extend(s.hash);
            table.extend(s.offset.to_le_bytes());
            table.extend(s.len.to_le_bytes());
            table.extend(s.kind.id().to_le_bytes());
            table.extend([0; 6]); // codec, flags
            table.extend([0; 40]); // chunk tree, reserved
        }
        let mut b = Vec::with_capacity(HEADER + table.len() + self.manifest.len());
        b.extend(MAGIC);
        b.extend(self.stage.to_le_bytes());
        b.extend(self.parent_off.to_le_bytes());
        b.extend(self.parent_hash);
        b.extend((self.sections.len() as u32).to_le_bytes());
        b.extend((self.manifest.len() as u32).to_le_bytes());
        b.extend((self.signature.len() as u32).to_le_bytes());
        b.extend(self.previous_off.to_le_bytes());
        b.extend([0; 4]);
        b.extend(blake3::hash(&table).as_bytes());
        b.extend(blake3::hash(&self.manifest).as_bytes());
        b.extend(table);
        b.extend(&self.manifest);
        b.extend(&self.signature);
        b
    }

    /// BLAKE3 of this commit as it is without a signature: what a signature signs.
    pub(super) fn unsigned_hash(&self) -> [u8; 32] {
        *blake3::hash(&Self { signature: Vec::new(), ..self.clone() }.encode()).as_bytes()
    }

    /// How long the commit that begins here says it is; `None` if there is not even its header.
    pub(super) fn declared_len(bytes: &[u8]) -> Option<u64> {
        Self::declared(bytes).map(|parts| parts.iter().sum())
    }

    /// The same for its three parts: header with section table, manifest, signature.
    pub(super) fn declared(bytes: &[u8]) -> Option<[u64; 3]> {
        let head = bytes.get(..HEADER)?;
        let num = |i: usize| u64::from(u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]));
        Some([HEADER as u64 + num(56) * RECORD as u64, num(60), num(64)])
    }

    /// Decodes and validates a commit that lies at `at` in the file.
    pub(super) fn decode(bytes: &[u8], at: u64) -> Result<Self> {
        Self::decode_inner(bytes, at).map_err(|e| e.in_section(format!("commit at {at}")))
    }

    fn decode_inner(bytes: &[u8], at: u64) -> Result<Self> {
        let mut c = Cursor::new(bytes);
        if c.take(8)? != MAGIC {
            return Err(Error::new(Code::Magic, "not a commit").at(0));
        }
        let (stage, parent_off, parent_hash) = (c.u64()?, c.u64()?, c.digest()?);
        let (n, manifest_len, sig_len) = (c.u32()?, c.u32()?, c.u32()?);
        let (previous_off, reserved) = (c.u64()?, c.u32()?);
        let (table_hash, manifest_hash) = (c.digest()?, c.digest()?);
        if reserved != 0 {
            return Err(Error::new(Code::Reserved, "reserved bytes are not zero").at(76));
        }
        if sig_len as usize > SIGNATURE_CAP {
            return Err(Error::new(Code::Cap, format!("a signature of {sig_len} bytes, cap {SIGNATURE_CAP}")).at(64));
        }
        if u64::from(manifest_len) > MANIFEST_CAP {
            return Err(Error::new(Code::Cap, format!("a manifest of {manifest_len} bytes, cap {MANIFEST_CAP}")).at(60));
        }
        let first = parent_off == 0;
        if stage == 0 || parent_off >= at || previous_off >= at || first != (parent_hash == [0; 32]) {
            return Err(Error::new(
                Code::Layout,
                format!("stage {stage} with parent at {parent_off}, previous at {previous_off}: not a chain"),
            )
            .at(8));
        }
        let n = c.count(n.into(), RECORD as u64, SECTION_CAP, "sections").map_err(|e| e.at(56))?;
        let table = c.clone().take((n * RECORD) as u64)?;
        if *blake3::hash(table).as_bytes() != table_hash {
            return Err(Error::new(Code::Digest, "the section table's digest does not match").at(80));
        }
        let mut sections = Vec::with_capacity(n);
        let mut end = FIRST;
        for i in 0..n {
            let record = c.offset() as u64;
            let s = section(&mut c).map_err(|e| e.in_section(format!("section {i}")).at(record))?;
            let stop = s.offset.checked_add(s.len);
            if s.offset < end || s.offset % PAGE != 0 || s.len == 0 || stop.is_none_or(|e| e > at) {
                return Err(Error::new(
                    Code::Layout,
                    format!("{}+{} is not a page-aligned range between {end} and {at}", s.offset, s.len),
                )
                .in_section(format!("section {i}"))
                .at(record + 32));
            }
            end = s.offset + s.len;
            sections.push(s);
        }
        let manifest = c.take(manifest_len.into())?.to_vec();
        if *blake3::hash(&manifest).as_bytes() != manifest_hash {
            return Err(Error::new(Code::Digest, "the manifest's digest does not match").at(112));
        }
        let signature = c.take(sig_len.into())?.to_vec();
        if c.remaining() != 0 {
            return Err(
                Error::new(Code::Layout, format!("{} bytes after the commit", c.remaining())).at(c.offset() as u64)
            );
        }
        Ok(Self { stage, parent_off, parent_hash, previous_off, sections, manifest, signature })
    }
}

fn section(c: &mut Cursor<'_>) -> Result<SectionRecord> {
    let hash = c.digest()?;
    let (offset, len, kind) = (c.u64()?, c.u64()?, c.u16()?);
    let (codec, flags) = (c.u16()?, c.u32()?);
    if codec != 0 {
        return Err(Error::new(Code::Unsupported, format!("codec {codec} is unknown")).hint("use a newer conpet"));
    }
    // The place of the chunk tree (unused by this release) and 8 reserved bytes.
    let rest = c.take(40)?;
    if flags != 0 || rest.iter().any(|b| *b != 0) {
        return Err(Error::new(Code::Reserved, "reserved bytes are not zero"));
    }
    Ok(SectionRecord { hash, offset, len, kind: SectionKind::from_id(kind)? })
}
