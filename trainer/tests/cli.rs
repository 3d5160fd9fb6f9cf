//! The program's own manners: help, version, exit codes, errors that name file and remedy.

use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_conpet-train")).args(args).output().expect("the program starts")
}

fn stderr(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

#[test]
fn help_and_version_go_to_standard_output() {
    let help = run(&["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("stream"));
    assert!(String::from_utf8_lossy(&help.stdout).contains("Exit codes"));
    assert!(String::from_utf8_lossy(&run(&["--version"]).stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn bad_command_lines_exit_with_2() {
    for args in [&[][..], &["nonsense"], &["stream", "--no-such-flag"]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn missing_and_wrong_files_are_named_with_a_remedy() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("base.gguf");
    let base = path.to_str().expect("a plain path");
    let folder = dir.path().to_str().expect("a plain path");
    let with = |m: &str| run(&["stream", folder, "-m", m, "-b", "none.cpb"]);
    for content in [None, Some(&b""[..]), Some(b"GGUF"), Some(b"PK\x03\x04 not a model")] {
        if let Some(c) = content {
            std::fs::write(&path, c).expect("written");
        }
        let o = with(base);
        let e = stderr(&o);
        assert!(!o.status.success() && e.contains("error: ") && !e.contains("panicked"), "{content:?}: {e}");
        assert!(e.contains("hint: "), "{content:?}: {e}");
    }
}
