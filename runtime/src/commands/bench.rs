//! `bench`: llama-bench's two tests, and the cost of modules, selection and memory.

use crate::batch::Span;
use crate::blend::Blend;
use crate::cli::Common;
use crate::engine::Engine;
use crate::error::{Code, Error, Result};
use crate::memory::Memory;
use crate::session::{Sequence, Session};
use crate::skills::Skills;
use clap::Args;
use conpet_program::ExitStatus;
use conpet_program::print::print;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Arguments of `bench`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// Base, bundle and resources.
    #[command(flatten)]
    common: Common,
    /// Tokens of the prompt test.
    #[arg(short = 'p', long = "n-prompt", default_value_t = 512, allow_negative_numbers = true)]
    n_prompt: usize,
    /// Tokens of the generation test.
    #[arg(short = 'n', long = "n-gen", default_value_t = 64, allow_negative_numbers = true)]
    n_gen: usize,
    /// Repetitions of each test.
    #[arg(short = 'r', long, default_value_t = 5, allow_negative_numbers = true)]
    repetitions: usize,
    /// Also time a step of these numbers of sequences together (comma-separated) against a step of one.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    sequences: Vec<usize>,
    /// Print JSON (llama-bench's fields and more).
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: &BenchArgs) -> Result<ExitStatus> {
    if a.n_prompt == 0 || a.n_gen == 0 || a.repetitions == 0 {
        return Err(Error::new(Code::Value, "--n-prompt, --n-gen and --repetitions must be at least 1")
            .hint("for example -p 512 -n 64 -r 5"));
    }
    if a.sequences.contains(&0) {
        return Err(Error::new(Code::Value, "--sequences 0 is not allowed").hint("for example --sequences 1,2,4,8,16"));
    }
    let begin = Instant::now();
    let (engine, skills) = a.common.open()?;
    let open_ms = begin.elapsed().as_secs_f64() * 1e3;
    if a.n_prompt.max(a.n_gen) > engine.context() {
        return Err(Error::new(
            Code::Cap,
            format!("{} tokens are more than the context of {}", a.n_prompt.max(a.n_gen), engine.context()),
        )
        .hint("lower --n-prompt or --n-gen"));
    }
    let first = first_answer(&engine, skills.as_ref())?;
    let ready_ms = begin.elapsed().as_secs_f64() * 1e3;
    let module = match &skills {
        Some(sk) if !sk.manifest().modules.is_empty() => Some(sk.module(0)?),
        _ => None,
    };
    let in_force = module.clone().map(|m| ("module", Blend::from(m)));
    let forms: Vec<(&str, Blend)> = std::iter::once(("base", Blend::none())).chain(in_force).collect();
    let mut rows: Vec<(&str, &str, usize, Vec<f64>)> = forms
        .iter()
        .flat_map(|(what, _)| [(*what, "pp", a.n_prompt, Vec::new()), (*what, "tg", a.n_gen, Vec::new())])
        .collect();
    rows.retain(|(_, test, ..)| *test == "pp" || engine.base.spec.causal);
    if !engine.base.spec.causal && !a.sequences.is_empty() {
        engine.check_predicts("--sequences")?;
    }
    let tests = rows.len() / forms.len();
    let (mut kv_bytes, mut memory) = (0, Memory::default());
    // Round by round, so that a machine that slows down slows every test; the first round is a warm-up.
    for round in 0..=a.repetitions {
        for ((_, blend), rows) in forms.iter().zip(rows.chunks_exact_mut(tests)) {
            for (_, test, n, times) in rows {
                let ns = match *test {
                    "pp" if engine.base.spec.causal => {
                        prefill(&engine, blend, *n, skills.as_ref(), &mut kv_bytes, &mut memory)
                    }
                    "pp" => encode(&engine, blend, *n, &mut memory),
                    _ => decode(&engine, blend, *n, skills.as_ref()),
                };
                if round > 0 {
                    times.push(ns);
                }
            }
        }
    }
    let steps = together(&engine, a, skills.as_ref());
    // Last, because it touches every module of the bundle.
    let switch_ns = switching(skills.as_ref())?;
    let touched = Memory::now();
    // Cost of the module: the median over rounds of its time divided by the bare base's.
    let cost = |test: usize| {
        let ratio =
            rows.get(tests + test).filter(|_| test < tests)?.3.iter().zip(&rows[test].3).map(|(m, b)| m / b - 1.0);
        Some(median(ratio.collect()))
    };
    let module_cost = [cost(0), cost(1)];
    let fields: Vec<Value> = rows
        .iter()
        .map(|(what, test, n, ns)| {
            let (mean, sd) = spread(ns);
            let rate = |t: f64| *n as f64 * 1e9 / t;
            let per_second: Vec<f64> = ns.iter().map(|t| rate(*t)).collect();
            let (ts, ts_sd) = spread(&per_second);
            json!({
                "build_commit": option_env!("CONPET_COMMIT"), "model_filename": engine.base.path().file_name().map(|f| f.to_string_lossy()),
                "model_type": format!("{} {}", engine.base.spec.arch, engine.base.quant_name()), "model_size": engine.base.files().bytes(),
                "model_n_params": engine.base.spec.parameters(), "bytes_per_token": engine.base.bytes_per_token(), "n_batch": engine.batch(), "n_threads": engine.cpu().threads.n(), "use_mmap": true,
                "type_k": a.common.cache_type, "type_v": a.common.cache_type,
                "n_prompt": if *test == "pp" { *n } else { 0 }, "n_gen": if *test == "tg" { *n } else { 0 },
                "avg_ns": mean, "stddev_ns": sd, "avg_ts": ts, "stddev_ts": ts_sd, "samples_ns": ns, "samples_ts": per_second,
                "kernels": engine.cpu().kernels.name(), "in_force": what,
                "n_modules": skills.as_ref().map_or(0, |x| x.manifest().modules.len()),
                "module_rank": module.as_ref().map(|m| m.rank()), "module_cost": module_cost[usize::from(*test == "tg")], "switch_ns": switch_ns, "selector_ns": first.selector_ns, "open_ms": open_ms, "first_answer_ms": ready_ms,
                "rss_anon_kb": memory.anonymous / 1024, "rss_file_kb": memory.file / 1024, "rss_peak_kb": memory.peak / 1024, "rss_anon_all_modules_kb": touched.anonymous / 1024, "kv_kb": kv_bytes / 1024,
            })
        })
        .collect();
    if a.json {
        let steps =
            steps.iter().map(|(n, ns)| json!({ "n_sequences": n, "step_ns": ns, "steps_of_one": ns / steps[0].1 }));
        let all = if steps.len() > 0 {
            fields.into_iter().chain([json!({ "steps": steps.collect::<Vec<_>>() })]).collect()
        } else {
            fields
        };
        print(&Value::Array(all).to_string())?;
        return Ok(ExitStatus::Success);
    }
    for (what, test, n, ns) in &rows {
        let rates: Vec<f64> = ns.iter().map(|t| *n as f64 * 1e9 / t).collect();
        let (mean, sd) = spread(&rates);
        print(&format!("{what:<8} {test}{n:<6} {mean:>8.1} ± {sd:.1} tokens/s"))?;
    }
    print(&format!(
        "open {open_ms:.0} ms, first answer after {ready_ms:.0} ms, selection {:.3} ms",
        first.selector_ns as f64 / 1e6
    ))?;
    if let ([Some(pp), Some(tg)], Some([first, again])) = (module_cost, switch_ns) {
        print(&format!(
            "a module costs {:.1} % of prefill and {:.1} % of decode; switching to one {:.0} us the first time, then {:.1} us",
            100.0 * pp,
            100.0 * tg,
            first as f64 / 1e3,
            again as f64 / 1e3
        ))?;
    }
    for (n, ns) in &steps {
        print(&format!(
            "a step of {n:>3} sequences {:>8.2} ms, {:.2} times a step of one, {:.1} tokens/s",
            ns / 1e6,
            ns / steps[0].1,
            *n as f64 * 1e9 / ns
        ))?;
    }
    print(&format!(
        "private memory {:.1} MB (KV cache of {} tokens {:.1} MB), mapped {:.1} MB, peak {:.1} MB",
        memory.anonymous as f64 / 1e6,
        a.n_prompt,
        kv_bytes as f64 / 1e6,
        memory.file as f64 / 1e6,
        memory.peak as f64 / 1e6
    ))?;
    Ok(ExitStatus::Success)
}

