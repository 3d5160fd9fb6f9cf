//! Command runs on bases: `gguf`.
//!
//! The snapshots are the promise to users and scripts; change them on purpose only.

use crate::common::Place;
use conpet_tools::ExitStatus;
use insta::assert_snapshot;

#[test]
fn gguf() {
    let p = Place::new();
    let ran = p.run("gguf @/base.gguf --cross-check");
    // The names of all tensors would only repeat what the base's own tests say.
    let head: Vec<&str> = ran.stdout.lines().take(12).collect();
    assert_snapshot!(head.join("\n"), @r"
    file       @/base.gguf
    gguf       version 3, 43,008 bytes
    data       at 12,832, aligned to 32
    runs       yes
    tensors    20 tensors, 27,936 parameters: 5 x F32, 15 x Q8_0
    cross      gguf-rs agrees

    metadata
    key                                     type         value
    general.architecture                    string       llama
    general.name                            string       conpet tiny
    llama.block_count                       u32          2
    ");
    let json: serde_json::Value = serde_json::from_str(&p.run("gguf @/base.gguf --cross-check --json").stdout).unwrap();
    assert_eq!(json["schema"], "conpet.inspect.gguf/1");
    assert_eq!(json["cross_check"], serde_json::json!([]));
    assert_eq!(json["tensors"][0]["name"], "token_embd.weight");
    assert_eq!(json["unsupported"], serde_json::Value::Null);
    assert_snapshot!(p.run("gguf @/b.cpb").whole(), @r#"
    Usage (2)
    --- stderr
    error: @/b.cpb: not a GGUF file: it begins with "\\x89CPB" [E_MAGIC at byte 0]
    hint: give a llama.cpp model file (*.gguf)
    "#);
}

/// Type ids 4, 5 and from 40 on make gguf-rs panic or guess; it must never see them.
#[test]
fn cross_check_refuses_what_gguf_rs_does_not_survive() {
    let p = Place::new();
    for (id, called) in [(4u32, "Q4_2"), (5, "Q4_3"), (40, "NVFP4"), (99, "type 99")] {
        let mut bytes = p.bytes("base.gguf");
        // The last tensor, an F32 of 32 numbers: its entry ends `..., ne 32, type 0, offset`.
        let name = b"output_norm.weight";
        let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 12;
        bytes[at..at + 4].copy_from_slice(&id.to_le_bytes());
        std::fs::write(p.path("odd.gguf"), bytes).unwrap();
        let plain = p.run("gguf @/odd.gguf");
        assert_eq!(plain.status, ExitStatus::Success);
        assert!(plain.stdout.contains(&format!("the type {called}, which cannot be run")), "{}", plain.stdout);
        let ran = p.run("gguf @/odd.gguf --cross-check");
        assert_eq!(ran.status, ExitStatus::Usage);
        assert!(ran.stderr.contains("which gguf-rs does not survive"), "{}", ran.stderr);
    }
}

/// Any shard shows the whole base, and every command that takes a base takes it.
#[test]
fn a_split_base_is_one_base() {
    let p = Place::new();
    for (name, bytes) in conpet_formats::tiny::split(&p.bytes("base.gguf"), "part", 2).unwrap() {
        std::fs::write(p.path(&name), bytes).unwrap();
    }
    let shown = p.run("gguf @/part-00002-of-00002.gguf --cross-check");
    let head: Vec<&str> = shown.stdout.lines().take(7).collect();
    assert_snapshot!(head.join("\n"), @r"
    file       @/part-00001-of-00002.gguf
               @/part-00002-of-00002.gguf
    gguf       version 3, 43,232 bytes in 2 shards
    data       at 12,352, aligned to 32
    runs       yes
    tensors    20 tensors, 27,936 parameters: 5 x F32, 15 x Q8_0
    cross      gguf-rs agrees
    ");
    let tensors: Vec<&str> = shown.stdout.lines().filter(|l| l.contains("attn_q.weight")).collect();
    assert_snapshot!(tensors.join("\n"), @r"
    blk.0.attn_q.weight       Q8_0  [32, 32]       1: 29,088   1,088
    blk.1.attn_q.weight       Q8_0  [32, 32]          2: 960   1,088
    ");
    let json = |file: &str| -> serde_json::Value {
        serde_json::from_str(&p.run(&format!("gguf @/{file} --json")).stdout).unwrap()
    };
    let (whole, split) = (json("base.gguf"), json("part-00001-of-00002.gguf"));
    assert_eq!(whole["numbers"], split["numbers"]);
    assert_eq!((whole["shards"].as_array().unwrap().len(), split["shards"].as_array().unwrap().len()), (1, 2));
    assert_eq!((&split["tensors"][0]["shard"], &split["tensors"][19]["shard"]), (&0.into(), &1.into()));
    let verified = p.run("verify @/b.cpb --full -m @/part-00002-of-00002.gguf");
    assert_eq!(verified.status, ExitStatus::Success, "{}", verified.whole());
    // An OCI layout holds it as one file: the base that was split.
    let packed = p.run("export @/b.cpb --to oci @/layout -m @/part-00001-of-00002.gguf");
    assert_eq!(packed.status, ExitStatus::Success, "{}", packed.whole());
    let back = p.run("import @/layout -b @/c.cpb -m @/back.gguf");
    assert_eq!(back.status, ExitStatus::Success, "{}", back.whole());
    assert!(p.bytes("back.gguf") == p.bytes("base.gguf"));
    std::fs::remove_file(p.path("part-00001-of-00002.gguf")).unwrap();
    assert_snapshot!(p.run("gguf @/part-00002-of-00002.gguf").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/part-00001-of-00002.gguf: shard 1 of 2 is missing [E_MISSING]
    hint: download or copy all shards of one base again, into one folder
    ");
}
