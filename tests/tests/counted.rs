//! What is computed, counted: a device that writes down every pass stands in the engine's seam.

use conpet_formats::tiny::{self, TinyConfig};
use conpet_runtime::batch::Span;
use conpet_runtime::blend::Blend;
use conpet_runtime::device::{CpuDevice, Device};
use conpet_runtime::engine::Engine;
use conpet_runtime::kv::{Kv, KvType};
use conpet_runtime::sampler::{Sampler, SamplerConfig};
use conpet_runtime::session::{Sequence, Session};
use conpet_runtime::skills::Skills;
use conpet_runtime::text::{Choice, Dialogue, Request};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Counts the tokens that pass each range of layers.
#[derive(Debug)]
struct Counting {
    inner: CpuDevice,
    passes: Mutex<Vec<(Range<usize>, usize)>>,
}

impl Counting {
    /// An engine that counts, and its counter.
    fn engine(engine: Engine) -> (Engine, Arc<Self>) {
        let inner = CpuDevice::new(engine.base.clone(), engine.cpu().clone());
        let counting = Arc::new(Self { inner, passes: Mutex::default() });
        (engine.with_device(counting.clone()), counting)
    }

    /// Tokens that passed some layers from `start` on since the last call, and in how many passes.
    fn take(&self, start: usize) -> (usize, usize) {
        let mut passes = self.passes.lock().unwrap();
        let mine: Vec<usize> = passes.iter().filter(|(r, _)| r.start == start).map(|p| p.1).collect();
        passes.retain(|(r, _)| r.start != start);
        (mine.iter().sum(), mine.len())
    }

    fn forget(&self) {
        self.passes.lock().unwrap().clear();
    }
}

impl Device for Counting {
    fn cache(&self, layers: Range<usize>, ty: KvType) -> Kv {
        self.inner.cache(layers, ty)
    }

    fn layers(
        &self,
        layers: Range<usize>,
        spans: &mut [Span<'_>],
        hidden: &mut [f32],
        observe: &mut dyn FnMut(usize, &[f32]),
    ) {
        let tokens = spans.iter().map(|s| s.tokens).sum();
        if !layers.is_empty() {
            self.passes.lock().unwrap().push((layers.clone(), tokens));
        }
        self.inner.layers(layers, spans, hidden, observe);
    }
}

/// The tiny stream, learned: two tasks with labels, and one answered by text in the template `{input} =`.
fn learned(dir: &std::path::Path) -> (Engine, Skills) {
    let engine = conpet_tests::tiny_engine(dir);
    conpet_tests::learn_tiny(&engine, dir, "d.cpb");
    let skills = Skills::open(&dir.join("d.cpb"), &engine.base).unwrap();
    (engine, skills)
}

#[test]
fn a_routed_text_answer_passes_the_trunk_once() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, skills) = learned(dir.path());
    let (engine, count) = Counting::engine(engine);
    let depth = skills.trunk();
    let input = "please open a day";
    let bare = engine.prompt(input, None).unwrap().tokens;
    let worded = engine.prompt(&format!("{input} ="), None).unwrap().tokens;
    let shared = bare.iter().zip(&worded).take_while(|(a, b)| a == b).count();
    assert!(shared + 1 >= bare.len() && worded.len() > bare.len(), "{shared} of {} tokens are shared", bare.len());
    count.forget();
    let request = Request { text: input.into(), max_tokens: Some(0), ..Request::default() };
    let g = engine.generate(Some(&skills), &request, &mut |_| true).unwrap();
    assert_eq!((g.task, g.prompt_tokens), (Some(2), worded.len()));
    // Each token of the input and of the template passes once, whoever reads its state; above the trunk the selector
    // reads one layer more of the bare input.
    assert_eq!(count.take(0).0, worded.len() + (bare.len() - shared));
    assert!(skills.selector().feature().is_some_and(|f| f.max_layer() as usize > depth));
    assert_eq!(count.take(depth).0, worded.len() + bare.len());
    // With the answer, one token a pass, the last not being run.
    let request = Request { max_tokens: Some(3), ..request };
    let g = engine.generate(Some(&skills), &request, &mut |_| true).unwrap();
    assert_eq!(
        count.take(0).0,
        worded.len() + (bare.len() - shared) + g.tokens.len() - usize::from(g.tokens.len() == 3)
    );
    // What `classify` leaves to text goes on from the trunk it has.
    count.forget();
    let batches = engine.answer_texts(&skills, &[input], None).unwrap();
    let (trunked, answers) = &batches[0];
    assert!(answers[0].label.is_none() && answers[0].task == 2);
    let request = Request { choice: Choice::Task(2), max_tokens: Some(0), ..request };
    engine.write(&skills, (trunked, 0), &request, &mut |_| true).unwrap();
    assert_eq!(count.take(0).0, worded.len() + (bare.len() - shared));
}

