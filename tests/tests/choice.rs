//! Choice heads: labels scored as texts, by the trainer's decoder and by the runtime alike.

use candle_core::{Device, Tensor};
use conpet_formats::bundle::manifest::{HeadEntry, TaskEntry, TaskKind};
use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::choice;
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::fingerprint::base_ref;
use conpet_formats::head::HeadKind;
use conpet_formats::mmap::Mapped;
use conpet_runtime::answer::Ask;
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::head::Head;
use conpet_runtime::kv::KvType;
use conpet_runtime::prompt::Prompt;
use conpet_runtime::skills::Skills;
use conpet_tests::{tiny_config, tiny_engine, tiny_stream, tiny_with};
use conpet_trainer::decoder::{Decoder, Training, WeightMode};
use conpet_trainer::nn::attention::Ragged;
use conpet_trainer::pet::TrainedModule;
use conpet_trainer::run::Run;
use conpet_trainer::stream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// `Σ log p` of a label's tokens after a prompt, from the trainer's logits of both together.
fn likelihood(engine: &Engine, decoder: &Decoder, prompt: &Prompt, label: &[u32]) -> f32 {
    let mut whole = prompt.clone();
    whole.tokens.extend(label);
    whole.offsets.extend(label.iter().map(|_| prompt.text.len()..prompt.text.len()));
    let (n, vocab) = (whole.tokens.len(), engine.base.spec.vocab);
    let states = engine.trunk(vec![Arc::new(whole.clone())], decoder.first, None, false).hidden;
    let x = Tensor::from_vec(states, (n, engine.base.spec.hidden), &Device::Cpu).unwrap();
    let bare = TrainedModule::none(tiny_config().check(&engine.base.spec).unwrap().module.pet);
    let y = decoder.forward(&x, &Ragged::new(&engine.base.spec, &[n]), &bare, &Training::default()).unwrap();
    let logits = decoder.logits(&decoder.final_norm(&y).unwrap()).unwrap().flatten_all().unwrap();
    let logits = logits.to_vec1::<f32>().unwrap();
    let at = |position: usize, token: u32| {
        let mut row = logits[position * vocab..(position + 1) * vocab].to_vec();
        conpet_formats::head::log_softmax(&mut row, 1.0);
        row[token as usize]
    };
    label.iter().enumerate().map(|(j, t)| at(prompt.tokens.len() - 1 + j, *t)).sum()
}

/// A choice head over labels of these tokens.
fn choice_head(engine: &Engine, labels: &[Vec<u32>], mean: bool) -> Head {
    let payload = choice::write(labels).unwrap();
    let range = 0..payload.len();
    let base = base_ref(&engine.base.gguf().unwrap()).unwrap();
    let mut draft = Draft::new(base, "dynamic", 1);
    draft.manifest.tasks.push(TaskEntry {
        ensemble: Vec::new(),
        head: Some(0),
        id: 0,
        kind: TaskKind::Classification,
        labels: (0..labels.len()).map(|i| i.to_string()).collect(),
        max_answer: 0,
        module: None,
        name: "t".into(),
        stage: 1,
        template: "{input}".into(),
    });
    let entry = HeadEntry {
        blend: Decimal::from_f64(0.0),
        classes: labels.len() as u32,
        feature: FeatureSpec::single(engine.base.spec.n_layer as u32, Pool::Last, StateNorm::Output),
        id: "h0000".into(),
        kind: if mean { HeadKind::ChoiceMean } else { HeadKind::Choice },
        section: 0,
        tasks: vec![0],
        temperature: Decimal::from_f64(1.0),
    };
    Head::load(&entry, &draft.manifest, (Mapped::from_vec(payload), range), &engine.base.spec).unwrap()
}

