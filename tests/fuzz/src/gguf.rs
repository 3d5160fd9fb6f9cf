//! Fuzzes bases. In an accepted one every tensor lies inside the file without overlapping others, and every
//! name is found; what is not a model is rejected without a panic.

use crate::forge;
use crate::recipe;
use conpet_formats::fingerprint::{CheckDepth, base_ref, check_base};
use conpet_formats::gguf::{Gguf, TensorType, Value, Writer};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::quant::QuantType;
use std::sync::OnceLock;

pub(crate) fn run(data: &[u8]) {
    let file = match recipe::raw(data) {
        Some(file) => file.to_vec(),
        None => spoiled(data),
    };
    let Ok(g) = Gguf::parse(&file) else { return };
    let mut end = g.data_offset() as u64;
    for t in g.tensors() {
        assert_eq!(t.offset % u64::from(g.alignment()), 0, "{}", t.name);
        assert!(t.offset >= end && t.offset + t.len <= file.len() as u64, "{}", t.name);
        end = t.offset + t.len;
        if let TensorType::Known(q) = t.ty {
            let row = q.row_bytes(t.cols() as usize).unwrap() as u128;
            assert_eq!(
                row * t.ne[1..].iter().map(|n| u128::from(*n)).product::<u128>(),
                u128::from(t.len),
                "{}",
                t.name
            );
        }
        assert_eq!(g.data(t).len() as u64, t.len);
        assert_eq!(g.tensor(t.name), Some(t), "a name is found twice, or not");
    }
    for (key, value) in g.metadata() {
        assert_eq!(g.get(key).map(|v| v.value_type()), Some(value.value_type()), "{key}");
        if let Value::Array(a) = value
            && let Ok(strings) = a.strings()
        {
            assert_eq!(strings.count(), a.len(), "{key}");
        }
    }
    if let Ok(spec) = ModelSpec::from_gguf(&g) {
        assert!(spec.n_layer <= 512 && spec.n_head.is_multiple_of(spec.n_kv_head));
        assert!(spec.ropes.iter().all(|r| r.dim <= spec.head_dim));
        let reference = base_ref(&g).unwrap();
        check_base(&reference, &g, CheckDepth::Full).unwrap();
        assert!(
            reference == forge::bundle().manifest().base
                || check_base(&forge::bundle().manifest().base, &g, CheckDepth::Full).is_err()
        );
    }
}

/// A file with a key of every type and a few tensors: much smaller than a model.
fn small() -> Vec<u8> {
    let mut w = Writer::new();
    w.str("general.name", "x").u32("a", 7).f32("b", 0.5).bool("c", true);
    w.strings("d", &["", "x", "yz"]).i32s("e", &[1, -1]).f32s("f", &[0.5]).u32("general.alignment", 32);
    w.tensor("t", QuantType::F32, &[8]).tensor("u", QuantType::Q8_0, &[32, 2]).tensor("v", QuantType::Q4K, &[256]);
    let mut out = Vec::new();
    w.finish(&mut out, |i| Ok(vec![0u8; [32, 68, 144][i]])).unwrap();
    out
}

/// A good file with edits at the numeric fields of its header.
pub(crate) fn spoiled(data: &[u8]) -> Vec<u8> {
    static SEEDS: OnceLock<Vec<(Vec<u8>, Vec<usize>)>> = OnceLock::new();
    let seeds = SEEDS.get_or_init(|| [small(), forge::base().to_vec()].map(|f| (f.clone(), fields(&f))).to_vec());
    let mut u = recipe::recipe(data);
    // Mostly the small one, which is read in a tenth of the time.
    let (file, fields) = &seeds[usize::from(u.ratio(1u8, 4u8).unwrap_or(false))];
    let mut file = file.clone();
    recipe::edits(&mut u, &mut file, fields);
    file
}

/// Offsets of a header's numeric fields: lengths, types, first values, sizes, offsets.
pub(crate) fn fields(file: &[u8]) -> Vec<usize> {
    let g = Gguf::parse(file).unwrap();
    let end = |name: &str| name.as_ptr() as usize - file.as_ptr() as usize + name.len();
    let keys =
        g.metadata().flat_map(|(k, _)| [end(k) - k.len() - 8, end(k) - 1, end(k), end(k) + 4, end(k) + 8, end(k) + 16]);
    let tensors = g.tensors().iter().flat_map(|t| {
        let sizes = end(t.name) + 4 + 8 * t.n_dims;
        [end(t.name) - t.name.len() - 8, end(t.name) - 1, end(t.name), end(t.name) + 4, sizes - 8, sizes, sizes + 4]
    });
    [4, 8, 16].into_iter().chain(keys).chain(tensors).collect()
}
