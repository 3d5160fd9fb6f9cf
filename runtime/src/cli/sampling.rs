//! How tokens are sampled.

use crate::cli::limit::count_or_all;
use crate::error::{Code, Error, Result};
use crate::sampler::SamplerConfig;
use clap::Args;
use conpet_program::print;
use std::hash::{BuildHasher, Hasher, RandomState};

/// How tokens are sampled.
#[derive(Debug, Clone, Args)]
pub struct Sampling {
    /// 0 takes the likeliest token always.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub temp: f32,
    /// Keep this many of the likeliest; 0 or -1 keeps all.
    #[arg(long, default_value = "40", allow_negative_numbers = true, value_parser = count_or_all)]
    pub top_k: usize,
    /// Keep the fewest that together have this probability.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Keep those at least this likely compared with the likeliest.
    #[arg(long, default_value_t = 0.05, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Penalty on recent tokens; 1 is off.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub repeat_penalty: f32,
    /// How many recent tokens are penalised; -1 is all of them.
    #[arg(long, default_value = "64", allow_negative_numbers = true, value_parser = count_or_all)]
    pub repeat_last_n: usize,
    /// Seed of the draws; each prompt has draws of its own. -1 takes a seed at random and says which.
    #[arg(short = 's', long, default_value = "0", allow_negative_numbers = true, value_parser = seed)]
    pub seed: Seed,
}

/// Where the draws begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// The same draws in every run.
    Fixed(u64),
    /// Other draws in every run.
    Random,
}

fn seed(text: &str) -> Result<Seed, String> {
    match text {
        "-1" => Ok(Seed::Random),
        _ => text.parse().map(Seed::Fixed).map_err(|_| "use a number from 0, or -1 for a random seed".into()),
    }
}

impl Seed {
    fn value(self) -> u64 {
        match self {
            Self::Fixed(seed) => seed,
            Self::Random => {
                // The standard library keys each process's hashes at random.
                let seed = RandomState::new().build_hasher().finish();
                print::say(&format!("seed {seed}"));
                seed
            }
        }
    }
}

impl Sampling {
    /// As the sampler takes it, for the first prompt; the next prompts take the next streams. Call it once:
    /// a random seed is drawn, and said, here.
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
            seed: self.seed.value(),
            stream: 0,
        })
    }
}
