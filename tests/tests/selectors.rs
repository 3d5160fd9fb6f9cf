//! Every selector: the runtime scores as the trainer fitted it, it routes the tiny stream, it grows without
//! older rows, and it refuses inputs of no task.

use conpet_formats::bundle::manifest::SelectorEntry;
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::hidden::Hidden;
use conpet_formats::mmap::Mapped;
use conpet_formats::ngrams::Words;
use conpet_formats::novelty::Novelty;
use conpet_formats::refusal::Refusal;
use conpet_formats::selector::{self, SelectorKind};
use conpet_formats::tensors::TensorsWriter;
use conpet_runtime::cpu::Cpu;
use conpet_runtime::engine::Engine;
use conpet_runtime::kernels::Kernels;
use conpet_runtime::select::Selector;
use conpet_runtime::skills::Skills;
use conpet_tests::{tiny_engine, tiny_stream, tiny_with, with};
use conpet_trainer::config::Config;
use conpet_trainer::report::MethodReport;
use conpet_trainer::run::Run;
use conpet_trainer::selectors::gaussian::Gaussian;
use conpet_trainer::selectors::{Memory, Scores, Stats, centroid, lda, ridge, softmax};
use conpet_trainer::stream::{self, Goal, Row};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const DIM: usize = 6;
const CLASS_TASK: [i32; 4] = [0, 0, 1, 2];

/// Rows around four points, with their classes.
fn rows() -> (Vec<f32>, Vec<usize>) {
    let wave = |i: usize| (i as f32 * 1.7).sin();
    let classes: Vec<usize> = (0..60).map(|i| i % 4).collect();
    let x = classes.iter().enumerate().flat_map(|(i, c)| {
        (0..DIM).map(move |j| 2.0 * wave(7 * c + 3 * j) + 0.5 * wave(11 * i + j) + 20.0 * f32::from(u8::from(j == 1)))
    });
    (x.collect(), classes)
}

fn entry(kind: SelectorKind, threshold: f64) -> SelectorEntry {
    SelectorEntry {
        feature: Some(FeatureSpec::single(1, Pool::Mean, StateNorm::Rms)),
        kind,
        margin: Decimal::from_f64(0.5),
        module: None,
        section: Some(0),
        stats: None,
        temperature: Decimal::from_f64(1.0),
        threshold: Decimal::from_f64(threshold),
        top_k: 2,
    }
}

