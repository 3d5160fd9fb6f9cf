//! U20 to U24: a base or a bundle is cut short or rewritten under a running process. It lives, gives no
//! answer computed from what was not there, and says what happened.
//!
//! `CONPET_FULL=1 cargo test -p conpet-runtime --test vanishing -- --nocapture` runs the full figures.

use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::gguf::Gguf;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_formats::{Code, fingerprint};
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_runtime::text::Request;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A base and a bundle of one task on it, and copies to put them back from.
struct Place {
    _dir: tempfile::TempDir,
    base: PathBuf,
    bundle: PathBuf,
    bytes: [Vec<u8>; 2],
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (base, bundle) = (dir.path().join("base.gguf"), dir.path().join("b.cpb"));
        let gguf = tiny::base(&TinyConfig::default()).unwrap();
        std::fs::write(&base, &gguf).unwrap();
        let reference = fingerprint::base_ref(&Gguf::parse(&gguf).unwrap()).unwrap();
        let weights: Vec<f32> = (0..128).map(|i| (i as f32).sin()).collect();
        let (d, feature) = (Draft::new(reference, "dynamic", 1), FeatureSpec::single(4, Pool::Mean, StateNorm::Output));
        let d = tiny::with_task(d, "one", &["no", "yes"], feature, &weights, &[0.0, 0.0]).unwrap();
        d.create(&bundle).unwrap();
        let stage = std::fs::read(&bundle).unwrap();
        Self { _dir: dir, base, bundle, bytes: [gguf, stage] }
    }

    fn file(&self, which: usize) -> &Path {
        [&self.base, &self.bundle][which]
    }

    /// Nothing, half, or one page of a file stays.
    fn lengths(&self, which: usize) -> [u64; 3] {
        [0, self.bytes[which].len() as u64 / 2, 4096]
    }

    fn cut(&self, which: usize, len: u64) {
        File::options().write(true).open(self.file(which)).unwrap().set_len(len).unwrap();
    }

    /// As new files: the running process keeps the damaged ones.
    fn put_back(&self) {
        for which in [0, 1] {
            std::fs::remove_file(self.file(which)).unwrap();
            std::fs::write(self.file(which), &self.bytes[which]).unwrap();
        }
    }

    fn open(&self) -> (Engine, Skills) {
        let engine = Engine::open(&self.base, 2).unwrap();
        let skills = Skills::open(&self.bundle, &engine.base).unwrap();
        (engine, skills)
    }

    fn run(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_conpet-run"));
        c.arg(args[0]).arg("-m").arg(&self.base).arg("-b").arg(&self.bundle).args(["--threads", "2"]).args(&args[1..]);
        c
    }
}

/// Generates with `skills`, calling `at` before each piece; what was emitted, and how it ended.
fn generate(engine: &Engine, skills: &Skills, mut at: impl FnMut(usize)) -> (Vec<String>, Result<(), Code>) {
    let request = Request { text: "the water is".into(), max_tokens: Some(24), ..Request::default() };
    let mut pieces = Vec::new();
    let done = engine.generate(Some(skills), &request, &mut |piece| {
        pieces.push(piece.to_owned());
        at(pieces.len());
        true
    });
    (pieces, done.map(drop).map_err(|e| e.code()))
}

#[test]
fn u20_no_token_leaves_after_a_file_is_cut() {
    let place = Place::new();
    let (engine, skills) = place.open();
    let whole = generate(&engine, &skills, |_| {});
    assert!(whole.1.is_ok() && whole.0.len() > 5, "{whole:?}");
    for which in [0, 1] {
        for len in place.lengths(which) {
            let (engine, skills) = place.open();
            let (pieces, done) = generate(&engine, &skills, |n| {
                if n == 3 {
                    place.cut(which, len);
                }
            });
            assert_eq!(pieces, whole.0[..3], "nothing after the cut to {len}");
            assert_eq!(done, Err(Code::Changed), "cut to {len}");
            // It stays so until the files are opened again.
            assert_eq!(generate(&engine, &skills, |_| {}), (Vec::new(), Err(Code::Changed)));
            place.put_back();
            let (engine, skills) = place.open();
            assert_eq!(generate(&engine, &skills, |_| {}), whole);
        }
    }
}

