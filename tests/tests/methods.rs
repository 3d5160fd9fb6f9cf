//! Every method on the tiny base. Each test checks something that fails without the mechanism that defines the
//! method.

use conpet_formats::bundle::Bundle;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::tensors::Tensors;
use conpet_runtime::answer::Answer;
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_tests::{tiny_engine, tiny_stream, tiny_with};
use conpet_trainer::config::Config;
use conpet_trainer::method::METHODS;
use conpet_trainer::metrics::Metric;
use conpet_trainer::report::MethodReport;
use conpet_trainer::run::Run;
use conpet_trainer::services::Event;
use conpet_trainer::stream::{self, Goal, Row, Task};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A place to learn in: a folder, the tiny base, and the two labelled tasks of the tiny stream.
struct Place {
    dir: tempfile::TempDir,
    engine: Engine,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = tiny_engine(dir.path());
        Self { dir, engine }
    }

    fn bundle(&self, out: &str) -> PathBuf {
        self.dir.path().join(out)
    }

    fn learn_tasks(&self, tasks: Vec<Task>, config: Config, out: &str) -> MethodReport {
        let stop = AtomicBool::new(false);
        let mut run = Run::new(config, &self.engine, tasks, &self.bundle(out), &stop, |_| {}).unwrap();
        run.stream(false).unwrap().unwrap()
    }

    /// The module after three short tasks.
    fn three(&self, method: &str, align_ridge: f64) -> Numbers {
        let out = format!("{method}-three.cpb");
        let config = tiny_with(&format!("method={method} epochs=2 align_ridge={align_ridge} score=last"));
        self.learn_tasks(five_tasks()[..3].to_vec(), config, &out);
        module(&self.bundle(&out), 3, 0)
    }

    fn learn(&self, config: Config, out: &str) -> MethodReport {
        self.part(config, out, None, false).unwrap()
    }

    /// Learns until a number of steps is done; `None` if that was before the end.
    fn part(&self, config: Config, out: &str, stop_after: Option<u64>, resume: bool) -> Option<MethodReport> {
        let mut tasks = stream::open(&tiny_stream(self.dir.path())).unwrap();
        tasks.truncate(2);
        let (stop, mut steps) = (AtomicBool::new(false), 0);
        let mut run = Run::new(config, &self.engine, tasks, &self.bundle(out), &stop, |e| {
            steps += u64::from(matches!(e, Event::Step(..)));
            stop.store(stop_after == Some(steps), Ordering::Relaxed);
        })
        .unwrap();
        run.stream(resume).unwrap()
    }
}

fn with(method: &str) -> Config {
    tiny_with(&format!("method={method}"))
}

type Numbers = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The tensors of a stage's module.
fn module(path: &Path, stage: u64, index: usize) -> Numbers {
    let b = Bundle::open_stage(path, stage).unwrap();
    let t = Tensors::parse(b.section(b.manifest().modules[index].section).unwrap()).unwrap();
    let names = t.names().filter(|n| !n.starts_with("__pad"));
    names.map(|n| (n.to_owned(), (t.get(n).unwrap().shape, t.get(n).unwrap().to_f32()))).collect()
}

/// The tensors of the newest stage's head.
fn head(path: &Path) -> Numbers {
    let b = Bundle::open(path).unwrap();
    let t = Tensors::parse(b.section(b.manifest().heads[0].section).unwrap()).unwrap();
    ["weight", "bias"].map(|n| (n.to_owned(), (t.get(n).unwrap().shape, t.get(n).unwrap().to_f32()))).into()
}

/// Five tasks of two labels, ten rows each.
fn five_tasks() -> Vec<Task> {
    let words = ["list", "day", "number", "part", "water", "word", "file", "oil", "house", "men"];
    (0..5)
        .map(|t| {
            let label = |i: usize| format!("l{}", i % 2);
            let row = |i: usize| Row {
                text: format!("{} the {} now", words[2 * t + i % 2], words[(i / 2 + t) % 10]),
                goal: Goal::Label(label(i)),
                chat: Vec::new(),
            };
            let rows: Vec<Row> = (0..20).map(row).collect();
            Task {
                name: format!("t{t}"),
                kind: TaskKind::Classification,
                labels: vec![label(0), label(1)],
                template: "{input}".into(),
                max_answer: 0,
                train: rows.clone(),
                valid: rows[..2].to_vec(),
                test: rows[..2].to_vec(),
                digest: "ab".repeat(32),
                metric: Metric::default(),
            }
        })
        .collect()
}