fn load(entry: &SelectorEntry, scores: &Scores, more: impl FnOnce(&mut TensorsWriter<'_>)) -> Selector {
    let mut w = TensorsWriter::new();
    let n = scores.bias.len();
    w.add_f32(selector::WEIGHT, &[n, scores.weight.len() / n], &scores.weight).unwrap();
    w.add_f32(selector::BIAS, &[n], &scores.bias).unwrap();
    w.add_i32(selector::CLASS_TASK, &[n], &CLASS_TASK).unwrap();
    more(&mut w);
    let map = Mapped::from_vec(w.finish().unwrap());
    let range = 0..map.len();
    Selector::load(entry, Some((map, range)), 3, DIM).unwrap()
}

/// Checks that the runtime's posterior of each row is the softmax of the trainer's scores, on every instruction
/// set.
fn agree(kind: SelectorKind, scores: &Scores, layer: Option<&Hidden>, more: impl FnOnce(&mut TensorsWriter<'_>)) {
    let (x, _) = rows();
    let loaded = load(&entry(kind, 0.0), scores, more);
    let cpu = Cpu::new(2);
    for kernels in Kernels::all() {
        let got = loaded.decide(&Cpu { kernels, ..cpu.clone() }, &x, std::iter::repeat_n(Words::default(), 60));
        assert_eq!(got.len(), x.len() / DIM);
        for (d, x) in got.iter().zip(x.chunks_exact(DIM)) {
            let hidden = layer.map(|h| {
                let weight = |i: usize| f32::from_le_bytes(h.weight[4 * i..4 * i + 4].try_into().unwrap());
                let unit = |u: usize| (0..DIM).map(|i| weight(DIM * u + i) * x[i]).sum::<f32>() + h.bias[u];
                (0..h.size()).map(|u| unit(u).max(0.0)).collect::<Vec<f32>>()
            });
            let mut want = scores.of(hidden.as_deref().unwrap_or(x));
            conpet_formats::head::log_softmax(&mut want, 1.0);
            for (g, w) in d.class_log_posterior.iter().zip(&want) {
                // The same f32 sums in a different order, on scores of up to some hundreds.
                assert!((g - w).abs() < 2e-3 * (1.0 + w.abs()), "{} {}: {g} for {w}", kind.name(), kernels.name());
            }
        }
    }
}

#[test]
fn the_runtime_scores_what_the_trainer_fitted() {
    let (x, classes) = rows();
    let mut s = Stats::new(DIM);
    s.grow(4);
    s.add(&x, &classes);
    agree(SelectorKind::Lda, &lda::solve(&s, 0.1).unwrap(), None, |_| {});
    agree(SelectorKind::Ridge, &ridge::solve(&s, 0.1).unwrap(), None, |_| {});
    for space in [centroid::Space::Whitened, centroid::Space::Scaled, centroid::Space::Plain] {
        agree(SelectorKind::Centroid, &centroid::solve(&s, space, 0.1).unwrap(), None, |_| {});
    }
    let memory = Memory { rows: x.clone(), classes: classes.clone() };
    agree(SelectorKind::Linear, &softmax::train(&memory, DIM, 4, 0, 50, 1).unwrap().scores, None, |_| {});
    let net = softmax::train(&memory, DIM, 4, 8, 50, 1).unwrap();
    let (weight, bias) = net.hidden.unwrap();
    agree(SelectorKind::Mlp, &net.scores, Some(&Hidden::new(&weight, bias.clone())), |w| {
        w.add_f32(conpet_formats::hidden::WEIGHT, &[8, DIM], &weight).unwrap();
        w.add_f32(conpet_formats::hidden::BIAS, &[8], &bias).unwrap();
    });
    // The random layer is drawn again from the seed in the payload.
    let (shift, scale) = ([0.0, 20.0, 0.0, 0.0, 0.0, 0.0], [1.0; DIM]);
    let layer = Hidden::random(9, 32, &shift, &scale);
    let wide = conpet_runtime::select::through(&layer, &Cpu { kernels: Kernels::naive(), ..Cpu::new(1) }, &x);
    let mut s = Stats::new(32);
    s.grow(4);
    s.add(&wide, &classes);
    agree(SelectorKind::Ridge, &ridge::solve(&s, 0.01).unwrap(), Some(&layer), |w| {
        Hidden::write_random(w, 9, 32, &shift, &scale).unwrap();
    });
}

#[test]
fn a_payload_without_novelty_abstains_by_its_posterior_as_ever() {
    let scores = Scores { weight: [1.0f32; 4 * DIM].to_vec(), bias: vec![0.0; 4] };
    let cpu = Cpu { kernels: Kernels::naive(), ..Cpu::new(1) };
    let x = [1.0f32; DIM];
    let one = |s: &Selector| s.decide(&cpu, &x, [Words::default()]).remove(0);
    // Four equal classes, so the best posterior is a quarter.
    let old = one(&load(&entry(SelectorKind::Lda, 0.3), &scores, |_| {}));
    assert!(old.abstain && (old.novelty - 0.75).abs() < 1e-6);
    assert!(!one(&load(&entry(SelectorKind::Lda, 0.2), &scores, |_| {})).abstain);
    // With novelty in the payload, that decides: minus the best score, 6, is compared with the limit.
    for (limit, abstains) in [(-7.0, true), (-5.0, false)] {
        let new = load(&entry(SelectorKind::Lda, 0.3), &scores, |w| {
            Novelty::new(Vec::new(), Vec::new(), limit).write(w).unwrap();
        });
        let d = one(&new);
        assert_eq!((d.abstain, d.novelty, d.p_value), (abstains, -6.0, None));
    }
    // With the form of an earlier lda: ½ uᵀ F u for u = (6, 6, 6, 7) and F the identity is 78.5.
    let identity: Vec<f32> = (0..4).flat_map(|i| (0..=i).map(move |j| f32::from(u8::from(i == j)))).collect();
    for (limit, abstains) in [(72.0, true), (73.0, false)] {
        let d = one(&load(&entry(SelectorKind::Lda, 0.3), &scores, |w| {
            Novelty::new(vec![0.0, 0.0, 0.0, 1.0], identity.clone(), limit).write(w).unwrap();
        }));
        assert_eq!((d.abstain, d.novelty, d.p_value), (abstains, 78.5 - 6.0, None));
    }
}

/// `Σ⁻¹ b` by Gauss and Jordan, for a lower triangle by rows.
fn solved(triangle: &[f64], b: &[f64]) -> Vec<f64> {
    let n = b.len();
    let at = |i: usize, j: usize| triangle[i.max(j) * (i.max(j) + 1) / 2 + i.min(j)];
    let mut rows: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| at(i, j)).chain([b[i]]).collect()).collect();
    for i in 0..n {
        let pivot: Vec<f64> = rows[i].iter().map(|v| v / rows[i][i]).collect();
        for (k, row) in rows.iter_mut().enumerate() {
            let times = if k == i { 0.0 } else { row[i] };
            row.iter_mut().zip(&pivot).for_each(|(v, p)| *v -= times * p);
        }
        rows[i] = pivot;
    }
    rows.iter().map(|r| r[n]).collect()
}