#[test]
fn u20_u27_no_label_leaves_after_a_file_is_cut_or_rewritten() {
    let place = Place::new();
    let classify = |(engine, skills): &(Engine, Skills)| {
        engine.classify(skills, &["the water is cold"], None).map_err(|e| e.code())
    };
    let whole = classify(&place.open()).unwrap();
    for which in [0, 1] {
        for len in place.lengths(which) {
            // Before the first answer, when little has been read of it, and after one.
            for answered in [false, true] {
                let open = place.open();
                if answered {
                    assert_eq!(classify(&open).unwrap(), whole);
                }
                place.cut(which, len);
                let e = classify(&open).unwrap_err();
                assert!(matches!(e, Code::Changed | Code::Digest), "{e:?} after a cut to {len}");
                place.put_back();
                assert_eq!(classify(&place.open()).unwrap(), whole);
            }
        }
        // U21: other bytes of the same length.
        let open = place.open();
        assert_eq!(classify(&open).unwrap(), whole);
        std::thread::sleep(Duration::from_millis(20));
        let mut other = place.bytes[which].clone();
        other[8192..].iter_mut().for_each(|b| *b ^= 0x55);
        std::fs::write(place.file(which), other).unwrap();
        assert!(matches!(classify(&open).unwrap_err(), Code::Changed | Code::Digest));
        place.put_back();
    }
}

#[test]
fn u22_renaming_removing_and_appending_disturb_nobody() {
    let place = Place::new();
    let (engine, skills) = place.open();
    let whole = generate(&engine, &skills, |_| {});
    let other = place.base.with_file_name("other");
    let disturbed = generate(&engine, &skills, |n| match n {
        2 => Draft::from_bundle(&Bundle::open(&place.bundle).unwrap()).append(&place.bundle).unwrap(),
        3 => {
            std::fs::write(&other, b"something else").unwrap();
            std::fs::rename(&other, &place.bundle).unwrap();
        }
        4 => std::fs::remove_file(&place.base).unwrap(),
        _ => {}
    });
    assert_eq!(disturbed, whole);
}

#[test]
fn u20_the_program_answers_no_further_line_and_says_why() {
    let place = Place::new();
    for which in [0, 1] {
        for len in place.lengths(which) {
            let mut child = place
                .run(&["classify", "--json"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
            // It answers sixteen lines at a time.
            let lines = "the water is cold\n".repeat(16);
            to.write_all(lines.as_bytes()).unwrap();
            for _ in 0..16 {
                let mut line = String::new();
                from.read_line(&mut line).unwrap();
                assert!(line.contains("\"label\""), "{line}");
            }
            place.cut(which, len);
            to.write_all(lines.as_bytes()).unwrap();
            drop(to);
            let mut rest = String::new();
            from.read_to_string(&mut rest).unwrap();
            let Output { status, stderr, .. } = child.wait_with_output().unwrap();
            let stderr = String::from_utf8(stderr).unwrap();
            assert_eq!((rest.as_str(), status.code()), ("", Some(1)), "{stderr}");
            let name = place.file(which).display().to_string();
            assert!(stderr.contains("[E_CHANGED]") && stderr.contains(&name) && stderr.contains("hint: "), "{stderr}");
            place.put_back();
        }
    }
}

#[test]
fn u20_cut_at_any_moment_the_program_lives_and_says_nothing_wrong() {
    let place = Place::new();
    let rounds = if std::env::var_os("CONPET_FULL").is_some() { 500 } else { 4 };
    let args = ["generate", "-n", "200", "-p", "the water is"];
    let begin = std::time::Instant::now();
    let whole = place.run(&args).output().unwrap();
    let takes = begin.elapsed();
    assert!(whole.status.success() && whole.stdout.len() > 100);
    let (mut finished, mut refused, mut rolls) = (0, 0, 1u32);
    for (which, len) in [0, 1].into_iter().flat_map(|w| place.lengths(w).map(|l| (w, l))) {
        for _ in 0..rounds {
            let child = place.run(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            rolls = rolls.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            std::thread::sleep(takes.mul_f64(f64::from(rolls >> 8) / f64::from(1u32 << 24)));
            place.cut(which, len);
            let out = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.code().is_some(), "killed by a signal: {stderr}");
            if out.status.success() {
                assert_eq!(out.stdout, whole.stdout);
                finished += 1;
            } else {
                // Also cut before it was opened: then an error of the file's form.
                assert!(stderr.contains("[E_") && stderr.contains("hint: "), "{stderr}");
                assert!(whole.stdout.starts_with(&out.stdout), "wrong: {}", String::from_utf8_lossy(&out.stdout));
                refused += 1;
            }
            place.put_back();
        }
    }
    let _ = writeln!(
        std::io::stderr(),
        "{} processes cut off: {refused} said so, {finished} had ended before, 0 died, 0 wrong",
        refused + finished
    );
}
