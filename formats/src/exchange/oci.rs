//! OCI image layouts: a bundle, and if wanted its base, as blobs named by their SHA-256, so that any
//! registry can carry them (image-spec 1.1: image-layout, manifest, descriptor).
//!
//! ```text
//! oci-layout                {"imageLayoutVersion":"1.0.0"}
//! index.json                one manifest, of artifactType application/vnd.conpet.bundle.v1
//! blobs/sha256/<hex>        the manifest, its empty config, the bundle, the base
//! ```
//!
//! Layers are whole files, not archives: a blob can be mapped where it lies.

use crate::bundle::{Bundle, verify};
use crate::error::clip;
use crate::fingerprint::{CheckDepth, check_base};
use crate::gguf::{Shards, Whole};
use crate::mmap::Mapped;
use crate::{Code, Error, Result, fs};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// The type of the artifact, and the media type of the bundle's layer.
pub const BUNDLE: &str = "application/vnd.conpet.bundle.v1";
/// The media type of the base's layer, as Docker's model-spec has it.
pub const BASE: &str = "application/vnd.docker.ai.gguf.v3";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const TITLE: &str = "org.opencontainers.image.title";
const LAYOUT: &str = "oci-layout";
/// Longest JSON document of a layout, in bytes.
const CAP: u64 = 4 << 20;

/// Describes a blob. Unknown properties are tolerated, as the specification demands; a property that
/// occurs twice is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Digest of the manifest, `sha256:<hex>`: what a registry calls the artifact by.
    pub manifest: String,
    /// Bytes of all blobs.
    pub bytes: u64,
}

/// Writes a layout into a new folder: all stages of the bundle, and its base if one is given.
///
/// # Errors
/// If the bundle is damaged or the base is not its own; then there is no folder.
pub fn write(folder: &Path, bundle: &Path, base: Option<&Path>) -> Result<Written> {
    let opened = Bundle::open(bundle)?;
    let file = Mapped::open(bundle)?;
    // Bytes after the end are an unfinished append.
    let bytes = file.get(..opened.end() as usize).ok_or_else(|| changed(bundle))?;
    let base = base.map(Shards::open).transpose()?;
    let gguf = base.as_ref().map(Shards::gguf).transpose()?;
    if let (Some(files), Some(gguf)) = (&base, &gguf) {
        check_base(&opened.manifest().base, gguf, CheckDepth::Full).map_err(|e| e.in_file(files.path()))?;
    }
    let mut written = None;
    fs::create_folder(folder, |dir| {
        for d in ["blobs", "blobs/sha256"] {
            let d = dir.join(d);
            std::fs::create_dir(&d).map_err(|e| Error::io("create", e).in_file(&d))?;
        }
        let mut total = 0;
        let mut layer = |title: &Path, media_type: &str, pieces: &[&[u8]]| {
            let mut d = blob(dir, media_type, pieces)?;
            total += d.size;
            let title = title.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            d.annotations.insert(TITLE.into(), title);
            Ok::<_, Error>(d)
        };
        let mut layers = vec![layer(bundle, BUNDLE, &[bytes])?];
        // The bundle may have grown or been rolled back between opening and mapping: what was written counts.
        let copy = blob_path(dir, &layers[0].digest);
        if let Some(f) = verify(&copy, true)?.into_iter().find(|f| f.damage) {
            return Err(Error::new(Code::Digest, f.text)
                .in_file(bundle)
                .hint("run conpet-inspect verify on the bundle"));
        }
        // A split base becomes one file, of the same fingerprint.
        if let (Some(files), Some(gguf)) = (&base, &gguf) {
            layers.push(layer(&files.whole_path(), BASE, &Whole::of(gguf).pieces().collect::<Vec<_>>())?);
        }
        let m = opened.manifest();
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.into()),
            artifact_type: Some(BUNDLE.into()),
            config: blob(dir, EMPTY, &[b"{}"])?,
            layers,
            annotations: BTreeMap::from([
                ("org.conpet.base.name".into(), m.base.name.clone()),
                ("org.conpet.base.blake3".into(), m.base.file_blake3.join(" ")),
                ("org.conpet.stage".into(), m.stage.to_string()),
            ]),
        };
        let mut d = blob(dir, MANIFEST, &[&json(&manifest)])?;
        written = Some(Written { manifest: d.digest.clone(), bytes: total + d.size + 2 });
        d.artifact_type = Some(BUNDLE.into());
        let index = Index { schema_version: 2, media_type: Some(INDEX.into()), manifests: vec![d] };
        put(&dir.join("index.json"), &[&json(&index)])?;
        put(&dir.join(LAYOUT), &[&json(&Layout { image_layout_version: "1.0.0".into() })])
    })?;
    written.ok_or_else(|| changed(bundle))
}

fn changed(bundle: &Path) -> Error {
    Error::new(Code::Truncated, "the bundle became shorter while it was read").in_file(bundle).hint("try again")
}