#[test]
fn novelty_is_the_angle_in_the_whitened_space_and_limits_are_per_task() {
    let (x, classes) = rows();
    let mut s = Stats::new(DIM);
    s.grow(4);
    s.add(&x, &classes);
    let g = Gaussian::new(&s, 0.5).unwrap();
    let mut covariance = s.covariance_within();
    let mut at = 0..;
    for i in 0..DIM {
        at.by_ref().take(i).for_each(|below| covariance[below] *= 0.5);
        at.next();
    }
    // The second task accepts nothing, and the third promises nothing in the second selector.
    let ascending = |n: usize, most: f32| (0..n).map(|i| most * i as f32 / n as f32).collect::<Vec<f32>>();
    let refusals = [
        Refusal::new(0.05, vec![ascending(50, 1e-3), vec![-1.0; 50], ascending(50, 1e-3)]),
        Refusal::new(0.05, vec![ascending(50, 1e-3), vec![-1.0; 50], ascending(44, 1e-3)]),
    ];
    let [sure, unsure] = refusals.map(|r| {
        load(&entry(SelectorKind::Lda, 0.0), &g.scores(), |w| {
            g.write(w).unwrap();
            r.write(w).unwrap();
        })
    });
    let (centre, means) = (s.mean(), s.means());
    // Along the second dimension lie rows near and far, and one opposite to all classes.
    let mut inputs = x.clone();
    inputs.extend([0.0, -50.0, 0.0, 0.0, 0.0, 0.0, 3.0, 20.0, -30.0, 0.0, 7.0, 1.0]);
    let words = || std::iter::repeat_n(Words::default(), inputs.len() / DIM);
    let mut refused = 0;
    for kernels in Kernels::all() {
        let cpu = Cpu { kernels, ..Cpu::new(2) };
        let got = sure.decide(&cpu, &inputs, words());
        for (d, x) in got.iter().zip(inputs.chunks_exact(DIM)) {
            let apart: Vec<f64> = x.iter().zip(&centre).map(|(x, m)| f64::from(*x) - m).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let white = solved(&covariance, &apart);
            let cosine = means.chunks_exact(DIM).map(|m| {
                let m: Vec<f64> = m.iter().zip(&centre).map(|(m, c)| m - c).collect();
                let length = dot(&solved(&covariance, &m), &m).sqrt();
                dot(&white, &m) / (length * dot(&white, &apart).sqrt())
            });
            let want = 1.0 - cosine.fold(-1.0, f64::max);
            // The root is kept as F16.
            assert!((f64::from(d.novelty) - want).abs() < 4e-3, "{}: {} for {want}", cpu.kernels.name(), d.novelty);
            let p = d.p_value.unwrap();
            assert!(p >= 1.0 / 51.0 && (!d.abstain || p <= 0.05), "{p}");
            refused += usize::from(d.abstain);
        }
        assert!(got[60..].iter().all(|d| d.abstain), "strangers");
        assert!(unsure.decide(&cpu, &inputs, words()).iter().all(|d| !d.abstain), "a task promises nothing");
    }
    assert!(refused > 0);
}

fn run(config: Config, engine: &Engine, dir: &Path, out: &str) -> MethodReport {
    let tasks = stream::open(&tiny_stream(dir)).unwrap();
    let stop = AtomicBool::new(false);
    let strange = ["zebra quantum 99 ?!", "why so slow, friend", "1 2 3 4 5 6 7", "tell him: never again"];
    let strangers =
        strange.iter().map(|t| Row { text: (*t).into(), goal: Goal::Label("x".into()), chat: Vec::new() }).collect();
    let run = Run::new(config, engine, tasks, &dir.join(out), &stop, |_| {}).unwrap();
    run.with_strangers(strangers).stream(false).unwrap().unwrap()
}

/// Settings with one epoch, since the selector is tested and not the modules.
fn quick(selector: &str) -> Config {
    let settings = "epochs=1 selector_steps=400 selector_hidden=16 selector_memory=5 score=last";
    tiny_with(&format!("selector={selector} {settings}"))
}

