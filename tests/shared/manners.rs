//! What every program must do alike: help, version, exit codes, errors that name file and remedy.
//!
//! Included by `tests/cli.rs` of the packages that build one, so that cargo builds it for them.

use std::process::{Command, Output};

/// A program, and one of its commands that takes a base with -m and a bundle with -b.
pub(crate) struct Program {
    pub(crate) path: &'static str,
    pub(crate) command: &'static str,
}

impl Program {
    fn run(&self, args: &[&str]) -> Output {
        Command::new(self.path).args(args).output().expect("the program starts")
    }

    pub(crate) fn help_and_version_go_to_standard_output(&self) {
        let text = |args: &[&str]| String::from_utf8_lossy(&self.run(args).stdout).into_owned();
        let help = self.run(&["--help"]);
        assert!(help.status.success() && text(&["--help"]).contains(self.command));
        assert!(text(&["--help"]).contains("Exit codes"));
        assert!(text(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    }

    pub(crate) fn bad_command_lines_exit_with_2(&self) {
        for args in [&[][..], &["nonsense"], &[self.command, "--no-such-flag"]] {
            assert_eq!(self.run(args).status.code(), Some(2), "{args:?}");
        }
    }

    pub(crate) fn missing_and_wrong_files_are_named_with_a_remedy(&self) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("base.gguf");
        let base = path.to_str().expect("a plain path");
        let folder = dir.path().to_str().expect("a plain path");
        for content in [None, Some(&b""[..]), Some(b"GGUF"), Some(b"PK\x03\x04 not a model")] {
            if let Some(c) = content {
                std::fs::write(&path, c).expect("written");
            }
            let o = self.run(&[self.command, folder, "-m", base, "-b", "none.cpb"]);
            let e = String::from_utf8_lossy(&o.stderr).into_owned();
            assert!(!o.status.success() && e.contains("error: ") && !e.contains("panicked"), "{content:?}: {e}");
            assert!(e.contains("hint: "), "{content:?}: {e}");
        }
    }
}
