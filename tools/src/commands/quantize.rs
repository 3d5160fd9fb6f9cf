//! `quantize` writes a base in another type.

use super::count;
use crate::cli::QuantizeArgs;
use crate::exit::{self, ExitStatus, Failure};
use crate::file_type::{self, FileType, Shape};
use crate::output::Output;
use crate::rows;
use crate::table::number;
use conpet_formats::gguf::{Gguf, TensorInfo, TensorType, Writer};
use conpet_formats::mmap::Mapped;
use conpet_formats::quant::{self, QuantType};
use conpet_formats::{Code, Error, Result as FileResult, fs};
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
struct Quantize {
    schema: &'static str,
    from: String,
    to: String,
    file_type: &'static str,
    tensors: usize,
    bytes_before: u64,
    bytes_now: u64,
}

pub(super) fn run(args: &QuantizeArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let file_type = file_type::named(&args.ty).map_err(|e| Failure::usage(e.message(), e.remedy()))?;
    let map = Mapped::open(&args.from)?;
    let gguf = Gguf::parse(&map).map_err(|e| e.in_file(&args.from))?;
    let plan = plan(&gguf, file_type).map_err(|e| e.in_file(&args.from))?;
    let writer = header(&gguf, file_type, &plan);
    fs::create_new(&args.to, |out| {
        writer.stream(out, |i, out| fill(&gguf, &gguf.tensors()[i], plan[i], out))?;
        // What vanished from under the mapping has read as zeros.
        map.check().map_err(|e| e.in_file(&args.from))
    })
    .map_err(exit::creating)?;
    let result = Quantize {
        schema: "conpet.inspect.quantize/1",
        from: args.from.display().to_string(),
        to: args.to.display().to_string(),
        file_type: file_type.name,
        tensors: plan.len(),
        bytes_before: map.len() as u64,
        bytes_now: std::fs::metadata(&args.to).map_or(0, |m| m.len()),
    };
    if out.json() {
        out.object(&result)?;
    } else {
        out.field("wrote", &result.to);
        out.field("base", &format!("{}, {}", result.file_type, count(result.tensors, "tensor")));
        out.field("bytes", &format!("{} -> {}", number(result.bytes_before), number(result.bytes_now)));
    }
    Ok(ExitStatus::Success)
}

/// The new type of each tensor.
fn plan(gguf: &Gguf<'_>, file_type: FileType) -> FileResult<Vec<QuantType>> {
    if gguf.u32("split.count")?.is_some_and(|n| n > 1) {
        return Err(Error::new(Code::Unsupported, "the file is one part of a split model")
            .in_section("key split.count")
            .hint("join the parts with llama-gguf-split --merge, and give the file that it writes"));
    }
    let shape = Shape::of(gguf)?;
    let arch = gguf.required_str("general.architecture")?;
    if gguf.u32(&format!("{arch}.expert_count"))?.is_some_and(|n| n > 0) {
        return Err(Error::new(Code::Unsupported, "models of several experts are not quantized"));
    }
    gguf.tensors().iter().map(|t| new_type(t, file_type, &shape)).collect()
}

fn new_type(t: &TensorInfo<'_>, file_type: FileType, shape: &Shape) -> FileResult<QuantType> {
    let bad = |what: String| Error::new(Code::Unsupported, what).in_section(format!("tensor {}", t.name));
    let TensorType::Known(old) = t.ty else {
        return Err(bad(format!("type {} cannot be read", t.ty)).hint("take the base in F16 or F32"));
    };
    let new = file_type.tensor_type(t.name, &t.ne[..t.n_dims], shape).unwrap_or(old);
    if new != old && old.block_len() > 1 {
        return Err(bad(format!("it is {} already, and would lose twice as {}", old.name(), new.name()))
            .hint("take the base in F16, BF16 or F32"));
    }
    Ok(new)
}

/// The metadata of the old file, with the new type.
fn header(gguf: &Gguf<'_>, file_type: FileType, plan: &[QuantType]) -> Writer {
    let mut w = Writer::new();
    let own = ["general.file_type", "general.quantization_version", "general.alignment"];
    for (key, value) in gguf.metadata().filter(|(key, _)| !own.contains(key) && !key.starts_with("split.")) {
        w.value(key, value);
    }
    w.u32("general.quantization_version", 2).u32("general.file_type", file_type.id);
    for (t, ty) in gguf.tensors().iter().zip(plan) {
        w.tensor(t.name, *ty, &t.ne[..t.n_dims]);
    }
    w
}

fn fill(gguf: &Gguf<'_>, t: &TensorInfo<'_>, new: QuantType, out: &mut dyn Write) -> FileResult<()> {
    let data = gguf.data(t);
    let TensorType::Known(old) = t.ty else { return Ok(()) };
    if new == old {
        return out.write_all(data).map_err(|e| Error::io("write", e));
    }
    let (rows, cols) = (t.rows() as usize, t.cols() as usize);
    let size = data.len() / rows;
    rows::write(out, new, (rows, cols), &|row, values| {
        quant::dequantize(old, &data[row * size..(row + 1) * size], values);
        Ok(())
    })
    .map_err(|e| e.in_section(format!("tensor {}", t.name)))
}
