//! Bundles made here, and command lines run in-process.

pub(crate) mod checkpoint;

use conpet_formats::bundle::manifest::ModuleEntry;
use conpet_formats::bundle::{Bundle, Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::fingerprint::base_ref;
use conpet_formats::gguf::Gguf;
use conpet_formats::pet::PetKind;
use conpet_formats::pet::lora::{Scaling, a_name, b_name};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_tools::ExitStatus;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What a command did.
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A temporary folder with a base `base.gguf` and a bundle `b.cpb` of two stages.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

const SITE: &str = "blk.1.attn_q.weight";

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let base =
            tiny::base(&TinyConfig { layers: 2, hidden: 32, heads: 2, kv_heads: 1, ffn: 32, ..TinyConfig::default() });
        let base = base.unwrap();
        std::fs::write(place.path("base.gguf"), &base).unwrap();
        let base = base_ref(&Gguf::parse(&base).unwrap()).unwrap();
        let path = place.path("b.cpb");
        with_task(Draft::new(base, "dynamic", 1), "intent", &["lights on", "lights off"]).create(&path).unwrap();
        let next = Draft::from_bundle(&Bundle::open(&path).unwrap());
        with_task(next, "topic", &["billing", "it's \"broken\"", "grüße"]).append(&path).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// A copy of the bundle with some bytes changed.
    pub(crate) fn damaged(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
        let mut bytes = self.bytes("b.cpb");
        damage(&mut bytes);
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::open(&self.path("b.cpb")).unwrap()
    }

    /// Runs `conpet-inspect` with these words, `@` standing for the temporary folder. In what it
    /// prints, the folder is `@` again and long hex is shortened, since digests change with
    /// every field that a manifest gains.
    pub(crate) fn run(&self, words: &str) -> Ran {
        let here = self.dir.path().to_str().unwrap();
        let args = words.split(' ').map(|w| OsString::from(w.replace('@', here)));
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status =
            conpet_tools::run([OsString::from("conpet-inspect")].into_iter().chain(args), &mut stdout, &mut stderr);
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "control characters: {text:?}");
            hide_hex(&text.replace(here, "@"))
        };
        Ran { status, stdout: text(stdout), stderr: text(stderr) }
    }
}

impl Ran {
    /// All of it, for snapshots.
    pub(crate) fn whole(&self) -> String {
        format!("{:?} ({})\n{}--- stderr\n{}", self.status, self.status as u8, self.stdout, self.stderr)
    }
}

/// A stage with one more task, module and head.
pub(crate) fn with_task(mut d: Draft, name: &str, labels: &[&str]) -> Draft {
    let id = d.manifest.tasks.len() as u32;
    let mut w = TensorsWriter::new();
    let weights: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) / 64.0 * (id + 1) as f32).collect();
    w.add_f16(&a_name(SITE), &[2, 32], &weights).unwrap();
    w.add_f16(&b_name(SITE), &[32, 2], &weights).unwrap();
    let section = d.add_section(SectionKind::Module, w.finish().unwrap());
    d.manifest.target_sets.insert("q1".into(), vec![SITE.into()]);
    d.manifest.modules.push(ModuleEntry {
        alpha: Some(Decimal::from_f64(4.0)),
        dtype: "F16".into(),
        id: format!("m{id:04}"),
        kind: PetKind::Lora,
        pet: None,
        rank: Some(2),
        scale: Some(Decimal::from_f64(2.0)),
        scaling: Some(Scaling::AlphaOverRank),
        section,
        site_count: 1,
        targets: "q1".into(),
        train: BTreeMap::from([("seed".into(), "1".into())]),
    });
    let (n, feature) = (labels.len(), FeatureSpec::single(2, Pool::Mean, StateNorm::Output));
    let mut d = tiny::with_task(d, name, labels, feature, &vec![0.25; n * 32], &vec![-1.0; n]).unwrap();
    let head = &mut d.manifest.heads[id as usize];
    (head.blend, head.temperature) = (Decimal::from_f64(0.5), Decimal::from_f64(1.25));
    d.manifest.tasks[id as usize].module = Some(id);
    d
}

/// Replaces runs of 16 or more hex digits with `[16]` or `[64]`, their length.
fn hide_hex(text: &str) -> String {
    let mut out = String::new();
    let mut run = String::new();
    for c in text.chars().chain(['\n']) {
        if matches!(c, '0'..='9' | 'a'..='f') {
            run.push(c);
            continue;
        }
        match run.len() {
            0..16 => out += &run,
            n => out += &format!("[{n}]"),
        }
        run.clear();
        out.push(c);
    }
    out.pop();
    out
}

/// The offset of a section in the file.
pub(crate) fn section_at(path: &Path, index: usize) -> usize {
    Bundle::open(path).unwrap().section_records()[index].offset as usize
}
