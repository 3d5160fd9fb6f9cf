//! The checkpoint of a training run: parameters, moments, buffers, losses, and the identity of the job.

use super::job::{Job, failed};
use super::recipe::Buffers;
use crate::nn::numbers;
use crate::optim::AdamW;
use candle_core::{Device, Tensor};
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{Code, Error, Result};
use std::path::Path;
use std::time::Duration;

/// Counts and losses that a run has gathered so far.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) rows: u64,
    pub(super) tokens: u64,
    pub(super) time: Duration,
    pub(super) losses: Vec<f32>,
}

/// Identifies the job that a checkpoint belongs to.
fn identity(job: &Job<'_>) -> String {
    let h = job.hyper;
    let text = format!(
        "{} {} {:?} {:?} {:?} {h:?} {} {} {}",
        job.name,
        job.seed,
        job.pet.to_string(),
        job.sites,
        job.head.map(|(f, c)| (f.clone(), c)),
        job.examples.len(),
        job.batches.steps(),
        job.recipe.name()
    );
    conpet_formats::fingerprint::file_digest(text.as_bytes())
}

pub(super) fn save(job: &Job<'_>, path: &Path, optim: &AdamW, buffers: &Buffers, account: &Account) -> Result<()> {
    let mut w = TensorsWriter::new();
    for (name, p) in &optim.params {
        let v = numbers(p.var.as_tensor()).map_err(|e| failed(job.name, optim.step, &e))?;
        w.add_f32(&format!("p.{name}"), p.var.dims(), &v)?;
        w.add_f32(&format!("m.{name}"), p.var.dims(), &p.m)?;
        w.add_f32(&format!("v.{name}"), p.var.dims(), &p.v)?;
    }
    for (name, v) in buffers {
        w.add_f32(&format!("b.{name}"), &[v.len()], v)?;
    }
    let halves = |v: u64| [(v >> 31) as i32, (v & 0x7fff_ffff) as i32];
    let counts = [optim.step, account.rows, account.tokens, account.time.as_millis() as u64].map(halves).concat();
    w.add_i32("counts", &[counts.len()], &counts)?;
    w.add_f32("losses", &[account.losses.len()], &account.losses)?;
    w.add_u8("identity", &[64], identity(job).as_bytes())?;
    write(path, &w.finish()?)
}

pub(super) fn load(job: &Job<'_>, path: &Path, optim: &mut AdamW, buffers: &mut Buffers) -> Result<Account> {
    let file = conpet_formats::fs::read(path)?;
    let bytes = checked(&file, path)?;
    let t = Tensors::parse_unscanned(bytes).map_err(|e| e.in_file(path))?;
    let get = |name: &str| t.get(name).ok_or_else(|| damaged(path));
    if get("identity")?.data != identity(job).as_bytes() {
        return Err(Error::new(Code::Value, "the checkpoint belongs to other data or other settings")
            .in_file(path)
            .hint("resume with the same command, or remove the checkpoint to start over"));
    }
    for (name, p) in &mut optim.params {
        let v = get(&format!("p.{name}"))?.to_f32();
        let tensor = Tensor::from_vec(v, p.var.shape(), &Device::Cpu);
        tensor.and_then(|x| p.var.set(&x)).map_err(|e| failed(job.name, 0, &e))?;
        p.m = get(&format!("m.{name}"))?.to_f32();
        p.v = get(&format!("v.{name}"))?.to_f32();
    }
    for (name, v) in buffers {
        *v = get(&format!("b.{name}"))?.to_f32();
    }
    let counts = get("counts")?.to_i32();
    let whole = |i: usize| (counts[i] as u64) << 31 | counts[i + 1] as u64;
    if counts.len() != 8 {
        return Err(damaged(path));
    }
    optim.step = whole(0);
    let (rows, tokens, time) = (whole(2), whole(4), Duration::from_millis(whole(6)));
    Ok(Account { rows, tokens, time, losses: get("losses")?.to_f32() })
}

/// Writes a digest and the payload atomically.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let digest = conpet_formats::fingerprint::file_digest(bytes);
    conpet_formats::fs::write_atomic(path, |out| {
        let io = |e| Error::io("write", e);
        out.write_all(digest.as_bytes()).map_err(io)?;
        out.write_all(bytes).map_err(io)
    })
}

/// The payload of a file written by [`write`].
pub(crate) fn checked<'f>(file: &'f [u8], path: &Path) -> Result<&'f [u8]> {
    let (digest, bytes) = file.split_at_checked(64).ok_or_else(|| damaged(path))?;
    if conpet_formats::fingerprint::file_digest(bytes).as_bytes() != digest {
        return Err(damaged(path));
    }
    Ok(bytes)
}

fn damaged(path: &Path) -> Error {
    Error::new(Code::Digest, "the checkpoint is damaged")
        .in_file(path)
        .hint("remove it to train this task from the start")
}
