//! The built programs, from the outside: killed midway, interrupted, and used as the README says.

use conpet_tests::{program, tiny_base, tiny_stream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn train(dir: &Path, base: &Path, out: &str, epochs: &str, extra: &[&str]) -> Command {
    let mut c = Command::new(program("conpet-train"));
    c.arg("stream").arg(tiny_stream(dir)).arg("-m").arg(base).arg("-b").arg(dir.join(out));
    c.args(["--trunk", "1", "--batch", "8", "--lr", "5e-3", "--threads", "2", "--checkpoint-every", "2"]);
    c.args(["--epochs", epochs]).args(extra).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

fn ok(o: &Output) -> String {
    assert!(o.status.success(), "{}\n{}", o.status, String::from_utf8_lossy(&o.stderr));
    String::from_utf8_lossy(&o.stdout).into_owned()
}

#[test]
fn killed_at_any_moment_it_resumes_to_the_same_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), 1);
    let begin = Instant::now();
    ok(&train(dir.path(), &base, "whole.cpb", "6", &[]).output().unwrap());
    let took = begin.elapsed();
    let whole = std::fs::read(dir.path().join("whole.cpb")).unwrap();
    let out = dir.path().join("killed.cpb");
    let start = || {
        // After the first kill there is something to resume from, if only the settings.
        let resume: &[&str] = if dir.path().join("killed.work").exists() { &["--resume"] } else { &[] };
        train(dir.path(), &base, "killed.cpb", "6", resume)
    };
    // K01. Kill -9 at any moment; a run that finished before the kill is compared and started again.
    let kills: u32 = if std::env::var_os("CONPET_FULL").is_some() { 200 } else { 3 };
    for kill in 0..kills {
        let mut child = start().spawn().unwrap();
        std::thread::sleep(took * (3 + 4 * (kill % 3)) / 20 + took * (kill * 7 % 10) / 100);
        let ended = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        let _ = child.wait();
        if ended {
            assert!(whole == std::fs::read(&out).unwrap(), "the resumed bundle differs after kill {kill}");
            std::fs::remove_file(&out).unwrap();
            let _ = std::fs::remove_dir_all(dir.path().join("killed.work"));
        }
    }
    ok(&start().output().unwrap());
    assert!(whole == std::fs::read(&out).unwrap(), "the resumed bundle differs");
}

#[test]
fn an_interrupt_keeps_a_checkpoint_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), 1);
    // Long enough that the interrupt comes during training.
    let child = train(dir.path(), &base, "i.cpb", "4000", &[]).spawn().unwrap();
    let file = dir.path().join("i.work");
    let begin = Instant::now();
    let started = || {
        std::fs::read_dir(&file)
            .is_ok_and(|d| d.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".checkpoint")))
    };
    while !started() && begin.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(50));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let o = child.wait_with_output().unwrap();
    assert_eq!(o.status.code(), Some(130), "{}", String::from_utf8_lossy(&o.stderr));
    assert!(String::from_utf8_lossy(&o.stderr).contains("--resume"));
    assert!(started(), "the checkpoint is gone");
}

#[test]
fn programs_work_together() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), 1);
    let table = ok(&train(dir.path(), &base, "t.cpb", "6", &[]).output().unwrap());
    assert!(table.contains("routing") && table.contains("colour"), "{table}");
    let bundle = dir.path().join("t.cpb");
    let run = |args: &[&str]| {
        let mut c = Command::new(program("conpet-run"));
        c.args(args).arg("-m").arg(&base).arg("-b").arg(&bundle);
        c.output().unwrap()
    };
    let line = ok(&run(&["classify", "--json", "how large is our coin", "please show a file"]));
    let rows: Vec<serde_json::Value> = line.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((rows[0]["task"].as_str(), rows[0]["label"].as_str()), (Some("size"), Some("small")));
    assert_eq!(rows[1]["task"].as_str(), Some("echo"));
    assert!(ok(&run(&["route", "the colour of that sky"])).contains("margin"));
    let bench: serde_json::Value =
        serde_json::from_str(&ok(&run(&["bench", "--json", "-p", "16", "-n", "4", "-r", "1"]))).unwrap();
    assert!(bench[0]["avg_ts"].as_f64().unwrap() > 0.0 && bench[0]["rss_anon_kb"].as_u64().unwrap() > 0);
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "the list of files and the words that people use ".repeat(20)).unwrap();
    let file = text.to_str().unwrap();
    let measured: serde_json::Value =
        serde_json::from_str(&ok(&run(&["perplexity", "-f", file, "-c", "32", "--chunks", "2", "--json"]))).unwrap();
    // A base of random weights is no better than chance: its perplexity is about the number of tokens.
    let value = measured["perplexity"].as_f64().unwrap();
    assert!(value > 50.0 && measured["tokens"] == 2 * 15, "{measured}");
    let module = ok(&run(&["perplexity", "-f", file, "-c", "32", "--chunks", "2", "--task", "size", "--json"]));
    assert!(!module.contains(&value.to_string()), "the module is in force: {module}");
    let tokens = Command::new(program("conpet-run")).args(["tokenize", "--json", "the list", "-m"]).arg(&base).output();
    // "the" at the beginning is spelled byte by byte; " list" is one token.
    assert_eq!(serde_json::from_str::<Vec<u32>>(&ok(&tokens.unwrap())).unwrap().len(), 4);
    let shown = Command::new(program("conpet-train"))
        .args(["eval"])
        .arg(tiny_stream(dir.path()))
        .arg("-m")
        .arg(&base)
        .arg("-b")
        .arg(&bundle)
        .output();
    assert!(ok(&shown.unwrap()).contains("whole"));
    let report = std::fs::read_to_string(dir.path().join("t.report/report.html")).unwrap();
    assert!(report.contains("<svg") && !report.contains("http"));
    let again = train(dir.path(), &base, "t.cpb", "6", &[]).output().unwrap();
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--resume"),
        "an existing bundle is not overwritten"
    );
}
