//! A memory budget smaller than the base: the same answers, in less memory.
//!
//! It is the only test in its program, so that nothing else maps files at the same time.

use conpet_formats::quant::QuantType;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_runtime::base::Base;
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::memory::Memory;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

#[test]
fn a_base_larger_than_its_budget_gives_the_same_logits_in_less_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.gguf");
    let config = TinyConfig { linear: QuantType::F32, hidden: 256, ffn: 1024, layers: 10, ..TinyConfig::default() };
    std::fs::write(&path, tiny::base(&config).unwrap()).unwrap();
    let logits = |budget: Option<u64>| {
        let before = Memory::now().file;
        let mut base = Base::open(&path).unwrap();
        if let Some(b) = budget {
            base.limit_memory(b as usize).unwrap();
        }
        let engine = Engine::new(Arc::new(base), 2);
        let prompt = engine.prompt("the cat sat on the mat and looked at the rain", None).unwrap();
        let logits = engine.logits(&prompt, &Blend::none());
        (logits, Memory::now().file.saturating_sub(before))
    };
    let (all, held) = logits(None);
    assert!(held > 35 * MIB, "the whole base is read: {held} bytes");
    // Room for two layers of four MiB and what stays; the rest leaves memory as soon as it was used.
    let (same, held) = logits(Some(13 * MIB));
    assert_eq!(all, same);
    assert!(held < 14 * MIB, "{held} bytes are in memory");
    let refused = Base::open(&path).unwrap().limit_memory(MIB as usize).unwrap_err().to_string();
    assert!(refused.contains("large.gguf") && refused.contains("1 MiB"), "{refused}");
}