/// Tokens of each sequence before the timed steps.
const BEFORE_STEPS: usize = 32;
/// Steps in a row that are timed together.
const STEPS: usize = 8;

/// For each number of sequences (1 first), nanoseconds of a step of all of them together: the median over
/// rounds, each of which times every number in turn.
fn together(engine: &Engine, a: &BenchArgs, skills: Option<&Skills>) -> Vec<(usize, f64)> {
    if a.sequences.is_empty() {
        return Vec::new();
    }
    let counts: Vec<usize> = std::iter::once(1).chain(a.sequences.iter().copied().filter(|n| *n != 1)).collect();
    let mut session = Session::new(engine, skills.map_or(0, Skills::trunk));
    let mut times = vec![Vec::new(); counts.len()];
    for round in 0..=a.repetitions {
        for (n, times) in counts.iter().zip(&mut times) {
            let mut sequences: Vec<Sequence> = (0..*n).map(|_| session.sequence(Blend::none())).collect();
            let mut all: Vec<&mut Sequence> = sequences.iter_mut().collect();
            all.iter_mut().for_each(|s| s.push(&tokens(engine, BEFORE_STEPS)));
            session.run(&mut all);
            let begin = Instant::now();
            for t in tokens(engine, STEPS) {
                all.iter_mut().for_each(|s| s.push(&[t]));
                session.run(&mut all);
            }
            if round > 0 {
                times.push(begin.elapsed().as_nanos() as f64 / STEPS as f64);
            }
        }
    }
    counts.into_iter().zip(times.into_iter().map(median)).collect()
}

