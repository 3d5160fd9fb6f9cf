//! A stream goes in, a bundle comes out, and it answers: on the tiny base, in seconds.

use conpet_formats::Code;
use conpet_formats::bundle::verify;
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_runtime::text::Request;
use conpet_tests::{tiny_base, tiny_config, tiny_engine, tiny_stream, tiny_with};
use conpet_trainer::config::Config;
use conpet_trainer::report::MethodReport;
use conpet_trainer::run::Run;
use conpet_trainer::services::Event;
use conpet_trainer::stream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn learn(
    config: Config,
    engine: &Engine,
    dir: &Path,
    out: &str,
    stop_after: Option<u64>,
    resume: bool,
) -> Option<MethodReport> {
    let mut tasks = stream::open(&tiny_stream(dir)).unwrap();
    if config.run.method != "dynamic" {
        // One shared head cannot generate text as well.
        tasks.truncate(2);
    }
    let stop = AtomicBool::new(false);
    let mut steps = 0;
    let mut run = Run::new(config, engine, tasks, &dir.join(out), &stop, |e| {
        steps += u64::from(matches!(e, Event::Step(..)));
        stop.store(stop_after == Some(steps), Ordering::Relaxed);
    })
    .unwrap();
    run.stream(resume).unwrap()
}

#[test]
fn dynamic_learns_three_tasks_keeps_them_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let r = learn(tiny_config(), &engine, dir.path(), "d.cpb", None, false).unwrap();
    let m = &r.metrics;
    assert!(m.routing_accuracy >= 0.9, "routing {}", m.routing_accuracy);
    assert!(m.average_accuracy >= 0.8, "average {}: {:?}", m.average_accuracy, m.matrix);
    assert!(m.forgetting.unwrap() <= 0.1, "forgetting {:?}", m.forgetting);
    let path = dir.path().join("d.cpb");
    assert_eq!(verify(&path, true).unwrap(), []);
    let skills = Skills::open(&path, &engine.base).unwrap();
    assert_eq!(skills.bundle().history().unwrap().len(), 3);
    let a = engine.classify(&skills, &["how large is our tower", "the colour of that sea"], None).unwrap();
    assert_eq!([a[0].label.as_deref(), a[1].label.as_deref()], [Some("big"), Some("blue")]);
    let ask = Request { text: "please open a day".into(), ..Request::default() };
    let g = engine.generate(Some(&skills), &ask, &mut |_| true).unwrap();
    assert_eq!((g.task, g.text.trim()), (Some(2), "open"));
    // One at a time or together, the answer is the same.
    let alone = engine.classify(&skills, &["the colour of that sea"], None).unwrap();
    assert_eq!(alone[0].label, a[1].label);
    assert!((alone[0].probability - a[1].probability).abs() < 1e-4);
}

#[test]
fn scores_are_what_the_engine_answers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let r = learn(tiny_config(), &engine, dir.path(), "d.cpb", None, false).unwrap();
    let skills = Skills::open(&dir.path().join("d.cpb"), &engine.base).unwrap();
    let last = r.stages.last().unwrap();
    for (t, task) in stream::open(&tiny_stream(dir.path())).unwrap().iter().enumerate().take(2) {
        let texts: Vec<&str> = task.test.iter().map(|r| r.text.as_str()).collect();
        let answers = engine.classify(&skills, &texts, None).unwrap();
        let right =
            answers.iter().zip(&task.test).filter(|(a, r)| a.task == t && a.label.as_deref() == r.label()).count();
        assert_eq!(right, last.right[t], "task {}", task.name);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_a_stopped_run_resumes_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let at_once = learn(tiny_config(), &engine, dir.path(), "a.cpb", None, false).unwrap().usage;
    let whole = std::fs::read(dir.path().join("a.cpb")).unwrap();
    learn(tiny_config(), &engine, dir.path(), "b.cpb", None, false).unwrap();
    assert!(whole == std::fs::read(dir.path().join("b.cpb")).unwrap(), "two runs of one seed differ");
    learn(tiny_with("seed=2"), &engine, dir.path(), "c.cpb", None, false).unwrap();
    assert!(whole != std::fs::read(dir.path().join("c.cpb")).unwrap(), "another seed changes nothing");
    // Stop within the first task, then within the second, then let it finish.
    assert!(learn(tiny_config(), &engine, dir.path(), "r.cpb", Some(5), false).is_none());
    assert!(learn(tiny_config(), &engine, dir.path(), "r.cpb", Some(20), true).is_none());
    let resumed = learn(tiny_config(), &engine, dir.path(), "r.cpb", None, true).unwrap().usage;
    assert!(whole == std::fs::read(dir.path().join("r.cpb")).unwrap(), "the resumed bundle differs");
    // The report counts what all three processes did.
    assert_eq!((resumed.trained_tokens, resumed.trainable), (at_once.trained_tokens, at_once.trainable));
}

