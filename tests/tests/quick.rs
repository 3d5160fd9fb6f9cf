//! Labels by the closed form alone (`--quick`), what inputs of no task become with it, and what the selector knows of a
//! task that was named.

use conpet_formats::bundle::{Bundle, verify};
use conpet_runtime::answer::Answer;
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_tests::{program, tiny_base, tiny_engine, tiny_stream, tiny_with};
use conpet_trainer::config::Config;
use conpet_trainer::metrics::Metric;
use conpet_trainer::report::MethodReport;
use conpet_trainer::run::Run;
use conpet_trainer::stream::{self, Goal, Row, Task};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

const STRANGE: [&str; 6] = [
    "zebra quantum 99 ?!",
    "why so slow, friend",
    "1 2 3 4 5 6 7",
    "tell him: never again",
    "lorem ipsum dolor sit amet",
    "f(x) = x*x - 4;",
];

fn row(text: String, label: &str) -> Row {
    Row { text, goal: Goal::Label(label.into()), chat: Vec::new() }
}

/// A task of two labels with all 320 pairs of a word before and a word after, split at random.
fn task(name: &str, frame: &str, labels: [(&str, [&str; 5]); 2]) -> Task {
    let before = "the my her one our that his their your this each some any no every such old new good bad fine warm \
                  wet dry rare real late next last first other second"
        .split_whitespace();
    let mut rows: Vec<Row> = before
        .flat_map(|b| labels.map(|(label, words)| words.map(|w| row(format!("{frame} {b} {w}"), label))))
        .flatten()
        .collect();
    conpet_trainer::rng::Stream::new(1, name, 0).shuffle(&mut rows);
    let test = rows.split_off(200);
    let valid = rows.split_off(100);
    Task {
        name: name.into(),
        kind: conpet_formats::bundle::manifest::TaskKind::Classification,
        labels: labels.map(|(l, _)| l.into()).to_vec(),
        template: "{input}".into(),
        max_answer: 0,
        train: rows,
        valid,
        test,
        digest: String::new(),
        metric: Metric::default(),
    }
}

fn tasks() -> Vec<Task> {
    let colours =
        [("red", ["fire", "blood", "rose", "ruby", "brick"]), ("blue", ["sky", "sea", "ink", "jeans", "ice"])];
    let sizes =
        [("big", ["house", "whale", "tower", "ship", "hill"]), ("small", ["mouse", "coin", "seed", "pin", "ant"])];
    let calls =
        [("animal", ["dog", "cat", "cow", "hen", "pig"]), ("device", ["phone", "bell", "horn", "alarm", "radio"])];
    vec![
        task("colour", "the colour of", colours),
        task("size", "how large is", sizes),
        task("sound", "listen to", calls),
    ]
}

fn learn(config: Config, engine: &Engine, tasks: Vec<Task>, path: &Path) -> MethodReport {
    let stop = AtomicBool::new(false);
    let strangers = STRANGE.iter().map(|t| row((*t).into(), "x")).collect();
    let run = Run::new(config, engine, tasks, path, &stop, |_| {}).unwrap();
    run.with_strangers(strangers).stream(false).unwrap().unwrap()
}

/// Share of a task's test rows that are answered with their label.
fn right(answers: &[Answer], rows: &[Row]) -> f64 {
    answers.iter().zip(rows).filter(|(a, r)| a.label.as_deref() == r.label()).count() as f64 / rows.len() as f64
}

fn answers(engine: &Engine, skills: &Skills, task: &Task, named: Option<usize>) -> Vec<Answer> {
    let texts: Vec<&str> = task.test.iter().map(|r| r.text.as_str()).collect();
    engine.classify(skills, &texts, named).unwrap()
}

