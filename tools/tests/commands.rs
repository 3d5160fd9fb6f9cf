//! Whole command runs: stdout, stderr and exit code.
//!
//! The snapshots are the promise to users and scripts; change them on purpose only.

mod common;
#[path = "commands/convert.rs"]
mod convert;
#[path = "commands/damage.rs"]
mod damage;
#[path = "commands/exchange.rs"]
mod exchange;
#[path = "commands/gguf.rs"]
mod gguf;
#[path = "commands/parts.rs"]
mod parts;
#[path = "commands/updates.rs"]
mod updates;

use common::{Place, with_task};
use conpet_formats::bundle::{Draft, verify};
use conpet_tools::ExitStatus;
use insta::assert_snapshot;

#[test]
fn show() {
    let p = Place::new();
    assert_snapshot!(p.run("@/b.cpb").whole(), @r"
    Success (0)
    bundle     @/b.cpb
    stage      2, commit [16]
    base       conpet tiny (llama, Q8_0, 43,008 bytes)
               structure [16], tokenizer [16]
               file [64]
    method     dynamic
    trunk      1 layer
    selector   task
    tasks      2 tasks, 5 labels
    payload    4 sections, 2,048 bytes
    requires   kind:lora, selector:task

    modules
    module  kind  rank  scale  parameters  type  sites  targets  tasks
    m0000   lora     2      2           -  F16       1  q1       intent
    m0001   lora     2      2           -  F16       1  q1       topic

    heads
    head   classes  reads                     temperature  blend  tasks
    h0000        2  mean of layer 2 (output)         1.25    0.5  intent
    h0001        3  mean of layer 2 (output)         1.25    0.5  topic

    sections
    #  part   kind    offset  bytes  blake3
    0  m0000  module   8,192    448  [16]
    1  h0000  head    12,288    512  [16]
    2  m0001  module  20,480    448  [16]
    3  h0001  head    24,576    640  [16]
    --- stderr
    ");
    assert_eq!(p.run("show @/b.cpb").whole(), p.run("@/b.cpb").whole(), "show is the default");
    assert_snapshot!(p.run("--json show @/b.cpb --stage 1").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.show/1",
      "file": "@/b.cpb",
      "stage": 1,
      "digest": "[64]",
      "damage": [],
      "base": {
        "arch": "llama",
        "file_blake3": [
          "[64]"
        ],
        "file_len": 43008,
        "name": "conpet tiny",
        "quant": "Q8_0",
        "sample": "[64]",
        "structure": "[64]",
        "tokenizer": "[64]"
      },
      "method": "dynamic",
      "trunk": 1,
      "tasks": 1,
      "labels": 2,
      "selector": {
        "feature": null,
        "kind": "task",
        "margin": "0",
        "module": null,
        "section": null,
        "stats": null,
        "temperature": "1",
        "threshold": "0",
        "top_k": 1
      },
      "modules": [
        {
          "alpha": "4",
          "dtype": "F16",
          "id": "m0000",
          "kind": "lora",
          "rank": 2,
          "scale": "2",
          "scaling": "alpha/r",
          "section": 0,
          "site_count": 1,
          "targets": "q1",
          "train": {
            "seed": "1"
          }
        }
      ],
      "heads": [
        {
          "blend": "0.5",
          "classes": 2,
          "feature": {
            "norm": "output",
            "parts": [
              {
                "layer": 2,
                "pool": "mean"
              }
            ]
          },
          "id": "h0000",
          "section": 1,
          "tasks": [
            0
          ],
          "temperature": "1.25"
        }
      ],
      "target_sets": {
        "q1": [
          "blk.1.attn_q.weight"
        ]
      },
      "sections": [
        {
          "index": 0,
          "name": "m0000",
          "kind": "module",
          "offset": 8192,
          "bytes": 448,
          "blake3": "[64]"
        },
        {
          "index": 1,
          "name": "h0000",
          "kind": "head",
          "offset": 12288,
          "bytes": 512,
          "blake3": "[64]"
        }
      ],
      "requires": [
        "kind:lora",
        "selector:task"
      ],
      "ext": {}
    }
    --- stderr
    "#);
}

#[test]
fn tasks() {
    let p = Place::new();
    assert_snapshot!(p.run("tasks @/b.cpb").whole(), @r#"
    Success (0)
    #  task    kind            stage  module  head   labels  template
    0  intent  classification      1  m0000   h0000       2  {input}
    1  topic   classification      2  m0001   h0001       3  {input}

    labels of intent
    row  label
      0  lights on
      1  lights off

    labels of topic
    row  label
      0  billing
      1  it's "broken"
      2  grüße
    --- stderr
    "#);
    assert_snapshot!(p.run("tasks @/b.cpb --stage 1 --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.tasks/1",
      "file": "@/b.cpb",
      "stage": 1,
      "damage": [],
      "tasks": [
        {
          "id": 0,
          "name": "intent",
          "kind": "classification",
          "stage": 1,
          "module": "m0000",
          "head": "h0000",
          "labels": [
            "lights on",
            "lights off"
          ],
          "max_answer": 0,
          "template": "{input}"
        }
      ]
    }
    --- stderr
    "#);
}

#[test]
fn log() {
    let p = Place::new();
    assert_snapshot!(p.run("log @/b.cpb").whole(), @r"
    Success (0)
    stage  parent  bytes  commit at  commit            learned
        1       -    960     16,384  [16]  intent
        2       1  2,048     28,672  [16]  topic (current)
    --- stderr
    ");
    assert_snapshot!(p.run("log @/b.cpb --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.log/1",
      "file": "@/b.cpb",
      "current": 2,
      "damage": [],
      "stages": [
        {
          "stage": 1,
          "parent": 0,
          "offset": 16384,
          "digest": "[64]",
          "section_bytes": 960,
          "signed": false,
          "tasks": [
            "intent"
          ],
          "new_tasks": [
            "intent"
          ]
        },
        {
          "stage": 2,
          "parent": 1,
          "offset": 28672,
          "digest": "[64]",
          "section_bytes": 2048,
          "signed": false,
          "tasks": [
            "intent",
            "topic"
          ],
          "new_tasks": [
            "topic"
          ]
        }
      ]
    }
    --- stderr
    "#);
}

#[test]
fn diff_proves_what_is_unchanged() {
    let p = Place::new();
    assert_snapshot!(p.run("diff @/b.cpb 1 2").whole(), @r"
    Success (0)
    stages     1 -> 2
    unchanged  2 sections, 960 bytes, every digest recomputed
    new tasks  topic

    part   verdict    bytes  from              to
    m0000  unchanged    448  [16]  [16]
    h0000  unchanged    512  [16]  [16]
    m0001  added        448  -                 [16]
    h0001  added        640  -                 [16]
    --- stderr
    ");
    assert_snapshot!(p.run("diff @/b.cpb 1 2 --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.diff/1",
      "file": "@/b.cpb",
      "from": 1,
      "to": 2,
      "damage": [],
      "parts": [
        {
          "part": "m0000",
          "verdict": "unchanged",
          "bytes": 448,
          "from": "[64]",
          "to": "[64]"
        },
        {
          "part": "h0000",
          "verdict": "unchanged",
          "bytes": 512,
          "from": "[64]",
          "to": "[64]"
        },
        {
          "part": "m0001",
          "verdict": "added",
          "bytes": 448,
          "from": null,
          "to": "[64]"
        },
        {
          "part": "h0001",
          "verdict": "added",
          "bytes": 640,
          "from": null,
          "to": "[64]"
        }
      ],
      "new_tasks": [
        "topic"
      ],
      "lost_tasks": [],
      "changed": []
    }
    --- stderr
    "#);
    let mut d = Draft::from_bundle(&p.bundle());
    d.manifest.heads[0].temperature = conpet_formats::decimal::Decimal::from_f64(2.0);
    d.manifest.tasks.pop();
    d.manifest.heads.pop();
    d.manifest.modules.pop();
    with_task(d, "replies", &["yes"]).append(&p.path("b.cpb")).unwrap();
    assert_snapshot!(p.run("diff @/b.cpb 2 3").whole(), @r"
    Success (0)
    stages     2 -> 3
    unchanged  3 sections, 1,408 bytes, every digest recomputed
    new tasks  replies
    lost tasks topic
    changed    head h0000, head h0001

    part   verdict    bytes  from              to
    m0000  unchanged    448  [16]  [16]
    h0000  unchanged    512  [16]  [16]
    m0001  unchanged    448  [16]  [16]
    h0001  changed      640  [16]  [16]
    --- stderr
    ");
    assert_snapshot!(p.run("diff @/b.cpb 2 7").whole(), @r"
    Usage (2)
    --- stderr
    error: @/b.cpb: no stage 7 [E_MISSING]
    hint: this bundle has the stages 1, 2, 3
    ");
}

#[test]
fn verify_says_what_is_whole() {
    let p = Place::new();
    assert_snapshot!(p.run("verify @/b.cpb").whole(), @r"
    Success (0)
    ok: every digest matches

    stage  commit at  sections  whole  bytes
        1     16,384         2      2    960
        2     28,672         4      4  2,048
    --- stderr
    ");
    assert_snapshot!(p.run("verify @/b.cpb --full -m @/base.gguf").whole(), @r"
    Success (0)
    ok: every byte is accounted for
    base       matches (every byte): @/base.gguf

    stage  commit at  sections  whole  bytes
        1     16,384         2      2    960
        2     28,672         4      4  2,048
    --- stderr
    ");
    assert_snapshot!(p.run("verify @/b.cpb --json --base @/base.gguf").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.verify/1",
      "file": "@/b.cpb",
      "full": false,
      "ok": true,
      "findings": [],
      "stages": [
        {
          "stage": 1,
          "offset": 16384,
          "sections": 2,
          "whole": 2,
          "bytes": 960
        },
        {
          "stage": 2,
          "offset": 28672,
          "sections": 4,
          "whole": 4,
          "bytes": 2048
        }
      ],
      "signed_by": null,
      "base": {
        "file": "@/base.gguf",
        "matches": true,
        "every_byte": false
      }
    }
    --- stderr
    "#);
}

#[test]
fn verify_refuses_another_base() {
    let p = Place::new();
    let mut other = p.bytes("base.gguf");
    let last = other.len() - 1;
    other[last] ^= 1;
    std::fs::write(p.path("other.gguf"), other).unwrap();
    assert_snapshot!(p.run("verify @/b.cpb --base @/other.gguf").whole(), @r"
    BaseMismatch (3)
    ok: every digest matches
    base       does not match (structure, tokenizer, length, sample): @/other.gguf

    stage  commit at  sections  whole  bytes
        1     16,384         2      2    960
        2     28,672         4      4  2,048
    --- stderr
    error: @/other.gguf: this base's weight sample is [64], the bundle was trained on [64] [E_BASE]
    hint: give the base the bundle names (conpet-inspect shows it); modules never run on another base
    ");
    assert_eq!(p.run("verify @/b.cpb --base @/b.cpb").status, ExitStatus::Usage, "a bundle is no base");
    assert_eq!(p.run("verify @/b.cpb --base @/absent").status, ExitStatus::Io);
}

#[test]
fn rollback_is_explicit_and_erases_nothing() {
    let p = Place::new();
    let before = p.bytes("b.cpb");
    assert_snapshot!(p.run("rollback @/b.cpb 1").whole(), @r"
    Success (0)
    stage 1 is current now, it was 2; nothing was erased, and its number is not used again
    --- stderr
    ");
    assert_eq!(p.bundle().stage(), 1);
    assert_eq!(p.bytes("b.cpb")[8192..], before[8192..]);
    assert_eq!(verify(&p.path("b.cpb"), true).unwrap(), []);
    assert_snapshot!(p.run("rollback @/b.cpb 1").whole(), @r"
    Success (0)
    stage 1 was already current; nothing changed
    --- stderr
    ");
    assert_snapshot!(p.run("rollback @/b.cpb 5").whole(), @r"
    Usage (2)
    --- stderr
    error: @/b.cpb: no stage 5 [E_MISSING]
    hint: this bundle has the stages 1, 2
    ");
    assert_eq!(p.run("rollback @/b.cpb").status, ExitStatus::Usage, "there is no default stage");
}
