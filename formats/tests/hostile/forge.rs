//! Good files to spoil, and the means to make a spoiled one whole again but for what is meant.

use conpet_formats::bundle::manifest::{ModuleEntry, SelectorEntry};
use conpet_formats::bundle::{Bundle, Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::fingerprint::base_ref;
use conpet_formats::gguf::Gguf;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::{Lora, PetSpec, lora};
use conpet_formats::selector::{self, SelectorKind};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, TinyConfig};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

pub(crate) const PAGE: usize = 4096;
/// Tasks of [`bundle_bytes`], and as many stages.
pub(crate) const TASKS: usize = 2;
/// Width of [`base`].
pub(crate) const HIDDEN: usize = 32;
const SITE: &str = "blk.1.attn_q.weight";

/// What the base is made from.
pub(crate) fn config() -> TinyConfig {
    TinyConfig { layers: 2, hidden: HIDDEN, heads: 2, kv_heads: 1, ffn: 32, ..TinyConfig::default() }
}

/// A base.
pub(crate) fn base() -> &'static [u8] {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    BASE.get_or_init(|| tiny::base(&config()).unwrap())
}

/// A bundle of two stages on it, each with a module, a head, a selector and its statistics.
pub(crate) fn bundle_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.cpb");
        let reference = base_ref(&Gguf::parse(base()).unwrap()).unwrap();
        with_task(Draft::new(reference, "dynamic", 1), "one").create(&path).unwrap();
        with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), "two").append(&path).unwrap();
        std::fs::read(path).unwrap()
    })
}

/// The same, opened.
pub(crate) fn bundle() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| Bundle::from_bytes(bundle_bytes().to_vec(), Path::new("b.cpb")).unwrap())
}

/// A stage with one more task.
pub(crate) fn with_task(mut d: Draft, name: &str) -> Draft {
    let id = d.manifest.tasks.len() as u32;
    let feature = FeatureSpec::single(1, Pool::Mean, StateNorm::Rms);
    let section = d.add_section(SectionKind::Module, module());
    d.manifest.target_sets.insert("q1".into(), vec![SITE.into()]);
    let pet = PetSpec::lora(Lora { rank: 2, alpha: 4.0, scaling: lora::Scaling::AlphaOverRank });
    let entry = ModuleEntry::new(id as usize, &pet, section, "q1".into(), 1);
    d.manifest.modules.push(ModuleEntry { train: BTreeMap::from([("seed".into(), "1".into())]), ..entry });
    let weights = [0.5; 2 * HIDDEN];
    let mut d = tiny::with_task(d, name, &["no", "yes"], feature.clone(), &weights, &[id as f32, 1.0]).unwrap();
    d.manifest.heads[id as usize].temperature = Decimal::from_f64(1.25);
    d.manifest.tasks[id as usize].module = Some(id);
    let mut stats = TensorsWriter::new();
    stats.add_f32("counts", &[2 * (id as usize + 1)], &vec![3.0; 2 * (id as usize + 1)]).unwrap();
    d.manifest.selector = SelectorEntry {
        feature: Some(feature),
        kind: SelectorKind::Lda,
        section: Some(d.add_section(SectionKind::Selector, selector(id as usize + 1))),
        stats: Some(d.add_section(SectionKind::Stats, stats.finish().unwrap())),
        ..d.manifest.selector
    };
    d
}

/// The payload of a LoRA of rank 2 at one site.
pub(crate) fn module() -> Vec<u8> {
    let mut w = TensorsWriter::new();
    let weights: Vec<f32> = (0..2 * HIDDEN).map(|i| (i as f32 - 31.5) / 64.0).collect();
    w.add_f16(&lora::a_name(SITE), &[2, HIDDEN], &weights).unwrap();
    w.add_f16(&lora::b_name(SITE), &[HIDDEN, 2], &weights).unwrap();
    w.finish().unwrap()
}

/// The payload of a selector with two classes for each of `tasks` tasks.
pub(crate) fn selector(tasks: usize) -> Vec<u8> {
    selector_of(&(0..tasks as i32).flat_map(|t| [t, t]).collect::<Vec<_>>(), HIDDEN)
}

