//! `probe`: compares features for the selector.

use super::engine;
use crate::probe::{Wanted, probe};
use crate::progress::Bar;
use crate::services::Event;
use crate::settings::range::{not_negative, part, refusal};
use crate::stream;
use conpet_formats::{Code, Error, Result};
use conpet_program::print::print;
use conpet_program::{BaseArgs, ExitStatus};
use std::path::PathBuf;

/// Arguments of `probe`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The stream's folder.
    pub stream: PathBuf,
    /// The base.
    #[command(flatten)]
    pub base: BaseArgs,
    /// A feature to try, as --selector-feature takes it; may be given several times.
    #[arg(short = 'f', long = "feature", required = true)]
    pub features: Vec<String>,
    /// Shrinkage of the covariance; may be given several times.
    #[arg(long, default_values_t = [0.05])]
    pub shrinkage: Vec<f64>,
    /// Weight of the token n-grams beside the feature; may be given several times.
    #[arg(long, default_values_t = [0.0, 2.0])]
    pub ngram_weight: Vec<f64>,
    /// Longest row, in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_len: usize,
    /// Most training rows of each class; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    pub subset: usize,
    /// Worker threads; 0 is one for each processor.
    #[arg(short = 't', long, default_value_t = 0)]
    pub threads: usize,
    /// Print JSON, a line for each feature.
    #[arg(long)]
    pub json: bool,
}

/// Prints a line for each candidate.
///
/// # Errors
/// The command's error, which names the file, the place, the value and the remedy.
pub fn run(a: &Args) -> Result<ExitStatus> {
    let e = engine::open(&a.base.path()?, a.threads)?;
    if !(8..=e.base.spec.context).contains(&a.max_len) {
        return Err(refusal("max_len", &a.max_len, &format!("8 to the base's context of {}", e.base.spec.context)));
    }
    a.shrinkage.iter().try_for_each(|v| part().check("shrinkage", v))?;
    a.ngram_weight.iter().try_for_each(|v| not_negative().check("ngram_weight", v))?;
    let mut tasks = stream::open(&a.stream)?;
    tasks.iter_mut().for_each(|t| t.subset(a.subset, 0));
    let mut bar = Bar::new();
    let wanted = Wanted { features: &a.features, shrinkages: &a.shrinkage, ngram_weights: &a.ngram_weight };
    let found = probe(&e, &tasks, a.max_len, &wanted, &mut |what| bar.show(&Event::Begin(what)));
    bar.clear();
    let found = found?;
    if !a.json {
        print("classes  routing   dim  shrinkage  n-grams  feature (validation rows)")?;
    }
    for p in found {
        if a.json {
            print(&serde_json::to_string(&p).map_err(|e| Error::new(Code::Value, e.to_string()))?)?;
        } else {
            let [c, r] = [p.classes, p.routing].map(|v| 100.0 * v);
            print(&format!(
                "{c:>6.1}%  {r:>6.1}%  {:>4}  {:>9}  {:>7}  {}",
                p.dim, p.shrinkage, p.ngram_weight, p.feature
            ))?;
        }
    }
    Ok(ExitStatus::Success)
}
