//! `gguf` shows what is in a base, and whether this release can run it.

mod cross_check;

use super::count;
use crate::cli::GgufArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::table::{Table, number};
use conpet_formats::gguf::{Array, Gguf, Shards, TensorInfo, TensorType, Value, ValueType};
use conpet_formats::model_spec::ModelSpec;
use serde::Serialize;
use std::collections::BTreeMap;

/// Elements of an array that are shown.
const FIRST: usize = 4;

#[derive(Serialize)]
struct Listing<'a> {
    schema: &'static str,
    file: String,
    bytes: u64,
    version: u32,
    alignment: u32,
    data_offset: usize,
    /// All files of a split base; `file` is the first of them, and version, alignment and offset are its own.
    shards: Vec<String>,
    /// Why this release cannot run it; `None` if it can.
    unsupported: Option<String>,
    /// Values in all tensors together.
    numbers: u64,
    metadata: Vec<Entry<'a>>,
    tensors: Vec<Tensor<'a>>,
    /// What gguf-rs reads differently; `None` if it was not asked.
    cross_check: Option<&'a [String]>,
}

#[derive(Serialize)]
struct Entry<'a> {
    key: &'a str,
    r#type: String,
    value: Shown,
}

/// A metadata value; of an array, its length and first elements.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown {
    Unsigned(u64),
    Signed(i64),
    Single(f32),
    Double(f64),
    Bool(bool),
    Text(String),
    Array { len: usize, first: Vec<String> },
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    r#type: String,
    ne: &'a [u64],
    /// Index into `shards`.
    shard: usize,
    offset: u64,
    bytes: u64,
}