/// Total distance between the parameters of two modules.
fn apart(a: &Numbers, b: &Numbers) -> f32 {
    a.iter().map(|(n, x)| x.1.iter().zip(&b[n].1).map(|(x, y)| (x - y).abs()).sum::<f32>()).sum()
}

/// How far the module's parameters moved between the two stages.
fn moved(path: &Path) -> f32 {
    apart(&module(path, 1, 0), &module(path, 2, 0))
}

/// Without a module for each task, learning the second would harm the first.
#[test]
fn per_task_keeps_a_module_for_each_task_and_asks_for_the_task() {
    let p = Place::new();
    let r = p.learn(with("per-task"), "p.cpb");
    assert!(r.metrics.average_accuracy >= 0.8 && r.metrics.forgetting == Some(0.0), "{:?}", r.metrics.matrix);
    let skills = Skills::open(&p.bundle("p.cpb"), &p.engine.base).unwrap();
    let text = ["how large is our tower"];
    let named = p.engine.classify(&skills, &text, Some(1)).unwrap();
    assert_eq!(named[0].label.as_deref(), Some("big"));
    let e = p.engine.classify(&skills, &text, None).unwrap_err();
    assert!(e.to_string().contains("--task: colour, size"), "{e}");
}

/// Without the penalty (strength 0) it is sequential learning.
#[test]
fn ewc_holds_what_mattered() {
    let p = Place::new();
    let floor = p.learn(with("sequential"), "s.cpb");
    let of =
        |ewc_lambda: f64, out: &str| p.learn(tiny_with(&format!("method=ewc ewc_lambda={ewc_lambda}")), out).metrics;
    let (loose, held) = (of(0.0, "e0.cpb"), of(1e5, "e.cpb"));
    assert_eq!(loose.matrix, floor.metrics.matrix);
    assert_eq!(module(&p.bundle("e0.cpb"), 2, 0), module(&p.bundle("s.cpb"), 2, 0));
    let (far, near) = (moved(&p.bundle("e0.cpb")), moved(&p.bundle("e.cpb")));
    assert!(near < 0.6 * far, "moved {near} with springs, {far} without");
    assert!(held.forgetting.unwrap() < loose.forgetting.unwrap() - 0.3, "{:?} {:?}", held.matrix, loose.matrix);
}

/// Without distillation (weight 0) the scores of the old labels drift as in sequential learning.
#[test]
fn lwf_goes_on_saying_of_old_labels_what_was_said() {
    let p = Place::new();
    let texts: Vec<String> = ["house", "whale", "mouse", "coin"].map(|w| format!("how large is the {w}")).into();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    // Log odds of the first of the two old labels against the second.
    let old = |path: &Path, stage: u64| -> Vec<f32> {
        let skills = Skills::new(Bundle::open_stage(path, stage).unwrap(), &p.engine.base).unwrap();
        let answers = p.engine.classify(&skills, &texts, None).unwrap();
        let odds = |a: &Answer| a.candidates[0].labels[0].2 - a.candidates[0].labels[1].2;
        answers.iter().map(odds).collect()
    };
    let drift = |lwf_lambda: f64, out: &str| {
        p.learn(tiny_with(&format!("method=lwf lwf_lambda={lwf_lambda} lr=2e-3 epochs=10")), out);
        let (before, after) = (old(&p.bundle(out), 1), old(&p.bundle(out), 2));
        before.iter().zip(&after).map(|(a, b)| (a - b).abs()).sum::<f32>() / before.len() as f32
    };
    let (free, held) = (drift(0.0, "l0.cpb"), drift(50.0, "l.cpb"));
    assert!(held < 0.5 * free, "drift {held} with distillation, {free} without");
}

