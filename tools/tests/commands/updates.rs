//! Updates from the command line: what is sent, applied, tried, kept and refused.
//!
//! The snapshots are the promise to users and scripts; change them on purpose only.

use crate::common::{Place, with_task};
use conpet_formats::bundle::update::{self, State};
use conpet_formats::bundle::{Bundle, Draft};
use conpet_tools::ExitStatus;
use insta::assert_snapshot;
use std::io::Write;

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
    assert_eq!(update::start(&p.path("b.cpb"), None, None).unwrap().stage(), 3);
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
      "signed": false,
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
        assert_eq!(update::start(&p.path("b.cpb"), None, None).unwrap().stage(), stage);
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

#[test]
fn compact_says_what_it_saved() {
    let p = place();
    let before = p.bundle();
    assert_snapshot!(p.run("compact @/b.cpb").whole(), @r"
    Success (0)
    stage 2 is now stage 3, alone in a new file of the same name
    bytes      32,768 -> 28,672
    --- stderr
    ");
    assert_eq!(before.section(0).unwrap(), p.bundle().section(0).unwrap(), "a reader keeps the old file");
    assert_snapshot!(p.run("compact @/b.cpb").whole(), @r"
    Success (0)
    nothing to leave out: stage 3 is alone in the file
    --- stderr
    ");
    assert_snapshot!(p.run("compact @/new.cpb --drop-statistics --json").whole(), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.compact/1",
      "file": "@/new.cpb",
      "before": 3,
      "now": 4,
      "bytes_before": 45056,
      "bytes_now": 36864
    }
    --- stderr
    "#);
    assert_eq!(p.run("verify --full @/b.cpb").status, ExitStatus::Success);
    assert_snapshot!(p.run("delta @/b.cpb @/new.cpb -o @/d5").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/new.cpb: it is not a later state of @/b.cpb: the file ids differ [E_PARENT]
    hint: a compacted or newly made bundle is another file: copy it whole
    ");
    assert_snapshot!(p.run("show @/b.cpb").stdout.lines().filter(|l| l.starts_with("ext")).collect::<String>(), @r"
    ext        compacted_from: stage 2, commit [64]
    ");
}

#[test]
fn recover_saves_what_verifies() {
    let p = Place::new();
    p.damaged("x.cpb", |b| [40, 4096 + 40].iter().for_each(|i| b[*i] ^= 1));
    assert_snapshot!(p.run("recover @/x.cpb -o @/y.cpb").whole(), @r"
    Success (0)
    wrote      @/y.cpb
    stage      3, from stage 2
    tasks      intent, topic
    --- stderr
    ");
    assert_eq!(p.run("verify --full @/y.cpb").status, ExitStatus::Success);
    assert_snapshot!(p.run("recover @/x.cpb -o @/y.cpb").whole(), @r"
    Usage (2)
    --- stderr
    error: @/y.cpb: the file already exists [E_DUPLICATE]
    hint: choose another name, or remove it first if it is not needed
    ");
    let at = crate::common::section_at(&p.path("b.cpb"), 0);
    p.damaged("x.cpb", |b| b[at + 100] ^= 1);
    assert_snapshot!(p.run("recover @/x.cpb -o @/z.cpb").whole(), @r"
    Damaged (1)
    wrote      @/z.cpb
    stage      3, from stage 2
    tasks      topic
    lost       module m0000 is damaged
    lost       task intent is left out
    --- stderr
    ");
    assert_snapshot!(p.run("recover @/x.cpb -o @/one.cpb --stage 1 --json").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/x.cpb: no task of stage 1 is whole [E_MISSING]
    hint: whole commits of these stages were found: 1, 2; choose one with --stage
    ");
    assert_snapshot!(p.run("recover @/x.cpb -o @/nine.cpb --stage 9").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/x.cpb: the stage is not whole [E_MISSING]
    hint: whole commits of these stages were found: 1, 2; choose one with --stage
    ");
    assert_eq!(p.run("recover @/base.gguf -o @/none.cpb").status, ExitStatus::Damaged);
    assert_eq!(p.run("recover @/absent -o @/none.cpb").status, ExitStatus::Io);
}

/// Signs what a command printed, as the stock tool would.
fn minisig(p: &Place, key: &minisign::KeyPair, text: &str, to: &str) {
    let made = minisign::sign(None, &key.sk, text.as_bytes(), Some("of a test"), None).unwrap();
    std::fs::write(p.path(to), made.into_string()).unwrap();
}

#[test]
fn sign_and_who_is_trusted() {
    let p = place();
    let key = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    std::fs::write(p.path("trust"), key.pk.to_box().unwrap().into_string()).unwrap();
    let name = key.pk.to_base64();
    let whole = |words: &str| p.run(words).whole().replace(&name, "(the key)");
    assert_snapshot!(whole("signing-text @/new.cpb"), @r"
    Success (0)
    conpet stage 1
    file [32]
    stage 4
    commit [64]
    --- stderr
    ");
    assert_snapshot!(whole("signing-text @/new.cpb --json"), @r#"
    Success (0)
    {
      "schema": "conpet.inspect.signing-text/1",
      "file": "@/new.cpb",
      "text": "conpet stage 1\nfile [32]\nstage 4\ncommit [64]\n",
      "to": null
    }
    --- stderr
    "#);
    assert_eq!(p.run("signing-text @/new.cpb -o @/text").status, ExitStatus::Success);
    assert_eq!(p.run("signing-text @/new.cpb -o @/text").status, ExitStatus::Usage);
    let text = String::from_utf8(p.bytes("text")).unwrap();
    minisig(&p, &key, &text, "good");
    minisig(&p, &key, "something else", "bad");
    assert_snapshot!(whole("verify @/new.cpb --trust @/trust"), @r"
    Damaged (1)
    ok: every digest matches

    stage  commit at  sections  whole  bytes
        1     16,384         2      2    960
        2     28,672         4      4  2,048
        3     40,960         6      6  3,008
    --- stderr
    error: @/new.cpb: stage 3: it is not signed, and the trust file asks for it [E_SIGNATURE]
    hint: use a stage signed by a key of @/trust
    ");
    assert_snapshot!(whole("apply @/b.cpb @/d --trust @/trust"), @r"
    Damaged (1)
    --- stderr
    error: @/d: stage 3: it is not signed, and the trust file asks for it [E_SIGNATURE]
    hint: use a stage signed by a key of @/trust
    ");
    assert_snapshot!(whole("sign @/new.cpb @/bad --trust @/trust"), @r"
    Damaged (1)
    --- stderr
    error: @/bad: the signature is by a trusted key, but not of this stage of this file [E_SIGNATURE]
    hint: sign what `conpet-inspect signing-text` says now, with a key of the trust file
    ");
    if !std::path::Path::new(conpet_formats::bundle::TRUST).exists() {
        assert_snapshot!(whole("sign @/new.cpb @/good"), @r"
        Usage (2)
        --- stderr
        error: no trust file: a signature that nobody can check is not kept
        hint: give the public key's file with --trust, or make /etc/conpet/trust
        ");
    }
    assert_snapshot!(whole("sign @/new.cpb @/good --trust @/trust"), @r"
    Success (0)
    stage 4 is current now, signed by (the key)
    --- stderr
    ");
    assert_snapshot!(whole("verify @/new.cpb --trust @/trust"), @r"
    Success (0)
    ok: every digest matches
    signed     by (the key)

    stage  commit at  sections  whole  bytes
        1     16,384         2      2    960
        2     28,672         4      4  2,048
        3     40,960         6      6  3,008
        4     45,056         6      6  3,008
    --- stderr
    ");
    assert_snapshot!(whole("log @/new.cpb"), @r"
    Success (0)
    stage  parent  bytes  commit at  commit            learned
        1       -    960     16,384  [16]  intent
        2       1  2,048     28,672  [16]  topic
        3       2  3,008     40,960  [16]  tone
        4       3  3,008     45,056  [16]  (signed) (current)
    --- stderr
    ");
    assert_snapshot!(whole("status @/new.cpb"), @r"
    Success (0)
    bundle     @/new.cpb
    stage      4, commit [16]
    signed     yes; `conpet-inspect verify --trust FILE` says by whom
    --- stderr
    ");
    assert_eq!(p.run("delta @/b.cpb @/new.cpb -o @/signed").status, ExitStatus::Success);
    assert_eq!(p.run("apply @/b.cpb @/signed --trust @/trust").status, ExitStatus::Success);
    assert_eq!(p.bytes("b.cpb"), p.bytes("new.cpb"));
    assert_snapshot!(whole("compact @/b.cpb"), @r"
    Damaged (1)
    --- stderr
    error: @/b.cpb: stage 4 is signed, and the compacted file would not be [E_SIGNATURE]
    hint: compact with --drop-signature, then sign the result anew
    ");
    assert_eq!(p.run("compact @/b.cpb --drop-signature").status, ExitStatus::Success);
    assert_eq!(p.run("verify @/b.cpb --trust @/trust").status, ExitStatus::Damaged);
    assert_snapshot!(whole("verify @/b.cpb --trust @/text"), @r"
    Damaged (1)
    --- stderr
    error: @/text: line 1: not a minisign public key: Invalid encoding in minisign data [E_SIGNATURE]
    hint: put the second line of a minisign.pub there
    ");
}

/// The text that is signed is what the stock tool signs, and its signatures are what we check. Skipped where
/// there is no `minisign`.
#[test]
fn the_stock_tool_signs_what_is_checked() {
    let p = place();
    let minisign = |args: &[&str]| {
        let here = p.dir.path().to_str().unwrap();
        let args = args.iter().map(|a| a.replace('@', here));
        std::process::Command::new("minisign").args(args).stdin(std::process::Stdio::null()).output()
    };
    if minisign(&["-v"]).is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: minisign is not installed (apt-get install minisign)");
        return;
    }
    let made = minisign(&["-G", "-W", "-p", "@/key.pub", "-s", "@/key"]).unwrap();
    assert!(made.status.success(), "{made:?}");
    assert_eq!(p.run("signing-text @/b.cpb -o @/text").status, ExitStatus::Success);
    let made = minisign(&["-S", "-s", "@/key", "-m", "@/text"]).unwrap();
    assert!(made.status.success(), "{made:?}");
    let ran = p.run("sign @/b.cpb @/text.minisig --trust @/key.pub");
    assert_eq!(ran.status, ExitStatus::Success, "{}", ran.whole());
    assert_eq!(p.run("verify --full @/b.cpb --trust @/key.pub").status, ExitStatus::Success);
}