#[test]
fn every_selector_routes_and_grows_by_one_task_without_older_rows() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let wide = with(quick("ridge"), "random_features=64");
    let configs = [wide, quick("centroid"), quick("linear"), quick("mlp")];
    for config in configs {
        let name = config.methods.dynamic.common.selector.clone();
        let whole = dir.path().join(format!("{name}.cpb"));
        let r = run(config.clone(), &engine, dir.path(), whole.file_name().unwrap().to_str().unwrap());
        assert!(r.metrics.routing_accuracy >= 0.9, "{name} routes {}", r.metrics.routing_accuracy);
        // Two tasks as a stream, the third added by a run that has no rows of the first two.
        let mut tasks = stream::open(&tiny_stream(dir.path())).unwrap();
        let third = tasks.pop().unwrap();
        let (grown, stop) = (dir.path().join(format!("{name}-grown.cpb")), AtomicBool::new(false));
        Run::new(config.clone(), &engine, tasks, &grown, &stop, |_| {}).unwrap().stream(false).unwrap().unwrap();
        // The bundle's settings are kept, whatever other settings are given.
        let config = with(config, "random_features=0 selector=lda margin=0.9 top_k=3 selector_feature=0:last");
        Run::onto(config, &engine, third, &grown, &stop, |_| {}).unwrap().add().unwrap().unwrap();
        assert!(std::fs::read(&whole).unwrap() == std::fs::read(&grown).unwrap(), "{name}: grown by rows it had not");
    }
}

#[test]
fn uniform_runs_all_modules_and_the_surest_label_wins() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let mut tasks = stream::open(&tiny_stream(dir.path())).unwrap();
    tasks.truncate(2);
    let (path, stop) = (dir.path().join("u.cpb"), AtomicBool::new(false));
    let config = tiny_with("selector=uniform");
    let r = Run::new(config, &engine, tasks.clone(), &path, &stop, |_| {}).unwrap().stream(false).unwrap().unwrap();
    let skills = Skills::open(&path, &engine.base).unwrap();
    let texts: Vec<&str> = tasks.iter().flat_map(|t| &t.test).map(|r| r.text.as_str()).collect();
    let answers = engine.classify(&skills, &texts, None).unwrap();
    assert!(answers.iter().all(|a| a.candidates.len() == 2 && a.candidates[0].weight == 0.5 && !a.abstain));
    let labels = tasks.iter().enumerate().flat_map(|(t, x)| x.test.iter().map(move |r| (t, r.label())));
    let right = answers.iter().zip(labels).filter(|(a, (t, l))| a.task == *t && a.label.as_deref() == *l).count();
    assert_eq!(right, r.stages[1].right.iter().sum::<usize>(), "scored as it answers");
}

#[test]
fn inputs_of_no_task_are_told_apart_and_only_tasks_with_enough_rows_refuse_them() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let d = run(quick("lda"), &engine, dir.path(), "d.cpb").metrics.detection.unwrap();
    assert_eq!(d.rows, 4);
    assert!(d.auroc > 0.9 && d.fpr95 <= 0.5, "{d:?}");
    // Two of the tasks have 24 rows, too few for a promise at 5 %: any input might be theirs.
    assert_eq!((d.refused, d.refused_known), (0.0, 0.0));
    let skills = Skills::open(&dir.path().join("d.cpb"), &engine.base).unwrap();
    let refusal = skills.selector().refusal().unwrap();
    assert_eq!((refusal.rows(0), refusal.rows(1), refusal.rows(2)), (24, 24, 96));
    assert_eq!(refusal.unsure().collect::<Vec<_>>(), [0, 1]);
    // The same rows are enough for a promise at 10 %. What it promises is tested in quick.rs: the test rows here
    // begin with words of which no training row has any.
    let d = run(with(quick("lda"), "abstain=0.1"), &engine, dir.path(), "e.cpb").metrics.detection.unwrap();
    assert!(d.refused == 1.0 && d.refused_known < 1.0, "{d:?}");
    let skills = Skills::open(&dir.path().join("e.cpb"), &engine.base).unwrap();
    assert_eq!(skills.selector().refusal().unwrap().unsure().count(), 0);
    // The uniform selector runs every module and refuses nothing.
    let d = run(quick("uniform"), &engine, dir.path(), "u.cpb").metrics.detection.unwrap();
    assert_eq!((d.auroc, d.refused), (0.5, 0.0));
}