#[test]
fn a_bundle_without_modules_answers_grows_and_keeps_its_promise() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    for selector in ["lda", "ridge", "centroid", "linear", "mlp"] {
        let config = tiny_with(&format!("modules=none selector={selector}"));
        let whole = dir.path().join(format!("{selector}.cpb"));
        let r = learn(config.clone(), &engine, tasks(), &whole);
        assert_eq!(verify(&whole, true).unwrap(), []);
        let bundle = Bundle::open(&whole).unwrap();
        let m = bundle.manifest();
        assert!(m.modules.is_empty() && m.heads.is_empty() && m.tasks.iter().all(|t| t.by_selector()));
        assert!(m.requires.contains(&"task:selector".to_owned()), "{:?}", m.requires);
        let skills = Skills::new(bundle, &engine.base).unwrap();
        for (t, task) in tasks().iter().enumerate() {
            let routed = answers(&engine, &skills, task, None);
            assert!(right(&routed, &task.test) >= 0.85, "{selector} {}: {}", task.name, right(&routed, &task.test));
            let named = answers(&engine, &skills, task, Some(t));
            assert!(right(&named, &task.test) >= right(&routed, &task.test), "{selector} {}", task.name);
            assert!(named.iter().all(|a| a.task == t && a.decision.is_none() && !a.abstain));
            assert!(named.iter().all(|a| a.probability.is_finite() && a.probability >= 0.5), "of two labels");
        }
        // A promise for each task, from rows left out or validation rows: it holds for rows never seen.
        let refusal = skills.selector().refusal().unwrap();
        assert!(refusal.unsure().next().is_none() && (0..3).all(|t| refusal.rows(t) == 100), "{selector}");
        let refused: usize =
            tasks().iter().map(|task| answers(&engine, &skills, task, None).iter().filter(|a| a.abstain).count()).sum();
        assert!(refused * 20 <= 360, "{selector} refuses {refused} of 360 rows of its tasks");
        let d = r.metrics.detection.unwrap();
        if selector == "lda" {
            assert!(d.refused >= 0.5 && d.auroc > 0.9, "{d:?}");
        }
        // Two tasks, and the third added without their rows: the same bytes.
        let (grown, stop) = (dir.path().join("grown.cpb"), AtomicBool::new(false));
        let mut first = tasks();
        let third = first.pop().unwrap();
        learn(config.clone(), &engine, first, &grown);
        Run::onto(config, &engine, third, &grown, &stop, |_| {}).unwrap().add().unwrap().unwrap();
        assert!(std::fs::read(&whole).unwrap() == std::fs::read(&grown).unwrap(), "{selector}");
        std::fs::remove_file(grown).unwrap();
    }
}

#[test]
fn limits_are_per_task_and_a_task_of_few_rows_suspends_them() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let path = dir.path().join("b.cpb");
    let mut all = tasks();
    all[2].train.truncate(30);
    let r = learn(tiny_with("modules=none"), &engine, all.clone(), &path);
    let at = |stage: u64| {
        let skills = Skills::new(Bundle::open_stage(&path, stage).unwrap(), &engine.base).unwrap();
        let refused = engine.classify(&skills, &STRANGE, None).unwrap().iter().filter(|a| a.abstain).count();
        let refusal = skills.selector().refusal().unwrap();
        (
            refused,
            (0..stage as usize).map(|t| refusal.rows(t)).collect::<Vec<_>>(),
            refusal.unsure().collect::<Vec<_>>(),
        )
    };
    let (refused, rows, unsure) = at(2);
    assert!(refused >= 3 && unsure.is_empty(), "{refused} of {}, {unsure:?}", STRANGE.len());
    assert_eq!(rows, [100, 100]);
    assert_eq!(at(3), (0, vec![100, 100, 30], vec![2]), "thirty rows promise nothing at 5 %");
    assert_eq!(r.metrics.detection.unwrap().refused, 0.0);
    // 0 refuses nothing, however many rows there are.
    let none = learn(tiny_with("modules=none abstain=0"), &engine, tasks(), &dir.path().join("n.cpb"));
    let d = none.metrics.detection.unwrap();
    assert_eq!((d.refused, d.refused_known), (0.0, 0.0));
    assert!(d.auroc > 0.9, "told apart all the same: {d:?}");
}