/// A selector whose classes belong to these tasks.
pub(crate) fn selector_of(class_task: &[i32], dim: usize) -> Vec<u8> {
    let n = class_task.len();
    let mut w = TensorsWriter::new();
    let weights: Vec<f32> = (0..n * dim).map(|i| (i % 7) as f32 - 3.0).collect();
    w.add_f32(selector::WEIGHT, &[n, dim], &weights).unwrap();
    w.add_f32(selector::BIAS, &[n], &vec![0.5; n]).unwrap();
    w.add_i32(selector::CLASS_TASK, &[n], class_task).unwrap();
    w.finish().unwrap()
}

/// A safetensors payload from a hand-written header and data.
pub(crate) fn payload(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A file of `len` bytes that begins with these, mapped; the rest takes no room on the disk.
pub(crate) fn sparse(head: &[u8], len: u64) -> Mapped {
    use std::io::Write as _;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(head).unwrap();
    file.set_len(len).unwrap();
    Mapped::of(&file).unwrap()
}

/// Overwrites bytes.
pub(crate) fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A little-endian number of the file; 0 where the file does not reach.
pub(crate) fn get(file: &[u8], at: usize, width: usize) -> u64 {
    let bytes = file.get(at..at.saturating_add(width)).unwrap_or_default();
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Where the current commit lies, by slot A.
pub(crate) fn commit_at(file: &[u8]) -> usize {
    get(file, 40, 8) as usize
}

/// Corrects every digest and checksum of the bundle's last stage and of its slots, as far as they lie in
/// the file: what is wrong with it then is wrong on purpose.
pub(crate) fn seal(file: &mut [u8]) {
    for slot in [0, PAGE] {
        let (at, len) = (get(file, slot + 40, 8) as usize, get(file, slot + 48, 4) as usize);
        let whole = |end: &usize| *end <= file.len() && len >= 144 && slot + 128 <= file.len();
        let Some(range) = at.checked_add(len).filter(whole).map(|e| at..e) else {
            continue;
        };
        let (n, manifest) = (get(file, at + 56, 4) as usize, get(file, at + 60, 4) as usize);
        let table = at + 144..at.saturating_add(144).saturating_add(n.saturating_mul(96));
        let manifest = table.end..table.end.saturating_add(manifest);
        for (place, part) in [(at + 80, table), (at + 112, manifest)] {
            if let Some(bytes) = file.get(part) {
                let digest = blake3::hash(bytes);
                put(file, place, digest.as_bytes());
            }
        }
        let digest = blake3::hash(&file[range]);
        put(file, slot + 64, digest.as_bytes());
        seal_slot(file, slot);
    }
}

/// Corrects a slot's checksum.
pub(crate) fn seal_slot(file: &mut [u8], slot: usize) {
    if slot + 128 <= file.len() {
        let crc = crc32c::crc32c(&file[slot..slot + 124]);
        put(file, slot + 124, &crc.to_le_bytes());
    }
}

/// Gives the current commit, which ends the file, another manifest.
pub(crate) fn with_manifest(file: &[u8], manifest: &[u8]) -> Vec<u8> {
    let at = commit_at(file);
    let begin = at + 144 + get(file, at + 56, 4) as usize * 96;
    let mut out = file[..begin].to_vec();
    out.extend(manifest);
    let len = out.len() - at;
    put(&mut out, at + 60, &(manifest.len() as u32).to_le_bytes());
    out.resize(out.len().next_multiple_of(PAGE), 0);
    let end = out.len() as u64;
    for slot in [0, PAGE] {
        put(&mut out, slot + 48, &(len as u32).to_le_bytes());
        put(&mut out, slot + 56, &end.to_le_bytes());
    }
    seal(&mut out);
    out
}

/// The current stage's manifest.
pub(crate) fn manifest(file: &[u8]) -> &[u8] {
    let at = commit_at(file);
    let begin = at + 144 + get(file, at + 56, 4) as usize * 96;
    &file[begin..begin + get(file, at + 60, 4) as usize]
}
