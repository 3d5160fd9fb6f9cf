//! The sampling flags.

use crate::cli::limit::count_or_all;
use crate::error::{Code, Error, Result};
use crate::sampler::SamplerConfig;
use clap::Args;
use conpet_program::print;
use std::hash::{BuildHasher, Hasher, RandomState};

/// How tokens are sampled.
#[derive(Debug, Clone, Args)]
pub struct Sampling {
    /// Temperature; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub temp: f32,
    /// Keep only this many of the likeliest tokens; 0 or -1 keeps all.
    #[arg(long, default_value = "40", allow_negative_numbers = true, value_parser = count_or_all)]
    pub top_k: usize,
    /// Keep only the fewest tokens that together have this probability.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Keep only tokens at least this likely, relative to the likeliest.
    #[arg(long, default_value_t = 0.05, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Penalty on recent tokens; 1 is off.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub repeat_penalty: f32,
    /// How many recent tokens are penalised; -1 penalises all.
    #[arg(long, default_value = "64", allow_negative_numbers = true, value_parser = count_or_all)]
    pub repeat_last_n: usize,
    /// Seed of the random draws; each prompt has a random stream of its own. -1 takes a random seed and prints it.
    #[arg(short = 's', long, default_value = "0", allow_negative_numbers = true, value_parser = seed)]
    pub seed: Seed,
}

/// The seed of the random draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// A given seed: the same draws in every run.
    Fixed(u64),
    /// A random seed: different draws in every run.
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
                // The standard library's hasher is keyed at random.
                let seed = RandomState::new().build_hasher().finish();
                print::say(&format!("seed {seed}"));
                seed
            }
        }
    }
}

impl Sampling {
    /// The sampler's configuration for the first prompt; later prompts take the streams that follow. Call it
    /// once: a random seed is drawn and printed here.
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
