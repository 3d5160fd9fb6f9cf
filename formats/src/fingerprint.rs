//! The base fingerprint: a module must never meet another base.
//!
//! Four digests (BLAKE3, lower-case hex): the *structure* (hyper-parameters, tensor names, types
//! and shapes), the *tokenizer* (tokens, merges, types, special ids, pre-tokenizer, chat template), a *sample* of
//! the file (64 blocks of 4 KiB spread evenly: tells models of equal shape apart without touching
//! the whole file), and the whole *file*. A split base is taken as the file it would be in one piece ([`Whole`]), so
//! that it has the fingerprint of the base before it was split. An edge box checks the first three at every start
//! ([`CheckDepth::Quick`]: about 256 KiB read); installation and `verify` check all four.

use crate::bundle::manifest::BaseRef;
use crate::gguf::{Gguf, Value, Whole};
use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};

/// How much of the base is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckDepth {
    /// Structure, tokenizer, length and the sample.
    Quick,
    /// Also every byte.
    Full,
}

const SAMPLE_BLOCKS: u64 = 64;
const SAMPLE_BYTES: u64 = 4096;

/// What a bundle records about its base; reads every byte of the file.
///
/// # Errors
/// If the base is not one this release runs.
pub fn base_ref(gguf: &Gguf<'_>) -> Result<BaseRef> {
    let spec = ModelSpec::from_gguf(gguf)?;
    let whole = Whole::of(gguf);
    let quant = gguf.tensor("blk.0.ffn_down.weight").map_or_else(String::new, |t| match t.ty {
        crate::gguf::TensorType::Known(q) => q.name().to_owned(),
        crate::gguf::TensorType::Unknown(id) => format!("type {id}"),
    });
    Ok(BaseRef {
        arch: spec.arch.clone(),
        file_blake3: vec![digest(&whole)],
        file_len: whole.len(),
        name: clean(&spec.name),
        quant,
        sample: sample(&whole),
        structure: structure(gguf)?,
        tokenizer: tokenizer(gguf)?,
    })
}

/// Checks that a GGUF is the base a bundle was trained on.
///
/// # Errors
/// `E_BASE`, naming the first part that differs.
pub fn check_base(want: &BaseRef, gguf: &Gguf<'_>, depth: CheckDepth) -> Result<()> {
    let differs = |what: &str, want: &str, got: &str| {
        Err(Error::new(Code::BaseMismatch, format!("this base's {what} is {got}, the bundle was trained on {want}"))
            .hint("give the base the bundle names (conpet-inspect shows it); modules never run on another base"))
    };
    let arch = gguf.required_str("general.architecture")?;
    if arch != want.arch {
        return differs("architecture", &want.arch, arch);
    }
    let parts = [("structure", &want.structure, structure(gguf)?), ("tokenizer", &want.tokenizer, tokenizer(gguf)?)];
    for (what, want, got) in parts {
        if *want != got {
            return differs(what, want, &got);
        }
    }
    let whole = Whole::of(gguf);
    if want.file_len != whole.len() {
        return differs("file length", &want.file_len.to_string(), &whole.len().to_string());
    }
    let got = sample(&whole);
    if want.sample != got {
        return differs("weight sample", &want.sample, &got);
    }
    if depth == CheckDepth::Full {
        let got = digest(&whole);
        if !want.file_blake3.contains(&got) {
            return differs("file digest", &want.file_blake3.join(" or "), &got);
        }
    }
    Ok(())
}

/// BLAKE3 of bytes, lower-case hex.
pub fn file_digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn digest(whole: &Whole<'_>) -> String {
    let mut h = blake3::Hasher::new();
    whole.pieces().for_each(|p| {
        h.update(p);
    });
    h.finalize().to_hex().to_string()
}

fn sample(whole: &Whole<'_>) -> String {
    let mut h = blake3::Hasher::new_derive_key("conpet 2026 base sample v1");
    let len = whole.len();
    for i in 0..SAMPLE_BLOCKS {
        // The last block ends with the file; small files are simply hashed more than once.
        let start = len.saturating_sub(SAMPLE_BYTES) * i / (SAMPLE_BLOCKS - 1);
        let end = (start + SAMPLE_BYTES).min(len);
        whole.range(start..end).for_each(|p| {
            h.update(p);
        });
    }
    h.finalize().to_hex().to_string()
}