struct First {
    selector_ns: u128,
}

/// Times what a new process does first: select a module (if there is a selector) and compute one token.
fn first_answer(engine: &Engine, skills: Option<&Skills>) -> Result<First> {
    let prompt = Arc::new(engine.prompt("where is my order", None)?);
    let mut selector_ns = 0;
    if let Some(skills) = skills {
        let t = engine.trunk(vec![prompt.clone()], skills.trunk(), Engine::trunk_feature(skills), false);
        let begin = Instant::now();
        engine.decide(skills, &t)?;
        selector_ns = begin.elapsed().as_nanos();
    }
    if !engine.base.spec.causal {
        engine.trunk(vec![prompt], engine.base.spec.n_layer, None, false);
        return Ok(First { selector_ns });
    }
    let mut session = Session::new(engine, skills.map_or(0, Skills::trunk));
    let mut sequence = session.sequence(Blend::none());
    sequence.push(&prompt.tokens);
    session.run(&mut [&mut sequence]);
    Ok(First { selector_ns })
}

fn tokens(engine: &Engine, n: usize) -> Vec<u32> {
    // Any tokens will do; spread over the vocabulary.
    (0..n).map(|i| (i * 7919 % engine.base.tokenizer.n_vocab()) as u32).collect()
}

fn prefill(
    engine: &Engine,
    blend: &Blend,
    n: usize,
    skills: Option<&Skills>,
    kv: &mut usize,
    most: &mut Memory,
) -> f64 {
    let mut session = Session::new(engine, skills.map_or(0, Skills::trunk));
    let mut sequence = session.sequence(blend.clone());
    let begin = Instant::now();
    sequence.push(&tokens(engine, n));
    session.run(&mut [&mut sequence]);
    let ns = begin.elapsed().as_nanos() as f64;
    *kv = sequence.kv_bytes();
    // Measured while the cache is alive: the memory that serving a prompt of this length takes.
    let now = Memory::now();
    if now.anonymous > most.anonymous {
        *most = now;
    }
    ns
}

/// As [`prefill`], of an encoder: all layers, in one pass without a cache.
fn encode(engine: &Engine, blend: &Blend, n: usize, most: &mut Memory) -> f64 {
    let begin = Instant::now();
    let mut hidden = Vec::new();
    engine.embed(tokens(engine, n).into_iter().zip(0..), &mut hidden);
    let layers = 0..engine.base.spec.n_layer;
    engine.device().layers(layers, &mut [Span::once(n, blend)], &mut hidden, &mut |_, _| {});
    let ns = begin.elapsed().as_nanos() as f64;
    let now = Memory::now();
    if now.anonymous > most.anonymous {
        *most = now;
    }
    ns
}

fn decode(engine: &Engine, blend: &Blend, n: usize, skills: Option<&Skills>) -> f64 {
    let mut session = Session::new(engine, skills.map_or(0, Skills::trunk));
    let mut sequence = session.sequence(blend.clone());
    let begin = Instant::now();
    for t in tokens(engine, n) {
        sequence.push(&[t]);
        session.run(&mut [&mut sequence]);
    }
    begin.elapsed().as_nanos() as f64
}

/// Median nanoseconds to put a module in force: the first time, which finds its factors in the map, and every
/// later time.
fn switching(skills: Option<&Skills>) -> Result<Option<[u64; 2]>> {
    let Some(skills) = skills.filter(|s| !s.manifest().modules.is_empty()) else { return Ok(None) };
    let pass = || -> Result<u64> {
        let mut times = Vec::new();
        for i in 0..skills.manifest().modules.len() {
            let begin = Instant::now();
            std::hint::black_box(skills.module(i)?);
            times.push(begin.elapsed().as_nanos() as f64);
        }
        Ok(median(times) as u64)
    };
    Ok(Some([pass()?, pass()?]))
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n => (v[(n - 1) / 2] + v[n / 2]) / 2.0,
    }
}

fn spread(v: &[f64]) -> (f64, f64) {
    let mean = v.iter().sum::<f64>() / v.len().max(1) as f64;
    let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (v.len().max(2) - 1) as f64;
    (mean, var.sqrt())
}
