//! Updates from the command line: what is sent, applied, tried, kept and refused.
//!
//! The snapshots are the promise to users and scripts; change them on purpose only.

use crate::common::{Place, with_task};
use conpet_formats::bundle::update::{self, State};
use conpet_formats::bundle::{Bundle, Draft};
use conpet_tools::ExitStatus;
use insta::assert_snapshot;

/// `new.cpb`, the bundle with a third stage, and `d`, the delta to it.
fn place() -> Place {
    let p = Place::new();
    p.damaged("new.cpb", |_| ());
    let path = p.path("new.cpb");
    with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), "tone", &["kind", "rude"]).append(&path).unwrap();
    assert_eq!(p.run("delta @/b.cpb @/new.cpb -o @/d").status, ExitStatus::Success);
    p
}

#[test]
fn delta_and_apply() {
    let p = place();
    assert_snapshot!(p.run("delta @/b.cpb @/new.cpb -o @/d2").whole(), @r"
    Success (0)
    wrote      @/d2
    stages     2 -> 3, commit [16]
    bytes      12,288 to append
    --- stderr
    ");
    assert_snapshot!(p.run("delta @/b.cpb @/new.cpb -o @/d2 --json").whole(), @r"
    Usage (2)
    --- stderr
    error: @/d2: the file already exists [E_DUPLICATE]
    hint: choose another name, or remove it first if it is not needed
    ");
    assert_snapshot!(p.run("delta @/b.cpb @/new.cpb -o @/d3 --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.delta/1",
      "from": 2,
      "to": 3,
      "commit": "[64]",
      "bytes": 12288,
      "file": "@/d3"
    }
    --- stderr
    "#);
    assert_snapshot!(p.run("delta @/new.cpb @/b.cpb -o @/d4").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/b.cpb: it is not a later state of @/new.cpb: their bytes differ [E_PARENT]
    hint: give the older bundle first; if the two have grown apart, copy the new one whole
    ");
    assert_snapshot!(p.run("apply @/b.cpb @/d").whole(), @r"
    Success (0)
    stage 3 is current now, it was 2
    appended   12,288 bytes
    --- stderr
    ");
    assert_eq!(p.bytes("b.cpb"), p.bytes("new.cpb"));
    assert_snapshot!(p.run("apply @/b.cpb @/d").whole(), @r"
    Success (0)
    stage 3 was already current; nothing changed
    --- stderr
    ");
    assert_snapshot!(p.run("apply @/b.cpb @/d --trial --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.apply/1",
      "file": "@/b.cpb",
      "before": 3,
      "now": 3,
      "commit": "[64]",
      "bytes": 0,
      "trial": false,
      "already": true
    }
    --- stderr
    "#);
    assert_eq!(p.run("verify --full @/b.cpb").status, ExitStatus::Success);
    assert_eq!(p.run("delta @/b.cpb @/new.cpb").status, ExitStatus::Usage, "-o is needed");
}

#[test]
fn apply_names_what_is_wrong() {
    let p = place();
    let before = p.bytes("b.cpb");
    let delta = p.bytes("d");
    std::fs::write(p.path("short"), &delta[..8192]).unwrap();
    assert_snapshot!(p.run("apply @/b.cpb @/short").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/short: 12288 bytes of tail declared, 4096 are there [E_TRUNCATED at byte 72]
    hint: the file is cut short; download or copy it again
    ");
    let mut bad = delta.clone();
    bad[5000] ^= 1;
    std::fs::write(p.path("bad"), &bad).unwrap();
    assert_snapshot!(p.run("apply @/b.cpb @/bad").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/bad: the tail is damaged: its digest does not match [E_DIGEST at byte 4096]
    hint: the file is damaged or not what it should be; restore it from a copy or make it again
    ");
    assert_snapshot!(p.run("apply @/b.cpb @/new.cpb").whole(), @r"
    Usage (2)
    --- stderr
    error: @/new.cpb: not a delta: the magic bytes are wrong [E_MAGIC at byte 0]
    hint: give a file that `conpet-inspect delta` wrote
    ");
    assert_snapshot!(p.run("apply @/d @/b.cpb").whole(), @r"
    Usage (2)
    --- stderr
    error: @/b.cpb: not a delta: the magic bytes are wrong [E_MAGIC at byte 0]
    hint: give a file that `conpet-inspect delta` wrote
    ");
    assert_eq!(p.run("rollback @/b.cpb 1").status, ExitStatus::Success);
    assert_snapshot!(p.run("apply @/b.cpb @/d").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/b.cpb: the delta continues stage 2 ([16]), the bundle is at stage 1 ([16]) [E_PARENT]
    hint: use a delta from stage 1, or copy the whole new bundle
    ");
    assert_eq!(p.run("apply @/b.cpb @/absent").status, ExitStatus::Io);
    assert_eq!(p.bytes("b.cpb")[8192..], before[8192..]);
}

#[test]
fn trial_status_and_mark_good() {
    let p = place();
    assert_snapshot!(p.run("status @/b.cpb").whole(), @r"
    Success (0)
    bundle     @/b.cpb
    stage      2, commit [16]
    --- stderr
    ");
    assert_snapshot!(p.run("apply @/b.cpb @/d --trial").whole(), @r"
    Success (0)
    stage 3 is current now, it was 2
    appended   12,288 bytes
    trial      stage 2 comes back after 3 starts, unless mark-good is run
    --- stderr
    ");
    assert_eq!(update::start(&p.path("b.cpb"), None).unwrap().generation(), 3);
    assert_snapshot!(p.run("status @/b.cpb").whole(), @r"
    Success (0)
    bundle     @/b.cpb
    stage      3, commit [16]
    trial      2 starts left, then stage 2 comes back
    --- stderr
    ");
    assert_snapshot!(p.run("status @/b.cpb --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.status/1",
      "file": "@/b.cpb",
      "stage": 3,
      "commit": "[64]",
      "trial": {
        "stage": 3,
        "commit": "[64]",
        "good_stage": 2,
        "good_commit": "[64]",
        "tries_left": 2
      },
      "failed": [],
      "floor": 0
    }
    --- stderr
    "#);
    for stage in [3, 3, 2] {
        assert_eq!(update::start(&p.path("b.cpb"), None).unwrap().generation(), stage);
    }
    assert_snapshot!(p.run("status @/b.cpb").whole(), @r"
    Success (0)
    bundle     @/b.cpb
    stage      2, commit [16]
    failed     commit [16]
    --- stderr
    ");
    assert_snapshot!(p.run("apply @/b.cpb @/d").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/b.cpb: stage 3 was tried here and was not marked good [E_ROLLBACK]
    hint: send a newer stage; to use this one all the same: conpet-inspect rollback @/b.cpb 3
    ");
    assert_eq!(p.run("rollback @/b.cpb 3").status, ExitStatus::Success);
    assert_snapshot!(p.run("mark-good @/b.cpb").whole(), @r"
    Success (0)
    stage 3 was not on trial
    --- stderr
    ");
    assert_eq!(p.run("rollback @/b.cpb 2").status, ExitStatus::Success);
    assert_eq!(p.run("apply @/b.cpb @/d --trial").status, ExitStatus::Success);
    assert_snapshot!(p.run("mark-good @/b.cpb --floor").whole(), @r"
    Success (0)
    stage 3 is good: its trial is over
    stages below 3 are refused from now on
    --- stderr
    ");
    assert_snapshot!(p.run("mark-good @/b.cpb --floor --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.mark-good/1",
      "file": "@/b.cpb",
      "stage": 3,
      "was_trial": false,
      "floor": 3
    }
    --- stderr
    "#);
    assert_snapshot!(p.run("rollback @/b.cpb 2").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/b.cpb: stage 2 is below the floor, 3 [E_ROLLBACK]
    hint: use a newer stage; an operator who wants this one all the same removes the .state file
    ");
    std::fs::copy(p.path("new.cpb"), p.path("x.cpb")).unwrap();
    State { floor: 9, ..State::default() }.save(&p.path("x.cpb")).unwrap();
    assert_snapshot!(p.run("status @/x.cpb").whole(), @r"
    Damaged (1)
    bundle     @/x.cpb
    stage      3, commit [16]
    floor      stages below 9 are refused
    --- stderr
    error: @/x.cpb: stage 3 is below the floor, 9 [E_ROLLBACK]
    hint: use a newer stage; an operator who wants this one all the same removes the .state file
    ");
    std::fs::write(State::path(&p.path("x.cpb")), b"").unwrap();
    assert_snapshot!(p.run("status @/x.cpb").whole(), @r"
    Damaged (1)
    bundle     @/x.cpb
    stage      3, commit [16]
    --- stderr
    warning: @/x.cpb.state: the state is cut short; it is ignored [E_DIGEST]
    ");
}
