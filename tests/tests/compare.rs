//! `conpet-train compare`: all runs on one page, and none twice.

use conpet_tests::{program, tiny_base, tiny_stream};
use conpet_trainer::report::Report;
use std::process::Command;

#[test]
fn compares_methods_over_orders_and_goes_on_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let (base, stream, out) = (tiny_base(dir.path(), 1), tiny_stream(dir.path()), dir.path().join("out"));
    let compare = |methods: &str, more: &[&str]| {
        let run = Command::new(program("conpet-train"))
            .arg("compare")
            .arg(&stream)
            .arg("-m")
            .arg(&base)
            .args([
                "--methods",
                methods,
                "--orders",
                "2",
                "--tasks",
                "2",
                "--trunk",
                "1",
                "--epochs",
                "1",
                "--threads",
                "1",
            ])
            .args(more)
            .arg("-o")
            .arg(&out)
            .output()
            .unwrap();
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (code, err) = compare("dynamic:centroid,sequential", &[]);
    assert_eq!(code, Some(0), "{err}");
    let report: Report = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    let names: Vec<_> = report.summary.iter().map(|s| (s.name.as_str(), s.runs)).collect();
    assert_eq!(names, [("dynamic (centroid)", 2), ("sequential", 2)]);
    assert_eq!(report.methods.len(), 4);
    assert!(report.methods.iter().any(|m| m.tasks[0] == "size"), "the second order differs");
    for s in &report.summary {
        for key in ["average", "forgetting", "bwt", "trainable", "ratio", "tokens", "seconds", "peak", "bundle"] {
            assert!(s.figures.contains_key(key), "{} lacks {key}", s.name);
        }
        assert!(s.average.len() == 2 && s.figures["average"].sd.is_some());
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("dynamic (centroid)") && page.contains("sequential"));
    // With one more method only its runs are made.
    let kept = out.join("runs/sequential-seed1-order0.cpb");
    std::fs::remove_file(&kept).unwrap();
    let (code, err) = compare("dynamic:centroid,sequential,dynamic:uniform", &[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(!kept.exists() && err.contains("is done") && out.join("runs/dynamic-uniform-seed1-order1.cpb").exists());
    // Other settings make another comparison.
    let (code, err) = compare("sequential", &["--rank", "4"]);
    assert!(code == Some(1) && err.contains("sequential-seed1-order0.toml") && err.contains("--out"), "{code:?} {err}");
    for (methods, says) in [("magic", "magic"), ("sequential,sequential", "twice"), ("dynamic:magic", "magic")] {
        let (code, err) = compare(methods, &[]);
        assert!(code == Some(1) && err.contains(says) && err.contains("hint: "), "{methods}: {code:?} {err}");
    }
}

/// Fails if a method that cannot learn the stream stops the others.
#[test]
fn a_method_that_cannot_learn_the_stream_is_left_out_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (base, stream, out) = (tiny_base(dir.path(), 1), tiny_stream(dir.path()), dir.path().join("out"));
    let compare = |methods: &str| {
        let mut run = Command::new(program("conpet-train"));
        run.arg("compare").arg(&stream).arg("-m").arg(&base).args(["--methods", methods, "--epochs", "1"]);
        let out = run.args(["--trunk", "1", "--threads", "1"]).arg("-o").arg(&out).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    // Its third task generates text.
    let (code, err) = compare("lwf,sequential");
    assert!(code == Some(2) && err.contains("echo") && err.contains("hint: "), "{code:?} {err}");
    assert!(!out.join("runs").exists());
    let (code, err) = compare("sequential,dynamic:task");
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("sequential is left out") && err.contains("echo"), "{err}");
    let report: Report = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report.summary.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["dynamic (task)"]);
}
