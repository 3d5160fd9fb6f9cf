//! Fuzzes files of other programs: PEFT folders, llama.cpp's LoRA files, OCI layouts. Accepted input makes a
//! whole bundle and survives export and import; rejected input leaves no file behind.

#[allow(dead_code, reason = "made for the tests of exchange; the target uses some of it")]
#[path = "../../../formats/tests/exchange/folder.rs"]
mod folder;

use crate::recipe;
use conpet_formats::bundle::manifest::BaseRef;
use conpet_formats::bundle::{Draft, SectionKind, check_manifest, verify};
use conpet_formats::exchange::{NewTask, Parcel, llama_lora, oci, peft};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::tensors::Tensors;
use folder::{Folder, World};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::OnceLock;

const WORDS: [&str; 30] = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "4097",
    "1e999",
    "0.5",
    "18446744073709551616",
    "\"\"",
    "[]",
    "{}",
    "\"LORA\"",
    "\"IA3\"",
    "\"PROMPT_TUNING\"",
    "\"PREFIX_TUNING\"",
    "\"all\"",
    "\"lora_only\"",
    "\"use_dora\":true,",
    "\"use_rslora\":true,",
    "\"rank_pattern\":{\"q_proj\":2},",
    "\"alpha_pattern\":{\".*\":3},",
    "\"modules_to_save\":[\"lm_head\"],",
    "\"fan_in_fan_out\":true,",
    "\"layers_to_transform\":[0],",
    "\"\\ud800\"",
    "\"sha256:../../etc/passwd\"",
    "\"size\":9999999999",
    "\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\"",
    "\"artifactType\":\"\"",
];

/// Good files of each kind, to be spoiled.
struct Seeds {
    spec: ModelSpec,
    base: BaseRef,
    /// Settings and tensors.
    peft: Vec<[Vec<u8>; 2]>,
    lora: Vec<u8>,
}

fn seeds() -> &'static Seeds {
    static SEEDS: OnceLock<Seeds> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let world = World::llama();
        let modules = [("model.layers.1.self_attn.q_proj", 4), ("model.layers.1.mlp.down_proj", 2)];
        let mut lora = Folder::lora(&world, &modules);
        lora.set("rank_pattern", serde_json::json!({"down_proj": 2}));
        let folders = [lora, Folder::ia3(&world), Folder::prompt(&world, 3), Folder::prefix(&world, 3)];
        let written = folders.map(|f| f.write(&world));
        let parcel = peft::read(&written[0], &world.spec, &world.base).unwrap();
        Seeds {
            lora: world.gguf(&parcel),
            peft: written.map(|dir| [peft::CONFIG, peft::MODEL].map(|f| std::fs::read(dir.join(f)).unwrap())).to_vec(),
            spec: world.spec,
            base: world.base,
        }
    })
}

pub(crate) fn run(data: &[u8]) {
    let s = seeds();
    let dir = tempfile::tempdir().unwrap();
    if let Some(file) = recipe::raw(data) {
        // Use the input as each of the files that are read.
        from_peft(dir.path(), &s.peft[0][0], file);
        from_peft(dir.path(), file, &s.peft[0][1]);
        from_lora(file);
        from_layout(dir.path(), file, b"{}", b"");
        return;
    }
    let mut u = recipe::recipe(data);
    let kind = u.int_in_range(0..=5).unwrap_or(0);
    let [config, model] = u.choose(&s.peft).unwrap_or(&s.peft[0]);
    match kind {
        0 => {
            let mut config = config.clone();
            recipe::text_edits(&mut u, &mut config, &WORDS);
            from_peft(dir.path(), &config, model);
        }
        1 => from_peft(dir.path(), config, &super::module::spoiled(data, std::slice::from_ref(model))),
        2 => {
            let mut file = s.lora.clone();
            recipe::edits(&mut u, &mut file, &super::gguf::fields(&s.lora));
            from_lora(&file);
        }
        _ => {
            let mut layer = crate::forge::bundle_bytes().to_vec();
            if kind == 3 {
                layer = super::bundle::spoiled(data);
            }
            let mut manifest = manifest(&layer).into_bytes();
            if kind == 4 {
                recipe::text_edits(&mut u, &mut manifest, &WORDS);
            }
            let mut index = index(&manifest).into_bytes();
            if kind == 5 {
                recipe::text_edits(&mut u, &mut index, &WORDS);
            }
            from_layout(dir.path(), &index, &manifest, &layer);
        }
    }
}