#[test]
fn a_first_task_of_text_has_no_promise_and_the_next_is_learned_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let mut all = stream::open(&tiny_stream(dir.path())).unwrap();
    all.rotate_right(1);
    all.truncate(2);
    let path = dir.path().join("b.cpb");
    learn(tiny_with("epochs=1 score=last"), &engine, all.clone(), &path);
    assert_eq!(verify(&path, true).unwrap(), []);
    let skills = |stage| Skills::new(Bundle::open_stage(&path, stage).unwrap(), &engine.base).unwrap();
    let one = skills(1);
    assert_eq!((one.selector().refusal().unwrap().rows(0), one.selector().refusal().unwrap().unsure().count()), (0, 1));
    let routed = answers(&engine, &skills(2), &all[1], None);
    assert!(routed.iter().filter(|a| a.task == 1).count() * 10 >= 9 * routed.len());
}

/// Heads that learned nothing, so that only the selector knows the labels.
#[test]
fn a_named_task_is_answered_with_what_the_selector_knows() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let path = dir.path().join("b.cpb");
    let mut two = tasks();
    two.truncate(2);
    learn(tiny_with("epochs=1 lr=1e-12 head_lr=1e-12 score=last"), &engine, two.clone(), &path);
    let skills = Skills::open(&path, &engine.base).unwrap();
    for (t, task) in two.iter().enumerate() {
        let head = skills.manifest().tasks[t].head.unwrap();
        assert!(skills.manifest().heads[head as usize].blend.to_f64() > 0.0 && skills.reads_selector(t).unwrap());
        let (routed, named) = (answers(&engine, &skills, task, None), answers(&engine, &skills, task, Some(t)));
        assert!(right(&named, &task.test) >= 0.85, "{}: {}", task.name, right(&named, &task.test));
        assert!(right(&named, &task.test) >= right(&routed, &task.test), "{}", task.name);
        let mut same = 0;
        for (r, n) in routed.iter().zip(&named).filter(|(r, _)| r.candidates.len() == 1 && r.task == t) {
            assert!(r.label == n.label && (r.probability - n.probability).abs() < 1e-4, "{r:?} {n:?}");
            same += 1;
        }
        assert!(same * 2 > task.test.len(), "{same} routed to the one task");
    }
}

#[test]
fn what_takes_a_module_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::rename(tiny_base(at, 1), at.join("base.gguf")).unwrap();
    tiny_stream(at);
    let train = |command: &str| {
        let command = command.split_whitespace();
        let out = Command::new(program("conpet-train")).current_dir(at).args(command).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let stream = "stream stream -m base.gguf -b b.cpb --threads 2 --quick";
    for (given, says) in [
        ("", ["echo", "--quick"]),
        ("--tasks 2 --method per-task", ["per-task", "--method dynamic"]),
        ("--tasks 2 --method joint", ["joint", "--method dynamic"]),
        ("--tasks 2 --selector conpet", ["conpet", "--selector lda"]),
        ("--tasks 2 --selector uniform", ["uniform", "--selector lda"]),
        ("--tasks 2 --modules train", ["--quick", "--modules"]),
    ] {
        let (code, err) = train(&format!("{stream} {given}"));
        assert!(matches!(code, Some(1 | 2)), "{given}: {code:?} {err}");
        assert!(says.iter().all(|s| err.contains(s)), "{given}: {err}");
        assert!(!at.join("b.cpb").exists(), "{given}");
    }
    let (code, err) = train(&format!("{stream} --tasks 2"));
    assert_eq!(code, Some(0), "{err}");
    let before = std::fs::read(at.join("b.cpb")).unwrap();
    let add = "add stream/echo -m base.gguf -b b.cpb --threads 2 --quick";
    for (given, says) in
        [("", ["echo", "--quick"]), ("--epochs 3", ["--epochs", "no effect"]), ("--pet lora", ["--pet", "no effect"])]
    {
        let (code, err) = train(&format!("{add} {given}"));
        assert!(matches!(code, Some(1 | 2)) && says.iter().all(|s| err.contains(s)), "{given}: {code:?} {err}");
    }
    assert!(before == std::fs::read(at.join("b.cpb")).unwrap());
    // A task of text gets its module beside tasks that have none.
    let (code, err) = train("add stream/echo -m base.gguf -b b.cpb --threads 2 --epochs 1");
    assert_eq!(code, Some(0), "{err}");
    let bundle = Bundle::open(&at.join("b.cpb")).unwrap();
    let m = bundle.manifest();
    assert_eq!(m.tasks.iter().map(|t| t.module).collect::<Vec<_>>(), [None, None, Some(0)]);
}