/// Without frozen old factors, growing rank or the penalty, one of the three would not hold.
#[test]
fn o_lora_adds_orthogonal_ranks_beside_frozen_ones() {
    let p = Place::new();
    let overlap = |o_lora_lambda: f64, out: &str| {
        let r = p.learn(tiny_with(&format!("method=o-lora o_lora_lambda={o_lora_lambda}")), out);
        assert!(r.metrics.forgetting.unwrap() <= 0.3, "{:?}", r.metrics.matrix);
        let (first, second) = (module(&p.bundle(out), 1, 0), module(&p.bundle(out), 2, 0));
        let mut sum = 0.0;
        for (name, (shape, old)) in &first {
            let (grown, new) = &second[name];
            if name.ends_with(".lora_b") {
                assert_eq!([grown[0], grown[1]], [shape[0], 2 * shape[1]]);
                for (o, n) in old.chunks(shape[1]).zip(new.chunks(grown[1])) {
                    assert_eq!(o, &n[..shape[1]], "{name}");
                }
                continue;
            }
            assert_eq!(grown[0], 2 * shape[0]);
            assert_eq!(old, &new[..old.len()], "{name}");
            for a in old.chunks(shape[1]) {
                sum += new[old.len()..]
                    .chunks(shape[1])
                    .map(|b| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>().abs())
                    .sum::<f32>();
            }
        }
        sum
    };
    let (free, pushed) = (overlap(0.0, "o0.cpb"), overlap(0.5, "o.cpb"));
    assert!(pushed < 0.5 * free, "overlap {pushed} with the penalty, {free} without");
}

/// Without accumulation the offline module would not move, without the freeze the online one always
/// would, without the ensemble the scores would be those of one module.
#[test]
fn lae_learns_accumulates_and_joins_two_modules() {
    let p = Place::new();
    let of = |keep: f64, freeze: f64, experts: &str, out: &str| {
        let settings = format!("method=lae lae_keep={keep} lae_freeze={freeze} lae_experts={experts}");
        p.learn(tiny_with(&settings), out)
    };
    let r = of(0.5, 0.3, "both", "l.cpb");
    assert!(r.metrics.average_accuracy >= 0.7, "{:?}", r.metrics.matrix);
    let path = p.bundle("l.cpb");
    assert!(Bundle::open(&path).unwrap().manifest().requires.contains(&"ensemble:max".to_owned()));
    let (first, online, offline) = (module(&path, 1, 0), module(&path, 2, 0), module(&path, 2, 1));
    let (whole, part) = (apart(&first, &online), apart(&first, &offline));
    assert!(part > 0.1 * whole && part < 0.9 * whole, "offline moved {part}, online {whole}");
    of(1.0, 0.3, "both", "k.cpb");
    assert_eq!(module(&p.bundle("k.cpb"), 2, 1), first, "what keeps all does not move");
    of(0.5, 1.0, "both", "f.cpb");
    assert_eq!(module(&p.bundle("f.cpb"), 2, 0), module(&p.bundle("f.cpb"), 1, 0), "frozen to the end");

    of(0.5, 0.3, "online", "on.cpb");
    of(0.5, 0.3, "offline", "off.cpb");
    let tasks = stream::open(&tiny_stream(p.dir.path())).unwrap();
    let (mut right, mut others) = (vec![0; 2], 0);
    for (t, row) in tasks[..2].iter().enumerate().flat_map(|(t, task)| task.test.iter().map(move |r| (t, r))) {
        let mut ask = |out: &str| {
            let skills = Skills::open(&p.bundle(out), &p.engine.base).unwrap();
            p.engine.classify(&skills, &[&row.text], None).unwrap().remove(0)
        };
        let [both, on, off] = ["l.cpb", "on.cpb", "off.cpb"].map(&mut ask);
        right[t] += usize::from(both.task == t && both.label.as_deref() == row.label());
        let each = on.candidates[0].labels.iter().zip(&off.candidates[0].labels);
        for (b, (on, off)) in both.candidates[0].labels.iter().zip(each) {
            // The same sums, in a batch of one or of several.
            assert!((b.2 - on.2.max(off.2)).abs() < 1e-3, "{b:?} of {on:?} and {off:?}");
            others += usize::from((on.2 - off.2).abs() > 1e-2);
        }
    }
    assert!(others > 0, "the two modules say the same");
    // What the trainer reports is what the engine answers.
    assert_eq!(right, r.stages[1].right[..2]);
}

