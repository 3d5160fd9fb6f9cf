//! The command line of `conpet-run`; flags are llama.cpp's where one exists.

use crate::base::Base;
use crate::engine::Engine;
use crate::error::{Code, Error, Result};
use crate::kernels::Kernels;
use crate::kv::KvType;
use crate::sampler::SamplerConfig;
use crate::skills::Skills;
use clap::{Args, Parser, Subcommand};
use conpet_formats::bundle::{Trust, update};
use std::path::PathBuf;
use std::sync::Arc;

/// Runs a frozen quantized base and a bundle of modules, choosing the module from the input.
#[derive(Debug, Parser)]
#[command(
    name = "conpet-run",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 damaged or bad input, 2 bad command line, 3 another base than the bundle's, 4 the system refused, 130 Ctrl-C."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer texts with labels.
    Classify(InputArgs),
    /// Answer texts with text.
    Generate(GenerateArgs),
    /// Talk, turn by turn.
    Chat(ChatArgs),
    /// Show how the selector chooses, without running a module.
    Route(InputArgs),
    /// Measure speed and memory.
    Bench(BenchArgs),
    /// Measure how well a text is predicted, as llama-perplexity does.
    Perplexity(PerplexityArgs),
    /// Show the tokens of a text.
    Tokenize(TokenizeArgs),
}

/// What every command opens.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The base, a GGUF file.
    #[arg(short = 'm', long = "model", env = "LLAMA_ARG_MODEL")]
    pub model: PathBuf,
    /// The bundle.
    #[arg(short = 'b', long = "bundle", env = "CONPET_BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// Use this stage of the bundle rather than the newest.
    #[arg(long)]
    pub stage: Option<u64>,
    /// Minisign public keys, one a line; the stage must be signed by one of them [default: /etc/conpet/trust, if it exists].
    #[arg(long, value_name = "FILE", env = "CONPET_TRUST")]
    pub trust: Option<PathBuf>,
    /// Worker threads; 0 is one for each processor.
    #[arg(short = 't', long, default_value_t = 0, env = "LLAMA_ARG_THREADS")]
    pub threads: usize,
    /// Longest prompt with its answer, in tokens; 0 is the base's own limit.
    #[arg(short = 'c', long = "ctx-size", default_value_t = 0, env = "LLAMA_ARG_CTX_SIZE")]
    pub ctx_size: usize,
    /// Most tokens computed at once: bounds the work space.
    #[arg(short = 'B', long = "batch-size", default_value_t = 256, env = "LLAMA_ARG_BATCH")]
    pub batch_size: usize,
    /// Keep at most so many MiB of the base's weights in memory and read the rest from the file in
    /// every pass; 0 leaves that to the system.
    #[arg(long = "mem-budget", value_name = "MIB", default_value_t = 0)]
    pub mem_budget: usize,
    /// What the KV cache stores: f16, f32, or q8_0 (about half the memory of f16).
    #[arg(long = "cache-type", default_value = "f16")]
    pub cache_type: String,
    /// Instruction set: naive, avx2, avxvnni, avx512, neon, dotprod, i8mm; the fastest there is by default.
    #[arg(long)]
    pub kernels: Option<String>,
    /// Keep activations in f32 instead of rounding them to 8 bits where weights are quantized; slower.
    #[arg(long)]
    pub exact: bool,
}

/// Arguments of `classify` and `route`.
#[derive(Debug, Clone, Args)]
pub struct InputArgs {
    /// Base, bundle, resources.
    #[command(flatten)]
    pub common: Common,
    /// Texts; none reads standard input, a text (or a JSON object with "text" or "prompt") on each line.
    pub texts: Vec<String>,
    /// Read texts from a file, one on each line, or JSON lines.
    #[arg(short = 'f', long)]
    pub file: Option<PathBuf>,
    /// The task, instead of choosing it.
    #[arg(long)]
    pub task: Option<String>,
    /// Print JSON lines.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// Inputs.
    #[command(flatten)]
    pub input: InputArgs,
    /// The prompt (or give it as argument, file or standard input).
    #[arg(short = 'p', long)]
    pub prompt: Option<String>,
    /// Most tokens to generate; the task's own limit by default.
    #[arg(short = 'n', long = "predict", env = "LLAMA_ARG_N_PREDICT")]
    pub predict: Option<usize>,
    /// Sampling.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Put no task template around the prompt.
    #[arg(long)]
    pub raw: bool,
}

/// Arguments of `chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Base, bundle, resources.
    #[command(flatten)]
    pub common: Common,
    /// What the assistant is told first.
    #[arg(long = "system-prompt")]
    pub system: Option<String>,
    /// The task, instead of choosing it from each turn.
    #[arg(long)]
    pub task: Option<String>,
    /// Most tokens of an answer.
    #[arg(short = 'n', long = "predict", default_value_t = 256)]
    pub predict: usize,
    /// Sampling.
    #[command(flatten)]
    pub sampling: Sampling,
}

/// How tokens are sampled.
#[derive(Debug, Clone, Args)]
pub struct Sampling {
    /// 0 takes the likeliest token always.
    #[arg(long, default_value_t = 0.0)]
    pub temp: f32,
    /// Keep this many of the likeliest; 0 keeps all.
    #[arg(long, default_value_t = 40)]
    pub top_k: usize,
    /// Keep the fewest that together have this probability.
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f32,
    /// Keep those at least this likely compared with the likeliest.
    #[arg(long, default_value_t = 0.05)]
    pub min_p: f32,
    /// Penalty on recent tokens; 1 is off.
    #[arg(long, default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// How many recent tokens are penalised.
    #[arg(long, default_value_t = 64)]
    pub repeat_last_n: usize,
    /// Seed of the draws.
    #[arg(short = 's', long, default_value_t = 0)]
    pub seed: u64,
}

