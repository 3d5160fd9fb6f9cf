use super::frame::parameters;
use super::pass::{Parts, cut, gradients, shard};
use super::positions::frame;
use super::*;
use crate::decoder::{Decoder, WeightMode};
use crate::nn::numbers;
use crate::optim::{AdamWConfig, Schedule};
use conpet_formats::Code;
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::pet::lora::Scaling;
use conpet_formats::pet::{Lora, PetSpec, Places};
use conpet_runtime::engine::Engine;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Three classes of short texts that differ by one word.
pub(crate) struct Toy {
    states: Vec<Vec<f32>>,
    hidden: usize,
    completion: bool,
}

impl Toy {
    fn new(e: &Engine, depth: usize, completion: bool) -> Self {
        let states = (0..48)
            .map(|i| {
                let text = format!(
                    "{} the {} now, of all that there are in it",
                    ["show", "water", "oil"][i % 3],
                    ["list", "day", "number", "part"][i / 3 % 4]
                );
                e.trunk(vec![std::sync::Arc::new(e.prompt(&text, None).unwrap())], depth, None, false).hidden
            })
            .collect();
        Self { states, hidden: e.base.spec.hidden, completion }
    }
}

impl Examples for Toy {
    fn len(&self) -> usize {
        self.states.len()
    }
    fn tokens(&self, i: usize) -> usize {
        self.states[i].len() / self.hidden
    }
    fn states(&self, i: usize, out: &mut Vec<f32>) {
        out.extend(&self.states[i]);
    }
    fn target(&self, i: usize) -> Target {
        if self.completion {
            Target::Completion(vec![(self.tokens(i) - 1, 300 + (i % 3) as u32)])
        } else {
            Target::Class((i % 3) as u32)
        }
    }
    fn ranges(&self, i: usize) -> Vec<Range<usize>> {
        std::iter::once(0..self.tokens(i)).collect()
    }
}

