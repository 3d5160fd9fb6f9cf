//! Bases made of Hugging Face checkpoints: a folder with `config.json`, a tokenizer and safetensors.
//!
//! What is written is what llama.cpp's converter writes, key by key and value by value, but for descriptions that
//! change nothing. A family is one file under `convert/` and one line in `FAMILIES`: it reads the settings, and says
//! which tensor of the checkpoint becomes which tensor of the base. Every key of `config.json` and every tensor is
//! used, known to change nothing, or refused by name. Memory does not grow with the checkpoint.

mod bert;
mod checkpoint;
mod config;
mod decoder;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod modern_bert;
mod olmo2;
mod phi3;
mod plan;
mod qwen2;
mod qwen3;
mod roberta;
mod rope;
mod smollm3;
mod tokenizer;

use crate::file_type::{FileType, Shape};
use crate::rows;
use checkpoint::Checkpoint;
use config::Config;
use conpet_formats::model_spec::OUTPUT;
use conpet_formats::quant::QuantType;
use conpet_formats::{Code, Error, Result, fs};
use plan::{Change, From, Plan, Planned};
use std::path::Path;

/// How checkpoints of one kind become bases.
struct Family {
    /// `general.architecture` of the base.
    arch: &'static str,
    /// The classes of transformers whose checkpoints these are.
    classes: &'static [&'static str],
    /// Reads the settings and plans the tensors.
    plan: fn(&mut Plan<'_>) -> Result<()>,
    /// The tokenizer.
    tokenizer: fn(&mut Plan<'_>, &Path) -> Result<()>,
}

/// The families there are.
const FAMILIES: &[Family] = &[
    llama::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    phi3::FAMILY,
    granite::FAMILY,
    smollm3::FAMILY,
    olmo2::FAMILY,
    bert::FAMILY,
    roberta::FAMILY,
    modern_bert::FAMILY,
];

/// What was written.
#[derive(Debug)]
pub(crate) struct Converted {
    /// `general.architecture`.
    pub(crate) arch: &'static str,
    /// Tensors and parameters.
    pub(crate) tensors: usize,
    pub(crate) parameters: u64,
}

/// Converts the checkpoint in `folder` to a new file `to`.
///
/// # Errors
/// If the checkpoint is not complete or holds something that the base would not; if `to` exists.
pub(crate) fn convert(folder: &Path, to: &Path, file_type: FileType) -> Result<Converted> {
    let config = Config::open(folder)?;
    let class = config.class()?;
    let family = FAMILIES.iter().find(|f| f.classes.contains(&class)).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.classes).copied().collect();
        Error::new(Code::Unsupported, format!("checkpoints of class {class} are not converted"))
            .in_file(folder.join("config.json"))
            .hint(format!("this release converts {}", known.join(", ")))
    })?;
    config.only("quantization_config", &[])?;
    let weights = Checkpoint::open(folder)?;
    let mut plan = Plan::new(family.arch, &config, &weights);
    let name = std::path::absolute(folder).ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    plan.keys
        .str("general.architecture", family.arch)
        .str("general.type", "model")
        .str("general.name", name.as_deref().unwrap_or(family.arch))
        .u32("general.file_type", file_type.id)
        .u32("general.quantization_version", 2);
    (family.plan)(&mut plan)?;
    (family.tokenizer)(&mut plan, folder)?;
    plan.check()?;
    write(plan, to, file_type)
}

fn write(mut plan: Plan<'_>, to: &Path, file_type: FileType) -> Result<Converted> {
    let tensors = std::mem::take(&mut plan.tensors);
    let layers = tensors.iter().filter_map(|t| t.name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok());
    let shape = Shape {
        tied: tensors.iter().all(|t| t.name != OUTPUT),
        layers: layers.max().map_or(0, |n| n + 1),
        group: group(plan.config),
    };
    let mut types = Vec::new();
    for t in &tensors {
        let ne: Vec<u64> = t.shape.iter().rev().map(|n| *n as u64).collect();
        types.push(file_type.tensor_type(&t.name, &ne, &shape).unwrap_or(QuantType::F32));
        plan.keys.tensor(&t.name, types[types.len() - 1], &ne);
    }
    let weights = plan.weights;
    fs::create_new(to, |out| {
        plan.keys.stream(out, |i, out| {
            let named = |e: Error| e.in_section(format!("tensor {}", tensors[i].name));
            fill(&tensors[i], types[i], weights, out).map_err(named)
        })?;
        // What vanished from under the mapping has read as zeros.
        weights.check()
    })?;
    let parameters = tensors.iter().map(|t| t.shape.iter().map(|n| *n as u64).product::<u64>()).sum();
    Ok(Converted { arch: plan.arch, tensors: tensors.len(), parameters })
}

/// Query heads for each key/value head.
fn group(config: &Config) -> usize {
    let heads = |key: &str| config.opt(key).ok().flatten();
    let query = heads("num_attention_heads").unwrap_or(1);
    query / heads("num_key_value_heads").unwrap_or(query).max(1)
}

fn fill(t: &Planned, ty: QuantType, weights: &Checkpoint, out: &mut dyn std::io::Write) -> Result<()> {
    let values = match &t.from {
        From::Values(values) => {
            return rows::write(out, ty, (1, values.len()), &|_, row| {
                row.copy_from_slice(values);
                Ok(())
            });
        }
        From::Tensor { name, shape, change } => (weights.matrix(name, shape)?, *change),
    };
    let (source, change) = values;
    // The values of a vector that is permuted are its rows.
    let (n, cols) = match (&t.shape[..], change) {
        ([n], Change::Pairs(_)) => (*n, 1),
        ([n], _) => (1, *n),
        (shape, _) => (shape[..shape.len() - 1].iter().product(), shape[shape.len() - 1]),
    };
    let source = source.as_rows(cols);
    rows::write(out, ty, (n, cols), &|row, values| {
        match change {
            Change::None => source.read(row, values),
            Change::Skip(first) => source.read(first + row, values),
            Change::Pairs(heads) => source.read(halves(row, n / heads), values),
            Change::PlusOne => {
                source.read(row, values);
                values.iter_mut().for_each(|v| *v += 1.0);
            }
        }
        Ok(())
    })
}

/// The row of the checkpoint that becomes `row`, in heads of so many rows: row `2i` of a head is its row `i`, and row
/// `2i + 1` that half a head below.
fn halves(row: usize, head: usize) -> usize {
    let (start, within) = (row / head * head, row % head);
    start + within / 2 + within % 2 * (head / 2)
}