pub(super) fn run(args: &GgufArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let file = args.hub.or(args.file.as_deref())?;
    let file = file.ok_or_else(|| Failure::usage("no base is named", "give a file, or a repository with -hf"))?;
    let files = Shards::open(&file)?;
    let gguf = files.gguf()?;
    let differences = if args.cross_check { Some(cross_checked(&files)?) } else { None };
    let agrees = differences.as_ref().is_none_or(Vec::is_empty);
    let status = if agrees { ExitStatus::Success } else { ExitStatus::Damaged };
    let unsupported = unsupported(&gguf);
    let numbers = gguf.tensors().iter().map(|t| t.ne.iter().product::<u64>()).sum();
    if out.json() {
        out.object(&Listing {
            schema: "conpet.inspect.gguf/1",
            file: files.path().display().to_string(),
            bytes: files.bytes(),
            version: gguf.version(),
            alignment: gguf.alignment(),
            data_offset: gguf.data_offset(),
            shards: files.paths().map(|p| p.display().to_string()).collect(),
            unsupported,
            numbers,
            metadata: gguf.metadata().map(|(key, v)| Entry { key, r#type: type_name(&v), value: shown(&v) }).collect(),
            tensors: gguf.tensors().iter().map(tensor).collect(),
            cross_check: differences.as_deref(),
        })?;
        return Ok(status);
    }
    let split = files.len() > 1;
    for (i, path) in files.paths().enumerate() {
        out.field(if i == 0 { "file" } else { "" }, &path.display().to_string());
    }
    let several = if split { format!(" in {}", count(files.len(), "shard")) } else { String::new() };
    out.field("gguf", &format!("version {}, {} bytes{several}", gguf.version(), number(files.bytes())));
    out.field("data", &format!("at {}, aligned to {}", number(gguf.data_offset() as u64), gguf.alignment()));
    out.field("runs", &unsupported.as_deref().map_or("yes".to_owned(), |why| format!("no: {why}")));
    out.field(
        "tensors",
        &format!("{}, {} parameters: {}", count(gguf.tensors().len(), "tensor"), number(numbers), types(&gguf)),
    );
    if let Some(d) = &differences {
        let n =
            if d.is_empty() { "gguf-rs agrees".into() } else { format!("gguf-rs: {}", count(d.len(), "difference")) };
        out.field("cross", &n);
        d.iter().for_each(|d| out.field("", d));
    }
    let mut t = Table::new(&["key", "type", "value"]);
    gguf.metadata().for_each(|(k, v)| t.row([k, &type_name(&v), &for_people(&shown(&v))]));
    out.table("metadata", &t);
    let offset = if split { ">shard: offset" } else { ">offset" };
    let mut t = Table::new(&["tensor", "type", "sizes", offset, ">bytes"]);
    for x in gguf.tensors().iter().map(tensor) {
        let shard = if split { format!("{}: ", x.shard + 1) } else { String::new() };
        let offset = shard + &number(x.offset);
        t.row([x.name, &x.r#type, &format!("{:?}", x.ne), &offset, &number(x.bytes)]);
    }
    out.table("tensors (sizes: fastest first)", &t);
    Ok(status)
}

/// What gguf-rs reads differently in any of the files.
fn cross_checked(files: &Shards) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for (i, path) in files.paths().enumerate() {
        let map = files.map(i);
        let gguf = Gguf::parse(map).map_err(|e| e.in_file(path))?;
        all.extend(cross_check::run(&gguf, map, path)?);
    }
    Ok(all)
}

/// Why this release cannot run the base, if it cannot.
fn unsupported(gguf: &Gguf<'_>) -> Option<String> {
    if let Err(e) = ModelSpec::from_gguf(gguf).and_then(|s| s.check_tensors(gguf)) {
        return Some(e.brief());
    }
    let t = gguf.tensors().iter().find(|t| matches!(t.ty, TensorType::Unknown(_)))?;
    Some(format!("tensor {} has the type {}, which cannot be run", t.name, tensor_type(t)))
}

fn types(gguf: &Gguf<'_>) -> String {
    let mut n: BTreeMap<String, usize> = BTreeMap::new();
    gguf.tensors().iter().for_each(|t| *n.entry(tensor_type(t)).or_default() += 1);
    n.into_iter().map(|(ty, n)| format!("{n} x {ty}")).collect::<Vec<_>>().join(", ")
}

fn tensor_type(t: &TensorInfo<'_>) -> String {
    t.ty.to_string()
}

fn tensor<'a>(t: &'a TensorInfo<'_>) -> Tensor<'a> {
    Tensor {
        name: t.name,
        r#type: tensor_type(t),
        ne: &t.ne[..t.n_dims],
        shard: t.file,
        offset: t.offset,
        bytes: t.len,
    }
}

fn type_name(v: &Value<'_>) -> String {
    match v {
        Value::Array(a) => format!("{:?}[{}]", a.element_type(), a.len()).to_lowercase(),
        other => format!("{:?}", other.value_type()).to_lowercase(),
    }
}

fn shown(v: &Value<'_>) -> Shown {
    match *v {
        Value::U8(v) => Shown::Unsigned(v.into()),
        Value::U16(v) => Shown::Unsigned(v.into()),
        Value::U32(v) => Shown::Unsigned(v.into()),
        Value::U64(v) => Shown::Unsigned(v),
        Value::I8(v) => Shown::Signed(v.into()),
        Value::I16(v) => Shown::Signed(v.into()),
        Value::I32(v) => Shown::Signed(v.into()),
        Value::I64(v) => Shown::Signed(v),
        Value::F32(v) => Shown::Single(v),
        Value::F64(v) => Shown::Double(v),
        Value::Bool(v) => Shown::Bool(v),
        Value::String(s) => Shown::Text(s.to_owned()),
        Value::Array(a) => Shown::Array { len: a.len(), first: elements(&a, FIRST) },
    }
}

/// The first `n` elements of an array, as text (tokens need not be UTF-8).
fn elements(a: &Array<'_>, n: usize) -> Vec<String> {
    if let Ok(strings) = a.strings() {
        return strings.take(n).map(|s| String::from_utf8_lossy(s).into_owned()).collect();
    }
    numbers(a).take(n).map(|v| v.to_string()).collect()
}

/// The elements of an array of numbers or bools, exact up to 2^53. An array of strings gives none.
fn numbers<'a>(a: &Array<'a>) -> Box<dyn Iterator<Item = f64> + 'a> {
    fn each<'a, const N: usize>(raw: &'a [u8], f: impl Fn([u8; N]) -> f64 + 'a) -> Box<dyn Iterator<Item = f64> + 'a> {
        Box::new(raw.as_chunks::<N>().0.iter().map(move |b| f(*b)))
    }
    let raw = a.raw();
    match a.element_type() {
        ValueType::U8 | ValueType::Bool => each(raw, |b: [u8; 1]| b[0].into()),
        ValueType::I8 => each(raw, |b| i8::from_le_bytes(b).into()),
        ValueType::U16 => each(raw, |b| u16::from_le_bytes(b).into()),
        ValueType::I16 => each(raw, |b| i16::from_le_bytes(b).into()),
        ValueType::U32 => each(raw, |b| u32::from_le_bytes(b).into()),
        ValueType::I32 => each(raw, |b| i32::from_le_bytes(b).into()),
        ValueType::F32 => each(raw, |b| f32::from_le_bytes(b).into()),
        ValueType::U64 => each(raw, |b| u64::from_le_bytes(b) as f64),
        ValueType::I64 => each(raw, |b| i64::from_le_bytes(b) as f64),
        ValueType::F64 => each(raw, f64::from_le_bytes),
        ValueType::String | ValueType::Array => Box::new(std::iter::empty()),
    }
}

fn for_people(v: &Shown) -> String {
    match v {
        Shown::Unsigned(v) => v.to_string(),
        Shown::Signed(v) => v.to_string(),
        Shown::Single(v) => v.to_string(),
        Shown::Double(v) => v.to_string(),
        Shown::Bool(v) => v.to_string(),
        // Tables are no place for a chat template of 5,000 characters.
        Shown::Text(s) if s.chars().count() > 80 => format!("{}...", s.chars().take(80).collect::<String>()),
        Shown::Text(s) => s.clone(),
        Shown::Array { len, first } => {
            let more = if *len > first.len() { ", ..." } else { "" };
            format!("[{}{more}]", first.join(", "))
        }
    }
}
