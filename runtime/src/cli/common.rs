//! The flags for base, bundle and resources, which every command has, and opening what they name.

use crate::base::Base;
use crate::engine::Engine;
use crate::error::{Code, Error, Result};
use crate::kernels::Kernels;
use crate::kv::KvType;
use crate::skills::Skills;
use clap::Args;
use conpet_formats::bundle::{Trust, update};
use conpet_program::{BaseArgs, given, print};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

/// Base, bundle and resources.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The base.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The bundle.
    #[arg(short = 'b', long = "bundle", env = "CONPET_BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// Use this stage of the bundle rather than the newest.
    #[arg(long)]
    pub stage: Option<u64>,
    /// Minisign public keys, one per line; the stage must be signed by one of them
    /// [default: /etc/conpet/trust, if it exists].
    #[arg(long, value_name = "FILE", env = "CONPET_TRUST")]
    pub trust: Option<PathBuf>,
    /// Number of worker threads, at most one for each processor; -1 or 0 uses all processors.
    #[arg(short = 't', long, default_value = "-1", env = "LLAMA_ARG_THREADS", allow_negative_numbers = true, value_parser = threads)]
    pub threads: usize,
    /// Context size: the most tokens of a prompt and its answer together; 0 uses the base's own limit.
    #[arg(
        short = 'c',
        long = "ctx-size",
        default_value_t = 0,
        env = "LLAMA_ARG_CTX_SIZE",
        allow_negative_numbers = true
    )]
    pub ctx_size: usize,
    /// Most tokens computed at once; a smaller number uses less memory.
    #[arg(
        short = 'B',
        long = "batch-size",
        default_value_t = 256,
        env = "LLAMA_ARG_BATCH",
        allow_negative_numbers = true
    )]
    pub batch_size: usize,
    /// Keep at most this many MiB of the base's weights in memory and read the rest from the file in every
    /// pass; 0 leaves this to the system.
    #[arg(long = "mem-budget", value_name = "MIB", default_value_t = 0, allow_negative_numbers = true)]
    pub mem_budget: usize,
    /// Type of the KV cache: f16, f32, or q8_0 (about half the memory of f16).
    #[arg(long = "cache-type", default_value = "f16")]
    pub cache_type: String,
    /// Instruction set: naive, avx2, avxvnni, avx512, neon, dotprod or i8mm; the fastest available by default.
    #[arg(long)]
    pub kernels: Option<String>,
    /// Keep activations in f32 instead of rounding them to 8 bits where weights are quantized; slower.
    #[arg(long)]
    pub exact: bool,
}

/// Parses a number of threads; 0 and llama.cpp's -1 both mean one for each processor.
fn threads(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(0),
        _ => text.parse().map_err(|_| "use a number of threads, or -1 for one for each processor".into()),
    }
}

impl Common {
    /// Opens base and bundle.
    ///
    /// # Errors
    /// If one cannot be opened, they do not belong together, or a flag's value is not allowed.
    pub fn open(&self) -> Result<(Engine, Option<Skills>)> {
        let mut base = Base::open(&self.base.path()?)?;
        if base.extend_context(self.ctx_size) && self.bundle.is_some() {
            print::warn(
                "with this --ctx-size the base turns positions as for long texts; modules were trained on short ones",
            );
        }
        if self.mem_budget > 0 {
            base.limit_memory(self.mem_budget.saturating_mul(1 << 20))?;
        }
        let mut e = Engine::new(Arc::new(base), self.at_most_all_processors());
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
            return Err(Error::new(Code::Shape, text).in_file(e.base.path()).hint("use --cache-type f16"));
        }
        if self.batch_size == 0 {
            let batch = given("--batch-size", "LLAMA_ARG_BATCH", 0);
            return Err(Error::new(Code::Value, format!("{batch} is not allowed")).hint("use at least 1"));
        }
        e = e.with_kv_type(kv_type).with_batch(self.batch_size);
        if self.ctx_size > e.base.spec.context {
            let context = given("--ctx-size", "LLAMA_ARG_CTX_SIZE", self.ctx_size);
            return Err(Error::new(Code::Value, format!("{context} is more than the base's {}", e.base.spec.context))
                .hint("give a smaller one, or 0 for the base's own"));
        }
        if self.ctx_size > 0 {
            e = e.with_context(self.ctx_size);
        }
        let Some(path) = &self.bundle else { return Ok((e, None)) };
        let trust = Trust::find(self.trust.as_deref())?;
        let bundle = update::start(path, self.stage, trust.as_ref())?;
        // The warnings come before anything is loaded, since loading a stage on trial may fail.
        bundle.warnings().iter().for_each(|w| print::warn(w));
        let skills = Skills::new(bundle, &e.base).map_err(|x| x.in_file(path))?;
        Ok((e, Some(skills)))
    }

    /// Limits the threads to the processors: more would only wait for each other.
    fn at_most_all_processors(&self) -> usize {
        let processors = thread::available_parallelism().map_or(1, Into::into);
        if self.threads > processors {
            let asked = given("--threads", "LLAMA_ARG_THREADS", self.threads);
            print::warn(&format!("{asked} is more than there are processors; {processors} threads are used"));
        }
        self.threads.min(processors)
    }
}

/// The bundle, for a command that needs one.
pub(crate) fn need(skills: Option<Skills>) -> Result<Skills> {
    skills.ok_or_else(|| {
        Error::new(Code::Missing, "a bundle is needed").hint("give one with --bundle; conpet-train makes them")
    })
}

/// The index of the task that `--task` names.
pub(crate) fn task_of(skills: Option<&Skills>, named: Option<&String>) -> Result<Option<usize>> {
    match (skills, named) {
        (_, None) => Ok(None),
        (Some(s), Some(t)) => s.task(t).map(Some),
        (None, Some(t)) => {
            Err(Error::new(Code::Missing, format!("--task {t} needs a bundle")).hint("give one with -b"))
        }
    }
}

/// As [`task_of`], for commands that choose the task of each input if none is named. A selector that cannot
/// choose is reported once, before any input is read, rather than for every input.
pub(crate) fn task_or_choice(skills: Option<&Skills>, named: Option<&String>) -> Result<Option<usize>> {
    let task = task_of(skills, named)?;
    if let Some(s) = skills.filter(|s| task.is_none() && !s.selector().chooses()) {
        s.only_task()?;
    }
    Ok(task)
}