#[test]
fn trainer_and_runtime_give_a_label_the_same_likelihood() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = tiny_engine(dir.path());
    engine = conpet_tests::exact(engine);
    engine = engine.with_kv_type(KvType::F32);
    let decoder = Decoder::new(&engine, 1, WeightMode::Dense);
    // Labels with a common prefix, one that is a prefix of another, and an unrelated one; not in the order of
    // their tokens.
    let texts = [" the number", " water", " the", " the list of words", " the list of water"];
    let labels: Vec<Vec<u32>> = texts.iter().map(|t| engine.base.tokenizer.encode(t, false).unwrap()).collect();
    assert!(labels[3].len() > 2 && labels[3][0] == labels[2][0]);
    let prompt = engine.prompt("what did you find in the house", None).unwrap();
    let score = |mean: bool| {
        let head = choice_head(&engine, &labels, mean);
        let trunked = engine.trunk(vec![Arc::new(prompt.clone())], 1, None, false);
        engine.ask(&[Ask { trunked: &trunked, input: 0, blend: &Blend::none(), head: &head }]).remove(0)
    };
    let got = score(false);
    for (i, label) in labels.iter().enumerate() {
        let want = likelihood(&engine, &decoder, &prompt, label);
        // The same f32 sums in a different order, through at most four layers, for each token.
        assert!((got[i] - want).abs() < 2e-3 * label.len() as f32, "{}: {} for {want}", texts[i], got[i]);
    }
    let mean = score(true);
    mean.iter().zip(&got).zip(&labels).for_each(|((m, g), l)| assert!((m * l.len() as f32 - g).abs() < 1e-4));
}

#[test]
fn a_choice_head_learns_to_say_the_label_and_has_nothing_linear() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let mut tasks = stream::open(&tiny_stream(dir.path())).unwrap();
    tasks.truncate(2);
    // The task is named, because a selector that scores classes would influence the answer.
    let named = |more: &str| tiny_with(&format!("selector=task head=choice epochs=30 {more}"));
    for (head, kind) in [("choice", HeadKind::Choice), ("choice-mean", HeadKind::ChoiceMean)] {
        let (path, stop) = (dir.path().join(format!("{head}.cpb")), AtomicBool::new(false));
        let config = named(&format!("head={head}"));
        let r = Run::new(config, &engine, tasks.clone(), &path, &stop, |_| {}).unwrap().stream(false).unwrap().unwrap();
        assert!(r.metrics.average_accuracy >= 0.8, "{head}: {:?}", r.metrics.matrix);
        let m = Bundle::open(&path).unwrap().manifest().clone();
        assert!(m.heads.iter().all(|h| h.kind == kind) && m.requires.contains(&format!("head:{head}")));
        // Evaluation scores what is answered.
        let skills = Skills::open(&path, &engine.base).unwrap();
        for (t, task) in tasks.iter().enumerate() {
            let texts: Vec<&str> = task.test.iter().map(|r| r.text.as_str()).collect();
            let answers = engine.classify(&skills, &texts, Some(t)).unwrap();
            let right = answers.iter().zip(&task.test).filter(|(a, r)| a.task == t && a.label.as_deref() == r.label());
            assert_eq!(right.count(), r.stages[1].right[t], "{head}, task {}", task.name);
        }
    }
    // A selector's own head is still trained.
    let config = named("selector=conpet epochs=1 replay_limit=4");
    let (path, stop) = (dir.path().join("conpet.cpb"), AtomicBool::new(false));
    Run::new(config, &engine, tasks.clone(), &path, &stop, |_| {}).unwrap().stream(false).unwrap().unwrap();
    assert!(Bundle::open(&path).unwrap().manifest().selector.section.is_some());
    // The same without training the module: the base alone does not know the labels.
    let config = named("epochs=1 lr=1e-9");
    let (path, stop) = (dir.path().join("untrained.cpb"), AtomicBool::new(false));
    let r = Run::new(config, &engine, tasks, &path, &stop, |_| {}).unwrap().stream(false).unwrap().unwrap();
    assert!(r.metrics.average_accuracy < 0.8, "untrained: {:?}", r.metrics.matrix);
}
