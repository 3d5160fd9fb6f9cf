//! Command runs on other programs' formats: `import`, `export`.
//!
//! The snapshots are the promise to users and scripts; change them on purpose only.

use crate::common::Place;
use conpet_formats::bundle::{Bundle, verify};
use conpet_tools::ExitStatus;
use insta::assert_snapshot;

const PEFT: &str = "export @/b.cpb topic -m @/base.gguf --to peft @/peft --lossy";

#[test]
fn a_module_goes_out_and_comes_in() {
    let p = Place::new();
    assert_snapshot!(p.run(PEFT).whole(), @r"
    Success (0)
    wrote      @/peft
    module     m0001 of stage 2, lora:r=2,alpha=4, 1 site
    --- stderr
    warning: left behind: the head and the 3 labels of task topic
    ");
    assert_snapshot!(p.run("import @/peft -m @/base.gguf -b @/new.cpb --task again").whole(), @r"
    Success (0)
    bundle     @/new.cpb (new file, stage 1)
    task       again
    module     m0000, lora:r=2,alpha=4, 1 site, F16
    --- stderr
    ");
    assert_snapshot!(p.run("export @/b.cpb topic -m @/base.gguf --to gguf @/lora.gguf --lossy --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.export/1",
      "file": "@/b.cpb",
      "stage": 2,
      "format": "gguf",
      "to": "@/lora.gguf",
      "module": {
        "id": "m0001",
        "pet": "lora:r=2,alpha=4",
        "sites": 1
      },
      "manifest": null,
      "lost": [
        "the head and the 3 labels of task topic"
      ]
    }
    --- stderr
    "#);
    assert_snapshot!(p.run("import @/lora.gguf -m @/base.gguf -b @/new.cpb --task third --template Q:{input} --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.import/1",
      "from": "@/lora.gguf",
      "format": "gguf",
      "bundle": "@/new.cpb",
      "stage": 2,
      "created": false,
      "module": {
        "task": "third",
        "id": "m0001",
        "pet": "lora:r=2,alpha=4",
        "sites": 1,
        "dtype": "F16"
      },
      "base": null,
      "notes": [
        "the file calls its task \"topic\""
      ]
    }
    --- stderr
    "#);
    let (old, new) = (p.bundle(), Bundle::open(&p.path("new.cpb")).unwrap());
    for module in 0..2 {
        assert_eq!(new.section(module).unwrap(), old.section(2).unwrap(), "the tensors are the same");
    }
    assert_eq!((new.stage(), new.manifest().tasks[1].template.as_str()), (2, "Q:{input}"));
    assert!(verify(&p.path("new.cpb"), true).unwrap().is_empty());
    // A bundle that already has tasks gets one more.
    assert_eq!(p.run("import @/peft -m @/base.gguf -b @/b.cpb --task again").status, ExitStatus::Success);
    assert_eq!(p.bundle().manifest().tasks.len(), 3);
    assert_snapshot!(p.run("import @/peft -m @/base.gguf -b @/b.cpb --task again").whole(), @r#"
    Usage (2)
    --- stderr
    error: the bundle already has a task "again" [E_DUPLICATE]
    hint: choose another --task
    "#);
}

#[test]
fn what_would_be_lost_is_said_first() {
    let p = Place::new();
    assert_snapshot!(p.run("export @/b.cpb m0001 -m @/base.gguf --to peft @/peft").whole(), @r"
    Usage (2)
    --- stderr
    error: PEFT cannot hold all of the task: the head and the 3 labels of task topic
    hint: add --lossy to write the module alone
    ");
    assert!(!p.path("peft").exists());
    for (words, hint) in [
        ("export @/b.cpb m0007 -m @/base.gguf --to peft @/x --lossy", "this stage has m0000, m0001"),
        ("export @/b.cpb --to peft @/x", "conpet-inspect tasks lists them"),
        ("export @/b.cpb topic --to gguf @/x", "-m BASE.gguf"),
        ("export @/b.cpb topic --to onnx @/x", "peft DIR, gguf FILE and oci DIR"),
        ("export @/b.cpb topic --to oci @/x", "leave the module"),
        ("export @/b.cpb topic --to gguf @/base.gguf -m @/base.gguf --lossy", "choose another name"),
        ("import @/x.bin -m @/base.gguf -b @/b.cpb --task t", "safetensors"),
        ("import @/base.gguf -b @/b.cpb --task t", "-m BASE.gguf"),
        ("import @/base.gguf -m @/base.gguf -b @/b.cpb", "--task NAME"),
        ("import @/base.gguf -m @/base.gguf -b @/b.cpb --task t", "convert_lora_to_gguf.py"),
    ] {
        std::fs::write(p.path("x.bin"), b"anything").unwrap();
        let ran = p.run(words);
        assert!(ran.status == ExitStatus::Usage && ran.stderr.contains(hint), "{words}: {}", ran.whole());
        assert!(!p.path("x").exists());
    }
    assert_eq!(p.run("import @/absent -m @/base.gguf -b @/b.cpb --task t").status, ExitStatus::Io);
}

#[test]
fn another_base_is_exit_code_3() {
    let p = Place::new();
    p.run(PEFT);
    let other = conpet_formats::tiny::base(&conpet_formats::tiny::TinyConfig {
        layers: 2,
        hidden: 32,
        heads: 2,
        kv_heads: 1,
        ffn: 32,
        seed: 9,
        ..Default::default()
    });
    std::fs::write(p.path("other.gguf"), other.unwrap()).unwrap();
    for words in [
        "import @/peft -m @/other.gguf -b @/new.cpb --task t",
        "import @/peft -m @/other.gguf -b @/b.cpb --task t",
        "export @/b.cpb topic -m @/other.gguf --to gguf @/lora.gguf --lossy",
        "export @/b.cpb -m @/other.gguf --to oci @/layout",
    ] {
        let ran = p.run(words);
        assert_eq!(ran.status, ExitStatus::BaseMismatch, "{words}: {}", ran.whole());
    }
    assert!(!p.path("new.cpb").exists() && !p.path("layout").exists() && p.bundle().stage() == 2);
}

#[test]
fn a_bundle_travels_as_an_oci_layout() {
    let p = Place::new();
    assert_snapshot!(p.run("export @/b.cpb -m @/base.gguf --to oci @/layout").whole(), @r"
    Success (0)
    wrote      @/layout
    manifest   sha256:[64]
    --- stderr
    ");
    assert_snapshot!(p.run("import @/layout -b @/new.cpb -m @/new.gguf").whole(), @r"
    Success (0)
    bundle     @/new.cpb (new file, stage 2)
    base       @/new.gguf (new file)
    --- stderr
    ");
    assert_eq!((p.bytes("new.cpb"), p.bytes("new.gguf")), (p.bytes("b.cpb"), p.bytes("base.gguf")));
    assert_eq!(p.run("import @/layout -b @/new.cpb").status, ExitStatus::Usage, "the name is taken");
    assert_eq!(p.run("import @/layout -b @/x.cpb --task t").status, ExitStatus::Usage);
}