/// Takes the bundle out of a layout into a new file, and its base into another if `base` names one that
/// does not exist; one that exists must be the bundle's.
///
/// Sizes are checked before anything is hashed, and digests before anything is parsed.
///
/// # Errors
/// If the layout holds no bundle, or a blob is not what its descriptor says; then no bundle was written.
pub fn read(folder: &Path, bundle: &Path, base: Option<&Path>) -> Result<()> {
    let layout: Layout = parse(&folder.join(LAYOUT), &document(&folder.join(LAYOUT))?)?;
    if layout.image_layout_version != "1.0.0" {
        let v = clip(&layout.image_layout_version);
        return Err(Error::new(Code::Version, format!("image layout {v:?}, only 1.0.0 is read")).in_file(folder));
    }
    let index_path = folder.join("index.json");
    let index: Index = parse(&index_path, &document(&index_path)?)?;
    let ours = |d: &&Descriptor| d.media_type == MANIFEST && d.artifact_type.as_deref().is_none_or(|t| t == BUNDLE);
    let found: Vec<&Descriptor> = index.manifests.iter().filter(ours).collect();
    let [descriptor] = found.as_slice() else {
        return Err(Error::new(Code::Unsupported, format!("{} manifests may be of a bundle, not 1", found.len()))
            .in_file(&index_path)
            .hint("give a layout that conpet-inspect export --to oci wrote, or one pulled by digest"));
    };
    if descriptor.size > CAP {
        return Err(
            Error::new(Code::Cap, format!("a manifest of {} bytes, cap {CAP}", descriptor.size)).in_file(&index_path)
        );
    }
    let path = blob_path(folder, &descriptor.digest);
    let manifest: Manifest = parse(&path, &checked(folder, descriptor)?)?;
    if manifest.artifact_type.as_deref() != Some(BUNDLE) {
        let got = clip(manifest.artifact_type.as_deref().unwrap_or("nothing"));
        return Err(Error::new(Code::Unsupported, format!("artifactType is {got:?}, not {BUNDLE:?}")).in_file(&path));
    }
    let one = |media_type: &str| {
        let found: Vec<&Descriptor> = manifest.layers.iter().filter(|l| l.media_type == media_type).collect();
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            more => Err(Error::new(Code::Duplicate, format!("{} layers are {media_type}", more.len())).in_file(&path)),
        }
    };
    if let Some(l) = manifest.layers.iter().find(|l| l.media_type != BUNDLE && l.media_type != BASE) {
        let what = clip(&l.media_type);
        return Err(Error::new(Code::Unsupported, format!("a layer is {what:?}, which is not known")).in_file(&path));
    }
    let layer = one(BUNDLE)?.ok_or_else(|| Error::new(Code::Missing, "no layer is a bundle").in_file(&path))?;
    let bytes = checked(folder, layer)?;
    let blob = blob_path(folder, &layer.digest);
    if let Some(f) = verify(&blob, true)?.into_iter().find(|f| f.damage) {
        return Err(Error::new(Code::Digest, f.text)
            .in_file(&blob)
            .hint("the bundle was damaged before it was packed"));
    }
    if let Some(to) = base {
        let there = to.exists();
        let files = match (there, one(BASE)?) {
            (true, _) => Shards::open(to)?,
            (false, Some(l)) => Shards::of(checked(folder, l)?, to)?,
            (false, None) => {
                return Err(Error::new(Code::Missing, "the layout holds no base")
                    .in_file(folder)
                    .hint("give the base's own file with -m, or leave -m out"));
            }
        };
        check_base(&Bundle::open(&blob)?.manifest().base, &files.gguf()?, CheckDepth::Full)
            .map_err(|e| e.in_file(to))?;
        if !there {
            put(to, &[files.map(0)])?;
        }
    }
    put(bundle, &[&bytes])
}

/// A blob, after its length and digest were compared with its descriptor.
fn checked(folder: &Path, d: &Descriptor) -> Result<Mapped> {
    let hex = d.digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Error::new(Code::Value, format!("digest {:?} is not sha256: and 64 digits", clip(&d.digest)))
            .in_file(folder));
    }
    let path = blob_path(folder, &d.digest);
    let map = Mapped::open(&path)?;
    if map.len() as u64 != d.size {
        return Err(
            Error::new(Code::Truncated, format!("{} bytes, its descriptor says {}", map.len(), d.size)).in_file(&path)
        );
    }
    if digest(&[&map]) != d.digest {
        return Err(Error::new(Code::Digest, "its SHA-256 is not its name")
            .in_file(&path)
            .hint("the blob is damaged; pull the artifact again"));
    }
    Ok(map)
}

fn document(path: &Path) -> Result<Mapped> {
    let map = Mapped::open(path)?;
    if map.len() as u64 > CAP {
        return Err(Error::new(Code::Cap, format!("{} bytes, cap {CAP}", map.len())).in_file(path));
    }
    Ok(map)
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Code::Value, format!("not the JSON it should be: {e}")).in_file(path))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn digest(pieces: &[&[u8]]) -> String {
    let mut h = Sha256::new();
    pieces.iter().for_each(|p| h.update(p));
    let hex: String = h.finalize().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// Where a blob lies; the digest's text was checked or made here.
fn blob_path(folder: &Path, digest: &str) -> std::path::PathBuf {
    folder.join("blobs").join(digest.replace(':', "/"))
}

/// Writes a blob; equal content is one blob.
fn blob(folder: &Path, media_type: &str, pieces: &[&[u8]]) -> Result<Descriptor> {
    let digest = digest(pieces);
    let path = blob_path(folder, &digest);
    if !path.exists() {
        put(&path, pieces)?;
    }
    Ok(Descriptor {
        media_type: media_type.into(),
        digest,
        size: pieces.iter().map(|p| p.len() as u64).sum(),
        artifact_type: None,
        annotations: BTreeMap::new(),
    })
}

fn put(path: &Path, pieces: &[&[u8]]) -> Result<()> {
    fs::create_new(path, |w| pieces.iter().try_for_each(|p| w.write_all(p)).map_err(|e| Error::io("write", e)))
}
