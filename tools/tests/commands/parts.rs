//! Command runs on single parts of a bundle: `tensors`, `extract`.
//!
//! The snapshots are the promise to users and scripts; change them on purpose only.

use crate::common::{Place, section_at};
use conpet_tools::ExitStatus;
use insta::assert_snapshot;

#[test]
fn tensors() {
    let p = Place::new();
    assert_snapshot!(p.run("tensors @/b.cpb m0001").whole(), @r"
    Success (0)
    part       m0001, a module of stage 2
    bytes      448
    numbers    128

    tensor                      type  shape       norm       min      max  NaN  inf
    blk.1.attn_q.weight.lora_a  F16   [2, 32]  4.61824  -0.98438  0.98438    0    0
    blk.1.attn_q.weight.lora_b  F16   [32, 2]  4.61824  -0.98438  0.98438    0    0
    --- stderr
    ");
    assert_snapshot!(p.run("tensors @/b.cpb h0000 --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.tensors/1",
      "file": "@/b.cpb",
      "stage": 2,
      "damage": [],
      "part": "h0000",
      "section": 1,
      "kind": "head",
      "bytes": 512,
      "numbers": 66,
      "tensors": [
        {
          "name": "bias",
          "dtype": "F32",
          "shape": [
            2
          ],
          "norm": 1.[16],
          "min": -1.0,
          "max": -1.0,
          "nan": 0,
          "infinite": 0
        },
        {
          "name": "weight",
          "dtype": "F32",
          "shape": [
            2,
            32
          ],
          "norm": 2.0,
          "min": 0.25,
          "max": 0.25,
          "nan": 0,
          "infinite": 0
        }
      ]
    }
    --- stderr
    "#);
    for same in ["intent", "0", "m0000"] {
        assert!(p.run(&format!("tensors @/b.cpb {same}")).stdout.contains("part       m0000, a module"), "{same}");
    }
    assert_snapshot!(p.run("tensors @/b.cpb m0002").whole(), @r"
    Usage (2)
    --- stderr
    error: no section, module, head or task is called m0002
    hint: this stage has m0000, h0000, m0001, h0001, or a number from 0 to 3
    ");
}

#[test]
fn extract_never_overwrites() {
    let p = Place::new();
    assert_snapshot!(p.run("extract @/b.cpb h0000 @/head.safetensors").whole(), @r"
    Success (0)
    wrote      @/head.safetensors
    part       h0000, a head of stage 2
    bytes      512
    blake3     [64]
    --- stderr
    ");
    let at = section_at(&p.path("b.cpb"), 1);
    let written = p.bytes("head.safetensors");
    assert_eq!(written, p.bytes("b.cpb")[at..at + written.len()]);
    assert_snapshot!(p.run("extract @/b.cpb m0000 @/head.safetensors").whole(), @r"
    Usage (2)
    --- stderr
    error: @/head.safetensors: the file already exists [E_DUPLICATE]
    hint: choose another name, or remove it first if it is not needed
    ");
    assert_eq!(p.bytes("head.safetensors"), written);
    assert_eq!(p.run("extract @/b.cpb m0000 @/absent/x").status, ExitStatus::Io);
    assert_snapshot!(p.run("extract @/b.cpb m0000 @/m --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.extract/1",
      "file": "@/b.cpb",
      "stage": 2,
      "damage": [],
      "part": "m0000",
      "section": 0,
      "kind": "module",
      "bytes": 448,
      "blake3": "[64]",
      "to": "@/m"
    }
    --- stderr
    "#);
}