/// Arguments of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Base, bundle, resources.
    #[command(flatten)]
    pub common: Common,
    /// Tokens of the prompt test.
    #[arg(short = 'p', long = "n-prompt", default_value_t = 512)]
    pub n_prompt: usize,
    /// Tokens of the generation test.
    #[arg(short = 'n', long = "n-gen", default_value_t = 64)]
    pub n_gen: usize,
    /// Repetitions.
    #[arg(short = 'r', long, default_value_t = 5)]
    pub repetitions: usize,
    /// Print JSON (llama-bench's fields and ours).
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `perplexity`.
#[derive(Debug, Clone, Args)]
pub struct PerplexityArgs {
    /// Base, bundle, resources. A chunk is 512 tokens unless --ctx-size says otherwise.
    #[command(flatten)]
    pub common: Common,
    /// The text.
    #[arg(short = 'f', long)]
    pub file: PathBuf,
    /// Most chunks; 0 reads all.
    #[arg(long, default_value_t = 0)]
    pub chunks: usize,
    /// Put this task's module in force.
    #[arg(long)]
    pub task: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tokenize`.
#[derive(Debug, Clone, Args)]
pub struct TokenizeArgs {
    /// The base, a GGUF file.
    #[arg(short = 'm', long = "model", env = "LLAMA_ARG_MODEL")]
    pub model: PathBuf,
    /// The text; none reads the file, or standard input.
    pub text: Option<String>,
    /// Read the text from a file.
    #[arg(short = 'f', long, conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// Let the text spell control tokens.
    #[arg(long)]
    pub special: bool,
    /// Print the ids only, as JSON.
    #[arg(long)]
    pub json: bool,
}

impl Common {
    /// Opens base and bundle.
    ///
    /// # Errors
    /// If one cannot be opened, they do not belong together, or a flag's value is not allowed.
    pub fn open(&self) -> Result<(Engine, Option<Skills>)> {
        let mut base = Base::open(&self.model)?;
        if self.mem_budget > 0 {
            base.limit_memory(self.mem_budget.saturating_mul(1 << 20))?;
        }
        let mut e = Engine::new(Arc::new(base), self.threads);
        if let Some(name) = &self.kernels {
            let kernels = Kernels::by_name(name).ok_or_else(|| {
                let have: Vec<_> = Kernels::all().iter().map(|k| k.name()).collect();
                Error::new(Code::Unsupported, format!("no kernels {name:?} on this processor"))
                    .hint(format!("it has {}", have.join(", ")))
            })?;
            e = e.with_kernels(kernels);
        }
        if self.exact {
            let exact = e.cpu().kernels.exact();
            e = e.with_kernels(exact);
        }
        let kv_type = KvType::from_name(&self.cache_type).ok_or_else(|| {
            Error::new(Code::Value, format!("--cache-type {:?} is not allowed", self.cache_type))
                .hint("use f16, f32 or q8_0")
        })?;
        if !kv_type.fits(e.base.spec.head_dim) {
            let text = format!("a KV cache of {} does not fit heads of {}", self.cache_type, e.base.spec.head_dim);
            return Err(Error::new(Code::Shape, text).in_file(&self.model).hint("use --cache-type f16"));
        }
        if self.batch_size == 0 {
            return Err(Error::new(Code::Value, "--batch-size 0 is not allowed").hint("use at least 1"));
        }
        e = e.with_kv_type(kv_type).with_batch(self.batch_size);
        if self.ctx_size > e.base.spec.context {
            return Err(Error::new(
                Code::Value,
                format!("--ctx-size {} is more than the base's {}", self.ctx_size, e.base.spec.context),
            )
            .hint("give a smaller one, or 0 for the base's own"));
        }
        if self.ctx_size > 0 {
            e = e.with_context(self.ctx_size);
        }
        let Some(path) = &self.bundle else { return Ok((e, None)) };
        let trust = Trust::find(self.trust.as_deref())?;
        let bundle = update::start(path, self.stage, trust.as_ref())?;
        // Said before anything is loaded: a stage on trial may fail to.
        bundle.warnings().iter().for_each(|w| crate::commands::warn(w));
        let skills = Skills::new(bundle, &e.base).map_err(|x| x.in_file(path))?;
        Ok((e, Some(skills)))
    }
}

impl Sampling {
    /// As the sampler takes it.
    ///
    /// # Errors
    /// Names the flag whose value is out of range.
    pub fn config(&self) -> Result<SamplerConfig> {
        let flags = [
            ("temp", self.temp, 0.0, 100.0),
            ("top-p", self.top_p, 0.0, 1.0),
            ("min-p", self.min_p, 0.0, 1.0),
            ("repeat-penalty", self.repeat_penalty, 0.01, 100.0),
        ];
        for (name, v, least, most) in flags {
            if !(least..=most).contains(&v) {
                return Err(Error::new(Code::Value, format!("--{name} {v} is not allowed"))
                    .hint(format!("use a number from {least} to {most}")));
            }
        }
        Ok(SamplerConfig {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: self.seed,
        })
    }
}