/// Fails if a method does not continue from a kind's parameters, does not scale them or does not average them.
#[test]
fn methods_with_one_module_learn_other_kinds_than_lora() {
    let p = Place::new();
    for (method, pet) in [
        ("lae", "adapter:n=4"),
        ("lae", "prefix:n=2"),
        ("ewc", "bias+sparse:n=200,rule=fisher"),
        ("crl", "sparse:n=200,rule=fisher"),
        ("emr", "prefix:n=2,mid=4"),
    ] {
        let out = format!("{method}-{pet}.cpb").replace([':', ','], "-");
        let r = p.learn(tiny_with(&format!("method={method} pet={pet} lae_keep=0.5")), &out);
        assert!(r.metrics.matrix[0][0] > Some(0.8), "{method} {pet}: {:?}", r.metrics.matrix);
        let path = p.bundle(&out);
        let (first, second) = (module(&path, 1, 0), module(&path, 2, 0));
        for (name, (_, v)) in first.iter().filter(|(n, _)| n.ends_with("sparse_index")) {
            assert_eq!(v, &second[name].1, "{method} {pet}: positions once chosen stay");
        }
        let whole = apart(&first, &second);
        assert!(whole > 0.0, "{method} {pet} stands still");
        if method == "lae" {
            let part = apart(&first, &module(&path, 2, 1));
            assert!(part > 0.05 * whole && part < 0.95 * whole, "{pet}: offline moved {part}, online {whole}");
            assert!(first.keys().all(|n| n.starts_with("blk.")), "{pet}: scalars are taken in");
        }
    }
    // With labels as texts, the module continues and gets no tensors of a head.
    p.learn(tiny_with("method=sequential head=choice pet=prefix:n=2 epochs=1"), "choice.cpb");
    let (first, second) = (module(&p.bundle("choice.cpb"), 1, 0), module(&p.bundle("choice.cpb"), 2, 0));
    assert!(first.keys().eq(second.keys()) && apart(&first, &second) > 0.0);
    let m = Bundle::open(&p.bundle("choice.cpb")).unwrap().manifest().clone();
    assert_eq!((m.heads.len(), m.heads[0].classes, m.modules.len()), (1, 4, 1));

    let spec = &p.engine.base.spec;
    let e = tiny_with("method=lwf head=choice").check(spec).unwrap_err().to_string();
    assert!(e.contains("--head choice") && e.contains("sequential"), "{e}");
    for (method, pet, says) in [("o-lora", "lora+bias", "+bias"), ("lae", "prefix:n=2,mid=4", "prefix:n=2,mid=4")] {
        let e = tiny_with(&format!("method={method} pet={pet}")).check(spec).unwrap_err().to_string();
        assert!(e.contains("--pet") && e.contains(says) && e.contains(method), "{e}");
    }
}

/// Without the memory it is sequential learning; without the bound the memory would be all rows.
#[test]
fn emr_replays_a_bounded_memory() {
    let p = Place::new();
    let of = |method: &str, memory: i64, select: &str| {
        let config = tiny_with(&format!("method={method} memory={memory} select={select} memory_repeat=3"));
        p.learn(config, &format!("{method}-{memory}-{select}.cpb"))
    };
    for select in ["kmeans", "herding", "reservoir", "random"] {
        let r = of("emr", 2, select);
        assert!(r.metrics.forgetting.unwrap() <= 0.4, "{select}: {:?}", r.metrics.matrix);
        // 24 new rows and (at most, for k-means) 2 of each of 2 classes three times, six times over.
        let rows = r.usage.stages[1].rows;
        let most = 6 * (24 + 3 * 4);
        assert!(rows == most || select == "kmeans" && rows < most && rows > 6 * 24, "{select}: {rows} rows");
    }
    assert_eq!(of("emr", 0, "random").usage.stages[1].rows, 6 * (24 + 3 * 24));
}

/// Without the map in force the head would be the same as emr's; a map that may not move is the identity.
#[test]
fn ea_emr_serves_through_the_fitted_map() {
    let p = Place::new();
    let of = |method: &str, align_ridge: f64, out: &str| {
        let r = p.learn(tiny_with(&format!("method={method} align_ridge={align_ridge}")), out);
        assert!(r.metrics.forgetting.unwrap() <= 0.3, "{out}: {:?}", r.metrics.matrix);
        // The map's bias is not regularised, however strongly its matrix is.
        let weight = head(&p.bundle(out)).remove_entry("weight");
        (module(&p.bundle(out), 2, 0), Numbers::from_iter(weight))
    };
    let emr = of("emr", 0.1, "emr.cpb");
    let (stiff, fitted) = (of("ea-emr", 9e5, "stiff.cpb"), of("ea-emr", 0.1, "ea.cpb"));
    // The map is fitted after the second task, so that task is learned in the same way.
    assert!(emr.0 == stiff.0 && emr.0 == fitted.0);
    let (still, turned) = (apart(&emr.1, &stiff.1), apart(&emr.1, &fitted.1));
    assert!(still < 1e-3 && turned > 0.1, "the head moved {still} with a stiff map, {turned} with a fitted one");
    // Then the map is in force while the third task is learned.
    assert_ne!(p.three("emr", 0.1), p.three("ea-emr", 0.1));
}