#[test]
fn a_second_turn_computes_only_its_own_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, count) = Counting::engine(conpet_tests::tiny_engine(dir.path()));
    let mut dialogue = Dialogue::new(&engine, None).unwrap();
    let mut ask = |text: &str| {
        let request = Request { text: text.into(), raw: true, max_tokens: Some(5), ..Request::default() };
        dialogue.answer(&request, &mut |_| true).unwrap()
    };
    let first = "the list of two words and the number of the day";
    let one = ask(first);
    let ran = one.prompt_tokens + one.tokens.len() - usize::from(one.tokens.len() == 5);
    assert_eq!(count.take(0).0, ran);
    // The second turn repeats the first, as a chat template does.
    let second = format!("{first}{} and more of the water", one.text);
    let tokens = engine.prompt(&second, None).unwrap().tokens;
    let known: Vec<u32> = engine.prompt(first, None).unwrap().tokens.into_iter().chain(one.tokens.clone()).collect();
    let shared = known[..ran].iter().zip(&tokens).take_while(|(a, b)| a == b).count();
    assert!(shared >= one.prompt_tokens - 1, "{shared} of {ran} tokens are shared");
    let two = ask(&second);
    let answered = two.tokens.len() - usize::from(two.tokens.len() == 5);
    assert_eq!(count.take(0).0, tokens.len() - shared + answered);
    // And it says what a fresh start would say.
    let request = Request { text: second, raw: true, max_tokens: Some(5), ..Request::default() };
    assert_eq!(engine.generate(None, &request, &mut |_| true).unwrap().tokens, two.tokens);
}

#[test]
fn another_blend_runs_the_branch_alone_where_states_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, skills) = learned(dir.path());
    let (engine, count) = Counting::engine(engine.with_kv_type(KvType::F32));
    let depth = skills.trunk();
    let [a, b] = [0, 1].map(|m| Blend::from(skills.module(m).unwrap()));
    let tokens = engine.prompt("the list of two words and the number", None).unwrap().tokens;
    let mut session = Session::new(&engine, depth);
    let mut fresh = |blend: &Blend, keep: bool| {
        let s = session.sequence(blend.clone());
        let mut s = if keep { s.keep_states() } else { s };
        s.push(&tokens);
        session.run(&mut [&mut s]);
        s
    };
    let want = fresh(&b, false).logits().to_vec();
    for keep in [true, false] {
        let mut s = fresh(&a, keep);
        assert_ne!(s.logits(), want);
        count.forget();
        s.set_blend(b.clone());
        Session::new(&engine, depth).run(&mut [&mut s]);
        assert_eq!(s.logits(), want);
        assert_eq!(count.take(0).0, if keep { 0 } else { tokens.len() });
        assert_eq!(count.take(depth).0, tokens.len());
    }
}

/// Fails if a sequence's caches, blend or sampler reach another's.
#[test]
fn sequences_that_advance_together_say_what_each_says_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, skills) = learned(dir.path());
    // Sums of one token and of several are taken in other orders; at f32 no choice depends on that.
    let engine = conpet_tests::exact(engine).with_kv_type(KvType::F32).with_batch(9);
    let (engine, count) = Counting::engine(engine);
    let texts = ["the list", "please open a day and the number of the words", "water", "how large is our tower", "x"];
    let session = Session::new(&engine, skills.trunk());
    let mut begin = |i: usize| -> Sequence {
        let blend = Blend::from((!i.is_multiple_of(3)).then(|| skills.module(i % 3).unwrap()));
        let temperature = if i == 3 { 1.0 } else { 0.0 };
        let sampler = Sampler::new(SamplerConfig { temperature, seed: i as u64, ..SamplerConfig::default() });
        let mut s = session.sequence(blend).with_sampler(sampler);
        s.push(&engine.prompt(texts[i], None).unwrap().tokens);
        s
    };
    let mut alone: Vec<Sequence> = (0..texts.len()).map(&mut begin).collect();
    let mut together: Vec<Sequence> = (0..texts.len()).map(&mut begin).collect();
    let mut session = Session::new(&engine, skills.trunk());
    for s in &mut alone {
        (0..6).for_each(|_| session.step(&mut [&mut *s]));
    }
    for step in 0..6 {
        count.forget();
        session.step(&mut together.iter_mut().collect::<Vec<_>>());
        if step > 0 {
            assert_eq!(count.take(0), (texts.len(), 1), "one token of each in one pass");
        }
    }
    for (i, (a, b)) in alone.iter().zip(&together).enumerate() {
        assert_eq!(a.tokens(), b.tokens(), "sequence {i}");
    }
}

/// A prompt has the same states, whether it is kept or not.
#[test]
fn a_kept_prompt_has_the_states_of_one_that_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.gguf");
    std::fs::write(&path, tiny::base(&TinyConfig::default()).unwrap()).unwrap();
    let engine = Engine::open(&path, 1).unwrap();
    let prompt = Arc::new(engine.prompt("the list of two words and the number", None).unwrap());
    let [kept, once] = [true, false].map(|keep| engine.trunk(vec![prompt.clone()], 3, None, keep));
    assert_eq!(kept.hidden, once.hidden);
    assert_eq!((kept.caches.len(), once.caches.len()), (1, 0));
    assert_eq!(kept.caches[0].len(), prompt.tokens.len());
}