fn from_peft(dir: &Path, config: &[u8], model: &[u8]) {
    let s = seeds();
    std::fs::write(dir.join(peft::CONFIG), config).unwrap();
    std::fs::write(dir.join(peft::MODEL), model).unwrap();
    if let Ok(p) = peft::read(dir, &s.spec, &s.base) {
        kept(&p);
    }
}

fn from_lora(file: &[u8]) {
    let s = seeds();
    if let Ok(p) = llama_lora::read(file, &s.spec, &s.base) {
        kept(&p);
    }
}

/// Checks that the parcel fits a bundle, and survives conversion to another format and back.
fn kept(p: &Parcel) {
    let s = seeds();
    let tensors = Tensors::parse(&p.payload).expect("a payload of our own is strict");
    assert!(tensors.names().all(|n| p.sites.iter().any(|site| n.starts_with(site.as_str()))), "a tensor of no site");
    let mut draft = Draft::new(s.base.clone(), "import", 0);
    let task = NewTask { name: "t".into(), template: "{input}".into(), max_answer: 8 };
    p.clone().enter(&mut draft, &s.spec, task).expect("an empty bundle takes it");
    draft.manifest.requires = draft.manifest.modules[0]
        .pet()
        .unwrap()
        .parts()
        .iter()
        .map(|p| p.pet.kind().name())
        .map(|k| format!("kind:{k}"))
        .chain(["selector:task".into()])
        .collect();
    check_manifest(&draft.manifest, &[SectionKind::Module]).expect("a manifest of our own is good");
    let mut out = Vec::new();
    if llama_lora::write(&mut out, p, &s.spec, &s.base, "t").is_ok() {
        let again = llama_lora::read(&out, &s.spec, &s.base).expect("what was written is read");
        assert_eq!((&again.sites, &again.payload), (&p.sites, &p.payload), "another module came back");
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn manifest(layer: &[u8]) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"{kind}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:{empty}","size":2}},"layers":[{{"mediaType":"{kind}","digest":"sha256:{}","size":{}}}]}}"#,
        digest(layer),
        layer.len(),
        kind = oci::BUNDLE,
        empty = digest(b"{}"),
    )
}

fn index(manifest: &[u8]) -> String {
    format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"{}","digest":"sha256:{}","size":{}}}]}}"#,
        oci::BUNDLE,
        digest(manifest),
        manifest.len(),
    )
}

/// Imports a layout of these three files, each blob stored under its own digest.
fn from_layout(dir: &Path, index: &[u8], manifest: &[u8], layer: &[u8]) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(dir.join("index.json"), index).unwrap();
    for blob in [manifest, layer, b"{}"] {
        std::fs::write(blobs.join(digest(blob)), blob).unwrap();
    }
    let to = dir.join("new.cpb");
    match oci::read(dir, &to, None) {
        Ok(()) => {
            let found = verify(&to, true).unwrap();
            assert!(found.iter().all(|f| !f.damage), "a damaged bundle was taken out: {found:?}");
        }
        Err(_) => assert!(!to.exists(), "something was left behind"),
    }
}

/// The layout of a good bundle must be accepted, or the others would be rejected for the wrong reason.
#[test]
fn the_seeds_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let layer = crate::forge::bundle_bytes();
    let manifest = manifest(layer).into_bytes();
    from_layout(dir.path(), index(&manifest).as_bytes(), &manifest, layer);
    assert!(dir.path().join("new.cpb").exists());
    let s = seeds();
    for [config, model] in &s.peft {
        std::fs::write(dir.path().join(peft::CONFIG), config).unwrap();
        std::fs::write(dir.path().join(peft::MODEL), model).unwrap();
        kept(&peft::read(dir.path(), &s.spec, &s.base).unwrap());
    }
    kept(&llama_lora::read(&s.lora, &s.spec, &s.base).unwrap());
}