/// Without contrast the module would not move; without prototypes the head would not be theirs.
#[test]
fn crl_answers_by_the_nearest_mean_of_contrasted_features() {
    let p = Place::new();
    let r = p.learn(with("crl"), "c.cpb");
    assert!(r.metrics.average_accuracy >= 0.8 && r.metrics.forgetting.unwrap() <= 0.2, "{:?}", r.metrics.matrix);
    let path = p.bundle("c.cpb");
    assert!(moved(&path) > 1.0);
    let h = head(&path);
    let (shape, weight) = &h["weight"];
    for (w, b) in weight.chunks(shape[1]).zip(&h["bias"].1) {
        let norm: f32 = w.iter().map(|v| v * v).sum::<f32>() * shape[1] as f32 / 4.0;
        assert!((b + norm).abs() < 1e-3 * norm, "bias {b}, mean's square {norm}");
    }
    // Two runs of training for the second task: new rows, then memory.
    assert_eq!(r.usage.stages.len(), 3);
}

/// Without the fixed mixture the cost would grow with the number of tasks, as emr's does.
#[test]
fn static_methods_cost_the_same_for_every_task() {
    let p = Place::new();
    let stages = |method: &str, memory: i64| {
        let config = tiny_with(&format!("method={method} epochs=2 replay_limit=5 memory={memory} score=last"));
        let budget = config.services.budget();
        let out = format!("{method}{memory}.cpb");
        let r = p.learn_tasks(five_tasks(), config, &out);
        let old = std::fs::metadata(p.bundle(&out).with_extension("work").join("t0-replay.states")).unwrap().len();
        (r.usage.stages, budget, old)
    };
    for method in ["static-emr", "static-ea-emr"] {
        let (s, budget, all) = stages(method, -1);
        assert_eq!(s.len(), 5);
        for cost in &s[1..] {
            assert_eq!((cost.steps, cost.rows), (budget, 8 * budget), "{method}: {s:?}");
            // Rows differ by a token or two.
            assert!(cost.tokens.abs_diff(s[1].tokens) * 10 < s[1].tokens, "{method}: {s:?}");
        }
        let (_, _, bounded) = stages(method, 1);
        assert!(bounded * 3 < all, "{method}: {bounded} of {all} bytes of old states for one row of each class");
    }
    let (s, budget, _) = stages("static-crl", -1);
    let (new, mixed): (Vec<_>, Vec<_>) = s[1..].chunks(2).map(|c| (c[0], c[1])).unzip();
    assert!(mixed.iter().all(|c| (c.steps, c.rows) == (budget, 8 * budget)), "{s:?}");
    assert!(new.iter().all(|c| (c.steps, c.rows) == (new[0].steps, new[0].rows)), "{s:?}");
    let (s, _, _) = stages("emr", -1);
    assert!(s.windows(2).all(|w| w[1].rows > w[0].rows), "{s:?}");
}

/// A mixture keeps what was learned: without its old half this is sequential learning.
#[test]
fn static_methods_keep_the_first_task() {
    let p = Place::new();
    for method in ["static-emr", "static-ea-emr", "static-crl"] {
        let m = p.learn(tiny_with(&format!("method={method} replay_limit=10")), &format!("{method}.cpb")).metrics;
        assert!(m.average_accuracy >= 0.8 && m.forgetting.unwrap() <= 0.3, "{method}: {:?}", m.matrix);
    }
}

/// What a method keeps between and within stages must survive a stop: penalties, records, ranks.
#[test]
fn every_method_resumes_to_the_same_bytes() {
    for m in METHODS.iter().filter(|m| !["dynamic", "joint"].contains(&m.name)) {
        let p = Place::new();
        let config = tiny_with(&format!("method={} epochs=3 replay_limit=4", m.name));
        let steps: u64 = p.learn(config.clone(), "a.cpb").usage.stages.iter().map(|s| s.steps).sum();
        // Within the first task, then a few steps into the second, then near its end.
        for (resume, at) in [(false, 4), (true, steps / 2), (true, 3)] {
            assert!(p.part(config.clone(), "r.cpb", Some(at), resume).is_none(), "{} is done too soon", m.name);
        }
        p.part(config, "r.cpb", None, true).unwrap();
        let [a, r] = ["a.cpb", "r.cpb"].map(|b| std::fs::read(p.bundle(b)).unwrap());
        assert!(a == r, "{} resumes to another bundle", m.name);
    }
}