/// Fails if a run resumes with other rows or settings than it was begun with.
#[test]
fn a_resume_with_other_rows_or_settings_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let path = dir.path().join("r.cpb");
    let stop = AtomicBool::new(false);
    let begin = |stop_after: Option<u64>, resume: bool, config: Config| {
        let tasks = stream::open(&dir.path().join("stream")).unwrap();
        let mut steps = 0;
        let mut run = Run::new(config, &engine, tasks, &path, &stop, |e| {
            steps += u64::from(matches!(e, Event::Step(..)));
            stop.store(stop_after == Some(steps), Ordering::Relaxed);
        })
        .unwrap();
        run.stream(resume)
    };
    tiny_stream(dir.path());
    let rows = dir.path().join("stream/size/train.jsonl");
    let good = std::fs::read_to_string(&rows).unwrap();
    // The same number of rows, the labels the other way round.
    let flipped = good.replace("\"big\"", "\"?\"").replace("\"small\"", "\"big\"").replace("\"?\"", "\"small\"");
    // Within the first task, where there is no bundle yet, and within the second.
    for (resume, at) in [(false, 5), (true, 20)] {
        assert!(begin(Some(at), resume, tiny_config()).unwrap().is_none());
        std::fs::write(&rows, &flipped).unwrap();
        let e = begin(None, true, tiny_config()).unwrap_err().to_string();
        assert!(e.contains("\"size\"") && e.contains("rows.json") && e.contains("hint: "), "{e}");
        std::fs::write(&rows, &good).unwrap();
        let e = begin(None, true, tiny_with("lr=1e-4")).unwrap_err().to_string();
        assert!(e.contains("lr was 0.005") && e.contains("is 0.0001"), "{e}");
    }
    assert!(begin(None, true, tiny_config()).unwrap().is_some());
}

#[test]
fn each_stage_only_appends() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let path = dir.path().join("g.cpb");
    let tasks = stream::open(&tiny_stream(dir.path())).unwrap();
    let stop = AtomicBool::new(false);
    let mut before: Vec<u8> = Vec::new();
    for n in 1..=3 {
        if n == 1 {
            let mut run = Run::new(tiny_config(), &engine, tasks[..1].to_vec(), &path, &stop, |_| {}).unwrap();
            run.stream(false).unwrap().unwrap();
        } else {
            let task = tasks[n - 1].clone();
            let s = Run::onto(tiny_config(), &engine, task, &path, &stop, |_| {}).unwrap().add().unwrap().unwrap();
            assert!(s.rows[n - 1] > 0);
        }
        let now = std::fs::read(&path).unwrap();
        // Compare from the first section on; only the two superblock pages may change.
        if n > 1 {
            assert!(now[8192..before.len()] == before[8192..], "stage {n} changed earlier bytes");
        }
        before = now;
    }
}

#[test]
fn a_bundle_refuses_another_base_of_the_same_shape() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    learn(tiny_config(), &engine, dir.path(), "d.cpb", None, false).unwrap();
    let other = Engine::open(&tiny_base(dir.path(), 2), 1).unwrap();
    let e = Skills::open(&dir.path().join("d.cpb"), &other.base).unwrap_err();
    assert_eq!(e.code(), Code::BaseMismatch);
    assert!(e.to_string().contains("tiny-2.gguf") && e.to_string().contains("hint: "), "{e}");
}

#[test]
fn sequential_and_joint_and_the_published_selector_run() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let of = |c: Config, out: &str| learn(c, &engine, dir.path(), out, None, false).unwrap().metrics;
    let sequential = of(tiny_with("method=sequential"), "s.cpb");
    let joint = of(tiny_with("method=joint"), "j.cpb");
    assert!(joint.average_accuracy >= 0.8, "joint {}", joint.average_accuracy);
    // Without protection the second task's labels win over the first's.
    assert!(sequential.forgetting.unwrap() > 0.3, "forgetting {:?}", sequential.forgetting);
    assert!(joint.average_accuracy > sequential.average_accuracy);
    let conpet = of(tiny_with("selector=conpet"), "c.cpb");
    assert!(conpet.routing_accuracy >= 0.9, "conpet routing {}", conpet.routing_accuracy);
    let ridge = of(tiny_with("selector=ridge shrinkage=0.01"), "r.cpb");
    assert!(ridge.routing_accuracy >= 0.9, "ridge routing {}", ridge.routing_accuracy);
}

#[test]
fn an_input_unlike_any_task_is_noticed_more_often_than_one_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    learn(tiny_with("abstain=0.1"), &engine, dir.path(), "d.cpb", None, false).unwrap();
    let skills = Skills::open(&dir.path().join("d.cpb"), &engine.base).unwrap();
    let abstained =
        |texts: &[&str]| engine.classify(&skills, texts, None).unwrap().iter().filter(|a| a.abstain).count();
    // In the words of the tasks; of words that no row had, nothing is promised.
    let known = abstained(&[
        "the colour of her rose",
        "the colour of my ink",
        "how large is one coin",
        "how large is the whale",
    ]);
    let strangers = abstained(&["qz!", "12 34 56 78", "xyzzy plugh", "%%%"]);
    assert!(known <= 1 && strangers > known, "{known} of 4 known inputs were refused, {strangers} of 4 strangers");
}