thread_local! {
    /// Number of threads of the next run.
    static THREADS: std::cell::Cell<usize> = const { std::cell::Cell::new(2) };
    /// The PET spec that the next run trains; a LoRA at three sites if empty.
    static PET: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

fn hyper() -> Hyper {
    Hyper {
        lr: 5e-3,
        head_lr: 2.0,
        adamw: AdamWConfig::default(),
        warmup: 0.1,
        schedule: Schedule::Cosine,
        clip: 1.0,
        dropout: 0.0,
        activation_bytes: usize::MAX,
    }
}

fn run(completion: bool, checkpoint: Option<(PathBuf, u64)>, stop_at: Option<u64>) -> Result<Outcome> {
    with_job(completion, checkpoint, |job, stop| {
        fit(job, &mut |p| {
            if Some(p.step) == stop_at {
                stop.store(true, Ordering::Relaxed);
            }
        })
    })
}

fn with_job<T>(completion: bool, checkpoint: Option<(PathBuf, u64)>, f: impl FnOnce(&Job<'_>, &AtomicBool) -> T) -> T {
    let e = crate::decoder::tests::engine();
    let toy = Toy::new(&e, 2, completion);
    let decoder = Decoder::new(&e, 2, WeightMode::Dense);
    let feature = FeatureSpec::single(4, Pool::Mean, StateNorm::Output);
    let lens: Vec<usize> = (0..toy.len()).map(|i| toy.tokens(i)).collect();
    // A random base's output head is far from any answer, so completions take longer to learn than classes.
    let batches = Epochs::new(&lens, 8, if completion { 40 } else { 5 }, 7, "toy");
    let lora = Lora { rank: 4, alpha: 8.0, scaling: Scaling::AlphaOverRank };
    let (pet, sites) = match PET.get() {
        "" => {
            let sites = ["blk.2.attn_q.weight", "blk.3.ffn_down.weight", "blk.3.attn_v.weight"];
            (PetSpec::lora(lora), sites.map(String::from).to_vec())
        }
        text => {
            let pet = PetSpec::parse(text, lora, Places::LINEARS).unwrap();
            let sites = pet.sites(&decoder.spec, 2).unwrap();
            (pet, sites)
        }
    };
    let stop = AtomicBool::new(false);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS.get()).build().unwrap();
    let job = Job {
        decoder: &decoder,
        pool: &pool,
        examples: &toy,
        batches: &batches,
        pet: &pet,
        sites: &sites,
        head: (!completion).then_some((&feature, 3)),
        recipe: &Plain,
        hyper: &hyper(),
        seed: 7,
        name: "toy",
        start: None,
        checkpoint,
        stop: &stop,
    };
    f(&job, &stop)
}

fn done(o: Result<Outcome>) -> Trained {
    match o.unwrap() {
        Outcome::Done(t) => Trained { seconds: 0.0, ..t },
        Outcome::Stopped => panic!("stopped"),
    }
}

#[test]
fn learns_separable_classes_and_repeats_bit_for_bit() {
    let a = done(run(false, None, None));
    assert!(a.loss < 0.3, "loss {} after training, chance is {}", a.loss, 3f32.ln());
    assert!(a.tensors["blk.3.ffn_down.weight.lora_b"].1.iter().any(|v| *v != 0.0), "B has changed");
    assert_eq!(a, done(run(false, None, None)));
}

#[test]
fn threads_change_no_bit_of_what_is_learned() {
    let one = THREADS.with(|t| {
        t.set(1);
        let one = done(run(false, None, None));
        t.set(2);
        one
    });
    assert_eq!(one, done(run(false, None, None)));
}

#[test]
fn shards_add_up_to_the_batch() {
    for completion in [false, true] {
        with_job(completion, None, |job, _| {
            let (frame, none) = (frame(job).unwrap(), Buffers::new());
            let params = parameters(job, &frame).unwrap().params;
            let parts = Parts::new(job, &frame, &params, &none, 0).unwrap();
            // A number of rows that does not divide evenly into shards.
            let rows: Vec<usize> = (0..22).collect();
            let lens: Vec<usize> = cut(job, &rows).iter().map(|s| s.len()).collect();
            assert!(lens.len() > 1 && lens.iter().sum::<usize>() == 22, "{lens:?}");
            let sum = gradients(job, &rows, &parts).unwrap();
            let whole = shard(job, &rows, 1.0, (0, 1), &parts).unwrap();
            // The same terms, added in f32 in a different order.
            assert!((sum.loss - whole.loss).abs() < 1e-5 * whole.loss, "{} for {}", sum.loss, whole.loss);
            let (sum, whole) = (sum.grads, whole.grads);
            for (name, w) in &whole {
                let size = w.iter().fold(0f32, |m, v| m.max(v.abs()));
                let off = w.iter().zip(&sum[name]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(off <= 1e-4 * size + 1e-6, "{name}: off by {off} of {size}");
            }
        });
    }
}

#[test]
fn learns_to_complete() {
    let a = done(run(true, None, None));
    assert!(a.loss < 2.0, "loss {}; chance is {}", a.loss, 600f32.ln());
}

#[test]
fn a_stopped_run_resumes_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    let whole = done(run(false, None, None));
    assert!(matches!(run(false, Some((path.clone(), 0)), Some(13)), Ok(Outcome::Stopped)));
    let e = run(true, Some((path.clone(), 0)), None).unwrap_err();
    assert!(e.to_string().contains("other settings"), "{e}");
    let mut bytes = std::fs::read(&path).unwrap();
    assert_eq!(whole, done(run(false, Some((path.clone(), 0)), None)));
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(run(false, Some((path, 0)), None).unwrap_err().code(), Code::Digest);
}

/// Trains a PET kind on the toy classes.
fn train(pet: &'static str, checkpoint: Option<(PathBuf, u64)>, stop_at: Option<u64>) -> Result<Outcome> {
    PET.with(|p| {
        p.set(pet);
        let out = run(false, checkpoint, stop_at);
        p.set("");
        out
    })
}

/// Fails if a kind cannot be learned, leaves other tensors than its spec says, or is not reproducible.
#[test]
fn every_kind_learns_and_leaves_the_tensors_of_its_spec() {
    let e = crate::decoder::tests::engine();
    for text in [
        "bias",
        "ia3",
        "adapter:n=4",
        "adapter:n=4,form=pfeiffer,act=relu",
        "prefix:n=3",
        "prefix:n=3,mid=8",
        "sparse:n=300,rule=random",
        "sparse:n=300,rule=magnitude",
        "sparse:n=300,rule=fisher",
        "lora:r=2+bias",
    ] {
        let t = done(train(text, None, None));
        assert!(t.loss < 0.6, "{text}: loss {} after training, chance is {}", t.loss, 3f32.ln());
        let lora = Lora { rank: 4, alpha: 8.0, scaling: Scaling::AlphaOverRank };
        let pet = PetSpec::parse(text, lora, Places::LINEARS).unwrap();
        let own: Vec<_> = t.tensors.iter().filter(|(n, _)| !n.starts_with(HEAD)).collect();
        let parameters: usize = own.iter().map(|(_, (_, v))| v.len()).sum();
        assert_eq!(parameters, pet.parameters(&e.base.spec, 2), "{text}");
        assert!(
            own.iter().all(|(n, _)| n.starts_with("blk.")),
            "{text}: parameters used only in training are not kept"
        );
        assert_eq!(
            t.indices.values().map(|i| i.len()).sum::<usize>(),
            if text.starts_with("sparse") { 300 } else { 0 }
        );
        for (name, (_, v)) in own {
            assert!(v.iter().any(|v| *v != 0.0), "{text}: {name} has not changed");
        }
    }
}

/// Fails if the MLP of a prefix, or the positions of a sparse delta, are not the same after a stop.
#[test]
fn what_a_kind_has_besides_its_parameters_survives_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    for (i, pet) in ["prefix:n=2,mid=4", "sparse:n=50,rule=fisher"].into_iter().enumerate() {
        let path = dir.path().join(i.to_string());
        let whole = done(train(pet, None, None));
        assert!(matches!(train(pet, Some((path.clone(), 0)), Some(13)), Ok(Outcome::Stopped)));
        assert_eq!(whole, done(train(pet, Some((path, 0)), None)), "{pet}");
    }
}

/// Fails if training does not continue from the module it is given: its learned pairs (even of a prefix trained
/// through an MLP, which is not kept) and its chosen positions.
#[test]
fn training_goes_on_from_a_module() {
    for pet in ["prefix:n=2,mid=4+lora:r=2", "sparse:n=50,rule=fisher"] {
        let before = done(train(pet, None, None));
        PET.set(pet);
        with_job(false, None, |job, _| {
            let again = Job { start: Some(&before), checkpoint: None, ..job.clone() };
            let frame = frame(&again).unwrap();
            assert_eq!(frame.indices, before.indices);
            let module = frame.module(&again, &parameters(&again, &frame).unwrap().params).unwrap();
            for (name, (_, v)) in &before.tensors {
                assert_eq!(&numbers(&module[name]).unwrap(), v, "{pet}: {name}");
            }
            assert_eq!(module.len(), before.tensors.len());
        });
        PET.set("");
    }
}
