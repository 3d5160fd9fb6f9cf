//! Command runs on single parts of a bundle: `tensors`, `extract`; and on its bytes: `hexmap`.
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
    parameters 128

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

#[test]
fn hexmap() {
    let p = Place::new();
    assert_snapshot!(p.run("hexmap @/b.cpb").whole(), @r"
    Success (0)
    offset  bytes  what        part   stage  note
       0x0  4,096  superblock  A          -  sequence 2, commit at 0x7000, end 0x8000
    0x1000  4,096  superblock  B          -  sequence 2, commit at 0x7000, end 0x8000
    0x2000    448  module      m0000      1
    0x21c0  3,648  padding     -          -
    0x3000    512  head        h0000      1
    0x3200  3,584  padding     -          -
    0x4000    336  commit      -          1
    0x4150  1,194  manifest    -          1
    0x45fa  2,566  padding     -          -
    0x5000    448  module      m0001      2
    0x51c0  3,648  padding     -          -
    0x6000    640  head        h0001      2
    0x6280  3,456  padding     -          -
    0x7000    528  commit      -          2
    0x7210  1,666  manifest    -          2
    0x7892  1,902  padding     -          -

    totals
    what         bytes
    commit         864
    head         1,152
    manifest     2,860
    module         896
    padding     18,804
    superblock   8,192
    --- stderr
    ");
    let json: serde_json::Value = serde_json::from_str(&p.run("--json hexmap @/b.cpb").stdout).unwrap();
    assert_eq!(json["schema"], "conpet.inspect.hexmap/1");
    let regions = json["regions"].as_array().unwrap();
    let mut at = 0;
    for r in regions {
        assert_eq!(r["offset"], at, "nothing is left out, nothing said twice");
        at += r["bytes"].as_u64().unwrap();
    }
    assert_eq!((json["bytes"].as_u64(), json["end"].as_u64()), (Some(at), Some(at)));
    assert_eq!(at, p.bytes("b.cpb").len() as u64);
    assert_eq!((&regions[2]["name"], &regions[2]["current"]), (&"m0000".into(), &true.into()));
    // After going back, what only the later stage uses is there, and no fault.
    p.run("rollback @/b.cpb 1");
    let back = p.run("hexmap @/b.cpb");
    assert_eq!((back.status, back.stdout.matches("not of the current stage").count()), (ExitStatus::Success, 2));
}

#[test]
fn hexmap_of_damaged_files() {
    let p = Place::new();
    // A bad slot, a commit and a section that are not whole, padding that is none, and an unfinished append.
    p.damaged("x.cpb", |b| {
        [40, 0x4000 + 150, 0x5000 + 100, 0x3000 + 2000].iter().for_each(|i| b[*i] ^= 1);
        b.extend([7; 5000]);
    });
    assert_snapshot!(p.run("hexmap @/x.cpb").whole(), @r"
    Damaged (1)
    offset  bytes  what           part   stage  note
       0x0  4,096  superblock     A          -  damaged: the superblock's checksum does not match [E_DIGEST at byte 124]
    0x1000  4,096  superblock     B          -  sequence 2, commit at 0x7000, end 0x8000
    0x2000    448  module         m0000      2
    0x21c0  3,648  padding        -          -
    0x3000    512  head           h0000      2
    0x3200  3,584  unreachable    -          -  damaged
    0x4000  4,096  broken commit  -          -  damaged
    0x5000    448  module         m0001      2  damaged: its digest does not match
    0x51c0  3,648  padding        -          -
    0x6000    640  head           h0001      2
    0x6280  3,456  padding        -          -
    0x7000    528  commit         -          2
    0x7210  1,666  manifest       -          2
    0x7892  1,902  padding        -          -
    0x8000  5,000  unreachable    -          -  behind the end: an unfinished append

    totals
    what            bytes
    broken commit   4,096
    commit            528
    head            1,152
    manifest        1,666
    module            896
    padding        12,654
    superblock      8,192
    unreachable     8,584
    --- stderr
    ");
    // A file cut short, and one whose superblocks are both gone, as far as anything is left.
    p.damaged("cut.cpb", |b| b.truncate(0x5000));
    let cut = p.run("hexmap @/cut.cpb");
    assert_eq!((cut.status, cut.stdout.matches("damaged: the bundle needs").count()), (ExitStatus::Damaged, 2));
    assert!(cut.stdout.contains("0x4150  1,194  manifest    -          1"), "{}", cut.stdout);
    p.damaged("gone.cpb", |b| b[..0x2000].fill(0));
    let gone = p.run("hexmap @/gone.cpb");
    assert_eq!((gone.status, gone.stdout.matches("h0001").count()), (ExitStatus::Damaged, 1), "{}", gone.stdout);
    assert_eq!(p.run("hexmap @/base.gguf").status, ExitStatus::Usage);
    assert_eq!(p.run("hexmap @/absent.cpb").status, ExitStatus::Io);
}
