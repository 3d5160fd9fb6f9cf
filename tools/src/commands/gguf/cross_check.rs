//! Compares our reading of a GGUF with that of the crate gguf-rs.
//!
//! gguf-rs 0.1.8 is not fit for hostile files: it trusts string lengths, panics on some tensor
//! types, and keeps up to 50 bytes of heap for each byte of an array. So it sees a file only
//! after our reader has accepted it, only the header of it, only within the caps below, and
//! behind `catch_unwind`. Its sizes and its file type are not compared: the former are wrong for
//! BF16, I8 to I64, F64, Q8_1, IQ4_NL and MXFP4, the latter panics.

use super::numbers;
use crate::exit::{ExitStatus, Failure};
use conpet_formats::gguf::{Array, Gguf, TensorType, Value};
use gguf_rs::{ByteOrder, GGUFContainer, GGUFModel};
use std::cell::Cell;
use std::io::Cursor;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

/// Longest header handed over, in bytes.
const HEADER_CAP: usize = 256 << 20;
/// Most array elements handed over, all arrays together: 4 Mi of them cost it 200 MB.
const ELEMENT_CAP: usize = 4 << 20;
/// Differences that are listed.
const LISTED: usize = 20;

/// What gguf-rs reads differently; empty if the two agree.
///
/// # Errors
/// If the file is nothing gguf-rs may be given, or it fails on it.
pub(super) fn run(gguf: &Gguf<'_>, file: &[u8], path: &Path) -> Result<Vec<String>, Failure> {
    let refused = |why: String| Failure {
        status: ExitStatus::Usage,
        message: format!("{}: not cross-checked: {why}", path.display()),
        hint: "run without --cross-check; this project's own reader has accepted the file".into(),
    };
    guard(gguf).map_err(&refused)?;
    let header = file[4..gguf.data_offset().min(file.len())].to_vec();
    let theirs = quietly(|| GGUFContainer::new(ByteOrder::LE, Box::new(Cursor::new(header)), u64::MAX).decode());
    match theirs {
        Some(Ok(model)) => Ok(compare(gguf, &model)),
        Some(Err(e)) => Err(refused(format!("gguf-rs fails: {e}"))),
        None => Err(refused("gguf-rs panics on it".into())),
    }
}

fn guard(gguf: &Gguf<'_>) -> Result<(), String> {
    if gguf.data_offset() > HEADER_CAP {
        return Err(format!("its header has {} bytes, cap {HEADER_CAP}", gguf.data_offset()));
    }
    let array = |v: Value<'_>| if let Value::Array(a) = v { a.len() } else { 0 };
    let elements: usize = gguf.metadata().map(|(_, v)| array(v)).sum();
    if elements > ELEMENT_CAP {
        return Err(format!("its arrays have {elements} elements, cap {ELEMENT_CAP}"));
    }
    match gguf.tensors().iter().find(|t| matches!(kind(t.ty), 4 | 5 | 40..)) {
        Some(t) => Err(format!("tensor {} has the type {}, which gguf-rs does not survive", t.name, kind(t.ty))),
        None => Ok(()),
    }
}

fn kind(ty: TensorType) -> u32 {
    match ty {
        TensorType::Known(q) => q.ggml_id(),
        TensorType::Unknown(id) => id,
    }
}

thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });

/// Runs `f`; `None` if it panicked. The panic prints nothing.
fn quietly<T>(f: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    QUIET.set(false);
    result.ok()
}

fn compare(ours: &Gguf<'_>, theirs: &GGUFModel) -> Vec<String> {
    let mut out = Vec::new();
    let mut differs = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            out.push(format!("{what}: {ours} here, {theirs} there"));
        }
    };
    differs("version", format!("v{}", ours.version()), theirs.get_version());
    differs("alignment", ours.alignment().to_string(), theirs.alignment().to_string());
    differs("data offset", ours.data_offset().to_string(), theirs.data_offset().to_string());
    differs("keys", ours.metadata().count().to_string(), theirs.metadata().len().to_string());
    for (key, value) in ours.metadata() {
        let there = theirs.metadata().get(key);
        if !there.is_some_and(|t| same(&value, t)) {
            let there = there.map_or("nothing".to_owned(), |t| t.to_string().chars().take(60).collect());
            differs(&format!("key {key}"), format!("{:?}", value.value_type()), there);
        }
    }
    differs("tensors", ours.tensors().len().to_string(), theirs.tensors().len().to_string());
    for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
        let here = (a.name, kind(a.ty), &a.ne[..a.n_dims], a.offset);
        let there = (b.name.as_str(), b.kind, &b.shape[..], theirs.data_offset().saturating_add(b.offset));
        differs(&format!("tensor {}", a.name), format!("{here:?}"), format!("{there:?}"));
    }
    out.truncate(LISTED);
    out
}

/// gguf-rs keeps values as JSON: integer widths merge, floats that are not finite become null,
/// and text that is not UTF-8 is replaced.
fn same(ours: &Value<'_>, theirs: &serde_json::Value) -> bool {
    let float =
        |v: f64| if v.is_finite() { theirs.as_f64().is_some_and(|t| t as f32 == v as f32) } else { theirs.is_null() };
    match *ours {
        Value::U8(v) => theirs.as_u64() == Some(v.into()),
        Value::U16(v) => theirs.as_u64() == Some(v.into()),
        Value::U32(v) => theirs.as_u64() == Some(v.into()),
        Value::U64(v) => theirs.as_u64() == Some(v),
        Value::I8(v) => theirs.as_i64() == Some(v.into()),
        Value::I16(v) => theirs.as_i64() == Some(v.into()),
        Value::I32(v) => theirs.as_i64() == Some(v.into()),
        Value::I64(v) => theirs.as_i64() == Some(v),
        Value::F32(v) => float(v.into()),
        Value::F64(v) => float(v),
        Value::Bool(v) => theirs.as_bool() == Some(v),
        Value::String(s) => theirs.as_str() == Some(s),
        Value::Array(a) => theirs.as_array().is_some_and(|t| same_array(&a, t)),
    }
}

fn same_array(ours: &Array<'_>, theirs: &[serde_json::Value]) -> bool {
    if ours.len() != theirs.len() {
        return false;
    }
    if let Ok(mut strings) = ours.strings() {
        return theirs.iter().all(|t| strings.next().is_some_and(|s| t.as_str() == Some(&*String::from_utf8_lossy(s))));
    }
    numbers(ours).zip(theirs).all(|(v, t)| match t {
        serde_json::Value::Bool(b) => v == f64::from(u8::from(*b)),
        serde_json::Value::Null => !v.is_finite(),
        t => t.as_f64().is_some_and(|t| t as f32 == v as f32),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_and_the_next_one_is_heard() {
        assert_eq!(quietly(|| 7), Some(7));
        assert_eq!(quietly(|| -> u8 { panic!("as gguf-rs does") }), None);
        assert!(!QUIET.get());
    }
}