fn structure(gguf: &Gguf<'_>) -> Result<String> {
    let s = ModelSpec::from_gguf(gguf)?;
    let mut h = blake3::Hasher::new_derive_key("conpet 2026 base structure v1");
    h.update(
        format!(
            "{} {} {} {} {} {} {} {} {:08x} {:08x} {} {} {}\n",
            s.arch,
            s.n_layer,
            s.hidden,
            s.n_head,
            s.n_kv_head,
            s.head_dim,
            s.ffn,
            s.vocab,
            s.norm_eps.to_bits(),
            s.ropes.first().map_or(0, |r| r.base.to_bits()),
            s.ropes.first().map_or(0, |r| r.dim),
            s.ropes.first().map_or_else(String::new, |r| format!("{:?}", r.kind)),
            s.output.tied
        )
        .as_bytes(),
    );
    // What follows from the architecture's name is not repeated.
    if let Some(window) = s.window() {
        h.update(format!("window {window}\n").as_bytes());
    }
    for r in s.ropes.iter().filter(|r| r.is_scaled()) {
        let bits: Vec<u64> = r.frequencies.iter().map(|f| f.to_bits()).collect();
        h.update(format!("scaled {:08x} {bits:x?}\n", r.magnitude.to_bits()).as_bytes());
    }
    let usual = [1.0, 1.0, 1.0 / (s.head_dim as f32).sqrt(), 1.0, 0.0, 0.0];
    let own = [
        // A Gemma's follows from its width.
        if s.embedding.scale == (s.hidden as f32).sqrt() { 1.0 } else { s.embedding.scale },
        s.residual_scale,
        s.attention_scale,
        s.output.scale,
        s.attention_cap.unwrap_or(0.0),
        s.output.cap.unwrap_or(0.0),
    ];
    if own != usual {
        h.update(format!("scales {:x?}\n", own.map(f32::to_bits)).as_bytes());
    }
    // The first two families were described without this.
    if !["llama", "gemma3"].contains(&s.arch.as_str()) {
        for a in &s.attention {
            h.update(format!("window {:?} rope {:?}\n", a.window, a.rope).as_bytes());
        }
    }
    let mut tensors: Vec<_> = gguf.tensors().iter().map(|t| (t.name, t.ne, t.ty)).collect();
    tensors.sort_by_key(|t| t.0);
    for (name, ne, ty) in tensors {
        h.update(format!("{name} {ne:?} {ty:?}\n").as_bytes());
    }
    Ok(h.finalize().to_hex().to_string())
}

fn tokenizer(gguf: &Gguf<'_>) -> Result<String> {
    let mut h = blake3::Hasher::new_derive_key("conpet 2026 base tokenizer v1");
    let mut keys: Vec<_> = gguf.metadata().filter(|(k, _)| k.starts_with("tokenizer.")).collect();
    keys.sort_by_key(|(k, _)| *k);
    for (key, value) in keys {
        h.update(key.as_bytes());
        match value {
            Value::Array(a) => {
                h.update(&(a.len() as u64).to_le_bytes());
                match a.strings() {
                    Ok(strings) => strings.for_each(|s| {
                        h.update(&(s.len() as u64).to_le_bytes());
                        h.update(s);
                    }),
                    Err(_) => {
                        h.update(a.raw());
                    }
                }
            }
            other => {
                h.update(format!("={other:?}\n").as_bytes());
            }
        }
    }
    Ok(h.finalize().to_hex().to_string())
}

/// A name fit for a manifest: no control characters, at most 128 of them.
fn clean(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::{self, TinyConfig};

    fn check(want: &BaseRef, bytes: &[u8], depth: CheckDepth) -> Result<()> {
        check_base(want, &Gguf::parse(bytes)?, depth)
    }

    /// The base with the bytes behind the first `what` changed in place.
    fn edited(base: &[u8], what: &str, skip: usize, to: &[u8]) -> Vec<u8> {
        let at = base.windows(what.len()).position(|w| w == what.as_bytes()).unwrap() + what.len() + skip;
        let mut out = base.to_vec();
        out[at..at + to.len()].copy_from_slice(to);
        out
    }

    #[test]
    fn each_part_of_a_base_is_held() {
        let base = tiny::base(&TinyConfig::default()).unwrap();
        let want = base_ref(&Gguf::parse(&base).unwrap()).unwrap();
        check(&want, &base, CheckDepth::Full).unwrap();
        let differs = |bytes: &[u8], depth, part: &str| {
            let e = check(&want, bytes, depth).unwrap_err();
            assert!(e.code() == Code::BaseMismatch && e.message().contains(part), "{part}: {e}");
        };
        // A key's value lies behind its name and its type (u32).
        differs(&edited(&base, "rope.freq_base", 4, &77f32.to_le_bytes()), CheckDepth::Quick, "structure");
        differs(&edited(&base, "eos_token_id", 4, &3u32.to_le_bytes()), CheckDepth::Quick, "tokenizer");
        let other = tiny::base(&TinyConfig { seed: 9, ..TinyConfig::default() }).unwrap();
        differs(&other, CheckDepth::Quick, "weight sample");
        // One bit between two sampled blocks: only the whole digest sees it.
        let spread = (base.len() as u64 - SAMPLE_BYTES) / (SAMPLE_BLOCKS - 1);
        if spread > SAMPLE_BYTES + 64 {
            let mut bytes = base.clone();
            bytes[(spread * 40 + SAMPLE_BYTES + 64) as usize] ^= 1;
            check(&want, &bytes, CheckDepth::Quick).unwrap();
            differs(&bytes, CheckDepth::Full, "file digest");
        }
        let mut bytes = base.clone();
        let last = base.len() - 1;
        bytes[last] ^= 1;
        differs(&bytes, CheckDepth::Quick, "weight sample");
    }
}
