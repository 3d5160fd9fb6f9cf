//! Bundles in OCI layouts, and bundles written again.

use crate::Q;
use crate::folder::{Folder, World};
use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::exchange::{NewTask, oci, peft};
use conpet_formats::{Code, Error};
use std::path::Path;

fn task(name: &str) -> NewTask {
    NewTask { name: name.into(), template: "{input}".into(), max_answer: 8 }
}

/// A bundle of two imported tasks.
fn bundle(world: &World) -> std::path::PathBuf {
    let path = world.path("b.cpb");
    let first = peft::read(&Folder::lora(world, &[(Q, 4)]).write(world), &world.spec, &world.base).unwrap();
    let mut draft = Draft::new(world.base.clone(), "import", 0);
    first.enter(&mut draft, &world.spec, task("first")).unwrap();
    draft.create(&path).unwrap();
    let second = peft::read(&Folder::ia3(world).write(world), &world.spec, &world.base).unwrap();
    let mut draft = Draft::from_bundle(&Bundle::open(&path).unwrap());
    assert_eq!(second.clone().enter(&mut draft, &world.spec, task("first")).unwrap_err().code(), Code::Duplicate);
    second.enter(&mut draft, &world.spec, task("second")).unwrap();
    draft.append(&path).unwrap();
    path
}

#[test]
fn a_module_below_the_trunk_is_refused() {
    let world = World::llama();
    let p = peft::read(&Folder::ia3(&world).write(&world), &world.spec, &world.base).unwrap();
    let mut draft = Draft::new(world.base.clone(), "dynamic", 1);
    let e = p.enter(&mut draft, &world.spec, task("t")).unwrap_err();
    assert!(e.code() == Code::Layout && e.message().contains("trunk of 1"), "{e}");
    assert!(draft.manifest.tasks.is_empty(), "nothing was entered");
}

#[test]
fn d07_a_bundle_written_again_stage_by_stage_is_the_same_bytes() {
    let world = World::llama();
    let path = bundle(&world);
    let again = world.path("again.cpb");
    for stage in 1..=2 {
        let from = Bundle::open_stage(&path, stage).unwrap();
        let mut draft = match stage {
            1 => Draft::new(world.base.clone(), "import", 0),
            _ => Draft::from_bundle(&Bundle::open(&again).unwrap()),
        };
        for i in draft.manifest.modules.len()..from.section_records().len() {
            draft.add_section(from.section_records()[i].kind, from.section(i as u32).unwrap().to_vec());
        }
        draft.manifest = from.manifest().clone();
        if stage == 1 { draft.create(&again).unwrap() } else { draft.append(&again).unwrap() }
    }
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn a_layout_carries_bundle_and_base_and_is_the_same_every_time() {
    let world = World::llama();
    let path = bundle(&world);
    // What follows the end is an unfinished append, and stays behind.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&whole[..], &[7; 5000]].concat()).unwrap();
    let written = oci::write(&world.path("a"), &path, Some(&world.path("base.gguf"))).unwrap();
    assert_eq!(oci::write(&world.path("b"), &path, Some(&world.path("base.gguf"))).unwrap(), written);
    oci::read(&world.path("a"), &world.path("new.cpb"), Some(&world.path("new.gguf"))).unwrap();
    assert_eq!(std::fs::read(world.path("new.cpb")).unwrap(), whole);
    assert_eq!(std::fs::read(world.path("new.gguf")).unwrap(), std::fs::read(world.path("base.gguf")).unwrap());
    // Every blob is called by its own SHA-256, the empty config by the specification's.
    let empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    assert_eq!(std::fs::read(world.path("a/blobs/sha256").join(empty)).unwrap(), b"{}");
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(world.path("a/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], written.manifest.as_str());
    assert_eq!(index["manifests"][0]["artifactType"], oci::BUNDLE);
    assert_eq!(std::fs::read_dir(world.path("a/blobs/sha256")).unwrap().count(), 4);
    assert_eq!(oci::write(&world.path("a"), &path, None).unwrap_err().code(), Code::Duplicate);
    let other = World::of(&conpet_formats::tiny::TinyConfig { seed: 5, ..World::config() });
    let e = oci::write(&world.path("c"), &path, Some(&other.path("base.gguf"))).unwrap_err();
    assert_eq!(e.code(), Code::BaseMismatch);
    assert!(!world.path("c").exists());
    let e = oci::read(&world.path("a"), &world.path("x.cpb"), Some(&other.path("base.gguf"))).unwrap_err();
    assert_eq!(e.code(), Code::BaseMismatch);
    assert!(!world.path("x.cpb").exists());
}

#[test]
fn damaged_layouts_are_refused_and_nothing_is_written() {
    let world = World::llama();
    oci::write(&world.path("a"), &bundle(&world), None).unwrap();
    let index = std::fs::read_to_string(world.path("a/index.json")).unwrap();
    let digest = index.split("sha256:").nth(1).unwrap()[..64].to_owned();
    let manifest_path = world.path("a/blobs/sha256").join(&digest);
    let manifest = std::fs::read_to_string(&manifest_path).unwrap();
    let layer = manifest.split("sha256:").nth(2).unwrap()[..64].to_owned();
    let layer_path = world.path("a/blobs/sha256").join(&layer);
    let read = || -> Error {
        let e = oci::read(&world.path("a"), &world.path("new.cpb"), None).unwrap_err();
        assert!(!world.path("new.cpb").exists());
        e
    };
    let with = |path: &Path, bytes: &[u8], code: Code| {
        let good = std::fs::read(path).unwrap();
        std::fs::write(path, bytes).unwrap();
        let e = read();
        assert_eq!(e.code(), code, "{e}");
        std::fs::write(path, good).unwrap();
    };
    let mut bad = std::fs::read(&layer_path).unwrap();
    bad[9000] ^= 1;
    with(&layer_path, &bad, Code::Digest);
    with(&layer_path, &bad[..8192], Code::Truncated);
    with(&manifest_path, manifest.replace(":2,", ":3,").as_bytes(), Code::Digest);
    with(&manifest_path, b"{}", Code::Truncated);
    let place = world.path("a/index.json");
    with(&place, index.replace(&digest, &digest.to_uppercase()).as_bytes(), Code::Value);
    with(&place, index.replace(&digest, "../../../../etc/passwd").as_bytes(), Code::Value);
    with(&place, index.replace("sha256:", "sha512:").as_bytes(), Code::Value);
    with(&place, index.replace("\"manifests\":", "\"manifests\":[],\"manifests\":").as_bytes(), Code::Value);
    with(&place, b"{\"schemaVersion\":2,\"manifests\":[]}", Code::Unsupported);
    with(&place, index.replace(oci::BUNDLE, "application/x").as_bytes(), Code::Unsupported);
    with(&place, index.replace("\"size\":", "\"size\":9999999").as_bytes(), Code::Cap);
    with(&place, &b" ".repeat(5 << 20), Code::Cap);
    with(&world.path("a/oci-layout"), b"{\"imageLayoutVersion\":\"2.0.0\"}", Code::Version);
    let e = oci::read(&world.path("a"), &world.path("new.cpb"), Some(&world.path("none.gguf"))).unwrap_err();
    assert_eq!(e.code(), Code::Missing, "{e}");
    oci::read(&world.path("a"), &world.path("new.cpb"), Some(&world.path("base.gguf"))).unwrap();
    assert_eq!(oci::read(&world.path("a"), &world.path("new.cpb"), None).unwrap_err().code(), Code::Duplicate);
}
