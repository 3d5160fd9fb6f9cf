//! Command runs on files that are damaged, cut short, or not what they should be.
//!
//! The snapshots are the promise to users and scripts; change them on purpose only.

use crate::common::{Place, section_at};
use conpet_formats::bundle::Bundle;
use conpet_tools::ExitStatus;
use insta::assert_snapshot;

#[test]
fn a_damaged_section_leaves_the_others_readable() {
    let p = Place::new();
    let at = section_at(&p.path("b.cpb"), 0);
    p.damaged("x.cpb", |b| b[at + 100] ^= 1);
    assert_snapshot!(p.run("verify --full @/x.cpb").whole(), @r"
    Damaged (1)
    fault      @/x.cpb: section 0: the module is damaged: its digest does not match [E_DIGEST at byte 8192]

    stage  commit at  sections  whole  bytes
        1     16,384         2      1    960
        2     28,672         4      3  2,048
    --- stderr
    error: @/x.cpb: 1 fault
    hint: restore the file from a copy; `conpet-inspect extract --stage N` copies sections that are still whole
    ");
    assert_snapshot!(p.run("tensors @/x.cpb m0000").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/x.cpb: section 0: the module is damaged: its digest does not match [E_DIGEST at byte 8192]
    hint: restore the file from a copy; other sections can still be used
    ");
    assert_eq!(p.run("tensors @/x.cpb m0001").status, ExitStatus::Success);
    assert_snapshot!(p.run("diff @/x.cpb 1 2").whole(), @r"
    Damaged (1)
    stages     1 -> 2
    unchanged  1 section, 512 bytes, every digest recomputed
    new tasks  topic

    part   verdict    bytes  from              to
    m0000  damaged      448  [16]  [16]
    h0000  unchanged    512  [16]  [16]
    m0001  added        448  -                 [16]
    h0001  added        640  -                 [16]
    --- stderr
    warning: @/x.cpb: section 0: the module is damaged: its digest does not match [E_DIGEST at byte 8192]
    ");
    assert_eq!(p.run("extract @/x.cpb m0000 @/out").status, ExitStatus::Damaged);
    assert!(!p.path("out").exists());
}

#[test]
fn one_bad_superblock_is_a_warning() {
    let p = Place::new();
    p.damaged("x.cpb", |b| b[40] ^= 1);
    assert_snapshot!(p.run("log @/x.cpb").whole(), @r"
    Success (0)
    stage  parent  bytes  commit at  commit            learned
        1       -    960     16,384  [16]  intent
        2       1  2,048     28,672  [16]  topic (current)
    --- stderr
    warning: @/x.cpb: superblock A is unusable (the superblock's checksum does not match [E_DIGEST at byte 124]); superblock B is used
    ");
    assert_snapshot!(p.run("verify @/x.cpb").whole(), @r"
    Damaged (1)
    fault      superblock A is unusable (the superblock's checksum does not match [E_DIGEST at byte 124]); superblock B is used [W_SUPERBLOCK]

    stage  commit at  sections  whole  bytes
        1     16,384         2      2    960
        2     28,672         4      4  2,048
    --- stderr
    error: @/x.cpb: 1 fault
    hint: nothing is lost; the next append or rollback repairs it
    ");
    assert_eq!(p.run("rollback @/x.cpb 1").status, ExitStatus::Success);
    assert_eq!(p.run("verify --full @/x.cpb").status, ExitStatus::Success, "rolling back repaired it");
}

#[test]
fn without_superblocks_whole_stages_are_found() {
    let p = Place::new();
    p.damaged("x.cpb", |b| [40, 4096 + 40].iter().for_each(|i| b[*i] ^= 1));
    assert_snapshot!(p.run("log @/x.cpb").whole(), @r"
    Damaged (1)
    stage  parent  bytes  commit at  commit            learned
        1       -    960     16,384  [16]  intent
        2       1  2,048     28,672  [16]  topic (current)
    --- stderr
    warning: @/x.cpb: superblock A: the superblock's checksum does not match [E_DIGEST at byte 124]; showing stage 2, which is whole; restore the file from a copy before running it
    ");
    assert_snapshot!(p.run("verify @/x.cpb").whole(), @r"
    Damaged (1)
    fault      @/x.cpb: superblock A: the superblock's checksum does not match [E_DIGEST at byte 124]

    stage  commit at  sections  whole  bytes
        1     16,384         2      2    960
        2     28,672         4      4  2,048
    --- stderr
    error: @/x.cpb: 1 fault
    hint: restore the file from a copy; `conpet-inspect extract --stage N` copies sections that are still whole
    ");
    for words in
        ["@/x.cpb", "tasks @/x.cpb", "diff @/x.cpb 1 2", "tensors @/x.cpb topic", "extract @/x.cpb h0001 @/out"]
    {
        let (damaged, whole) = (p.run(words), p.run(&words.replace("x.cpb", "b.cpb").replace("out", "out2")));
        assert_eq!(damaged.status, ExitStatus::Damaged, "{words}");
        let same = damaged.stdout.replace("x.cpb", "b.cpb").replace("@/out", "@/out2");
        assert_eq!(same, whole.stdout, "{words}");
    }
    assert_eq!(p.bytes("out"), p.bytes("out2"));
}

#[test]
fn a_file_cut_short_still_shows_its_first_stage() {
    let p = Place::new();
    p.damaged("x.cpb", |b| b.truncate(24_576));
    assert_snapshot!(p.run("tasks @/x.cpb").whole(), @r"
    Damaged (1)
    #  task    kind            stage  module  head   labels  template
    0  intent  classification      1  m0000   h0000       2  {input}

    labels of intent
    row  label
      0  lights on
      1  lights off
    --- stderr
    warning: @/x.cpb: superblock A: the bundle needs 32768 bytes, the file has 24576 [E_TRUNCATED at byte 56]; showing stage 1, which is whole; restore the file from a copy before running it
    ");
    assert_snapshot!(p.run("tasks @/x.cpb --stage 2").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/x.cpb: superblock A: the bundle needs 32768 bytes, the file has 24576 [E_TRUNCATED at byte 56]
    hint: whole stages that were found: 1; choose one with --stage
    ");
    let json: serde_json::Value = serde_json::from_str(&p.run("--json @/x.cpb").stdout).unwrap();
    assert_eq!((&json["stage"], &json["damage"][0]["code"]), (&1.into(), &"E_TRUNCATED".into()));
    assert_eq!(p.run("rollback @/x.cpb 1").status, ExitStatus::Damaged, "a damaged file is not written to");
}

#[test]
fn an_unfinished_append_is_no_damage() {
    let p = Place::new();
    p.damaged("x.cpb", |b| b.extend([7; 100]));
    assert_snapshot!(p.run("verify @/x.cpb --full").whole(), @r"
    Success (0)
    ok: every byte is accounted for
    note       100 bytes after the end: an unfinished append, ignored [W_TAIL]

    stage  commit at  sections  whole  bytes
        1     16,384         2      2    960
        2     28,672         4      4  2,048
    --- stderr
    ");
}

#[test]
fn nothing_left() {
    let p = Place::new();
    p.damaged("x.cpb", |b| b[8192..].fill(0));
    assert_snapshot!(p.run("@/x.cpb").whole(), @r"
    Damaged (1)
    --- stderr
    error: @/x.cpb: superblock A: the commit it names is damaged [E_DIGEST at byte 28672]
    hint: the file is damaged or not what it should be; restore it from a copy or make it again
    ");
    assert_snapshot!(p.run("verify @/x.cpb").whole(), @r"
    Damaged (1)
    fault      @/x.cpb: superblock A: the commit it names is damaged [E_DIGEST at byte 28672]
    --- stderr
    error: @/x.cpb: 1 fault
    hint: restore the file from a copy
    ");
}

#[test]
fn wrong_files_and_words() {
    let p = Place::new();
    assert_snapshot!(p.run("@/base.gguf").whole(), @r"
    Usage (2)
    --- stderr
    error: @/base.gguf: superblock A: not a bundle: the magic bytes are wrong [E_MAGIC at byte 0]
    hint: this is a GGUF base; give it with -m and the bundle with -b
    ");
    assert_snapshot!(p.run("@/absent.cpb").whole(), @r"
    Io (4)
    --- stderr
    error: @/absent.cpb: cannot open: No such file or directory (os error 2) [E_IO]
    hint: check the path of the bundle
    ");
    assert_snapshot!(p.run("@").whole(), @r"
    Io (4)
    --- stderr
    error: @: a bundle must be a regular file, not a link, directory or device [E_IO]
    hint: check the path, its permissions and the free space
    ");
    assert_snapshot!(p.run("show").whole(), @r"
    Usage (2)
    --- stderr
    error: the following required arguments were not provided:
      <FILE>

    Usage: conpet-inspect show <FILE>

    hint: for more information, try '--help'.
    ");
    assert_snapshot!(p.run("diff @/b.cpb 1 two").whole(), @r"
    Usage (2)
    --- stderr
    error: invalid value 'two' for '<STAGE>': invalid digit found in string

    hint: for more information, try '--help'.
    ");
    assert_eq!(p.run("--help").status, ExitStatus::Success);
    assert!(p.run("--help").stdout.contains("3    another base than the one the bundle was trained on"));
    assert!(p.run("--version").stdout.starts_with("conpet-inspect "));
}

/// What a file says never reaches the terminal raw.
#[test]
fn x07_terminal_commands_in_a_base_are_shown_not_sent() {
    let p = Place::new();
    let mut w = conpet_formats::gguf::Writer::new();
    w.str("general.architecture", "ll\u{1b}[31mama\u{7}").str("general.name", &"\u{202e}x\n".repeat(300));
    w.strings("tokenizer.ggml.tokens", &[b"\x1b]0;title\x07".as_slice(), b"\xff\x9b"]);
    let mut bytes = Vec::new();
    w.finish(&mut bytes, |_| Ok(Vec::new())).unwrap();
    std::fs::write(p.path("odd.gguf"), bytes).unwrap();
    assert_snapshot!(p.run("gguf @/odd.gguf").whole(), @r#"
    Success (0)
    file       @/odd.gguf
    gguf       version 3, 1,696 bytes
    data       at 1,696, aligned to 32
    runs       no: base architecture "ll\\u{1b}[31mama\\u{7}" is not supported [E_UNSUPPORTED]
    tensors    0 tensors, 0 parameters:

    metadata
    key                    type       value
    general.architecture   string     ll\u{1b}[31mama\u{7}
    general.name           string     \u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x\n\u{202e}x...
    tokenizer.ggml.tokens  string[2]  [\u{1b}]0;title\u{7}, ��]

    tensors (sizes: fastest first)
    tensor  type  sizes  offset  bytes
    --- stderr
    "#);
    // Lossless in JSON, and still pure ASCII.
    let json = p.run("gguf @/odd.gguf --json").stdout;
    assert!(json.is_ascii());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["metadata"][0]["value"], "ll\u{1b}[31mama\u{7}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let p = Place::new();
    let args = || ["conpet-inspect".into(), p.path("b.cpb").into_os_string()];
    let mut stderr = Vec::new();
    assert_eq!(conpet_tools::run(args(), &mut Closed, &mut stderr), ExitStatus::Success);
    assert!(stderr.is_empty());
    assert_eq!(conpet_tools::run(args(), &mut Full, &mut stderr), ExitStatus::Io);
    assert!(stderr.starts_with(b"error: cannot write to stdout"));
}

/// Every byte between the first and the last is covered by something.
#[test]
fn every_flipped_byte_is_survived() {
    let p = Place::new();
    let good = p.bytes("b.cpb");
    assert_eq!(Bundle::open(&p.path("b.cpb")).unwrap().stage(), 2);
    for i in (0..good.len()).step_by(37) {
        p.damaged("x.cpb", |b| b[i] ^= 0x41);
        for words in ["@/x.cpb", "verify --full @/x.cpb --json", "log @/x.cpb"] {
            let ran = p.run(words);
            assert!(ran.status == ExitStatus::Success || ran.stderr.contains("@/x.cpb"), "byte {i}: {}", ran.whole());
        }
        // What full verification passes is what was written.
        let passed = p.run("verify --full @/x.cpb").status == ExitStatus::Success;
        assert!(!passed, "byte {i} was changed and nothing noticed");
    }
}
