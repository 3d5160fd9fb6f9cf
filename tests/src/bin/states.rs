//! Writes what a base gives for each of some tokens, to compare it with other programs:
//! `states BASE TOKENS OUT [--exact] [--lora FILE]`.
//!
//! TOKENS is a text file of token ids between spaces. OUT gets little-endian floats: the logits after each token, or
//! the last states of an encoder. FILE is a LoRA in llama.cpp's format.

use anyhow::{Context, Result, bail};
use conpet_formats::exchange::llama_lora;
use conpet_formats::fingerprint::base_ref;
use conpet_formats::mmap::Mapped;
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::module::Module;
use conpet_runtime::prompt::Prompt;
use conpet_tests::kinds::output;
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, tokens, out, more @ ..] = args.as_slice() else {
        bail!("states BASE TOKENS OUT [--exact] [--lora FILE]");
    };
    let mut engine = Engine::open(Path::new(base), 2)?;
    let mut blend = Blend::none();
    let mut rest = more.iter();
    while let Some(flag) = rest.next() {
        match flag.as_str() {
            "--exact" => {
                let exact = engine.cpu().kernels.exact();
                engine = engine.with_kernels(exact);
            }
            "--lora" => {
                let file = std::fs::read(rest.next().context("--lora needs a file")?)?;
                let known = base_ref(&engine.base.gguf()?)?;
                let parcel = llama_lora::read(&file, &engine.base.spec, &known)?;
                let len = parcel.payload.len();
                let map = Mapped::from_vec(parcel.payload);
                let module = Module::load(map, 0..len, &parcel.sites, &parcel.pet, &engine.base.spec)?;
                blend = Blend::from(Arc::new(module));
            }
            other => bail!("unknown flag {other}"),
        }
    }
    let ids = std::fs::read_to_string(tokens)?;
    let tokens = ids.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let prompt = Prompt { text: String::new(), offsets: vec![0..0; tokens.len()], tokens };
    let bytes: Vec<u8> = output(&engine, &prompt, &blend).iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(std::fs::write(out, bytes)?)
}
