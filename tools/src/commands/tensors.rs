//! `tensors` sums up the parameters of one section, tensor by tensor.

use crate::cli::TensorsArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::part::{self, Part};
use crate::table::{Table, number};
use crate::view::View;
use conpet_formats::tensors::{Tensor, Tensors};
use serde::Serialize;

#[derive(Serialize)]
struct Listing {
    schema: &'static str,
    #[serde(flatten)]
    part: Part,
    numbers: usize,
    tensors: Vec<Summary>,
}

/// One tensor. The norm and the range are those of its finite values.
#[derive(Debug, PartialEq, Serialize)]
struct Summary {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    /// Euclidean (Frobenius) norm, summed in `f64`.
    norm: f64,
    min: Option<f32>,
    max: Option<f32>,
    nan: usize,
    infinite: usize,
}

pub(super) fn run(args: &TensorsArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let view = View::open(&args.file, args.stage, out)?;
    let index = part::find(view.manifest(), view.sections(), &args.part)?;
    // NaN is reported here rather than refused.
    let payload = Tensors::parse_unscanned(view.section(index)?)
        .map_err(|e| e.in_section(format!("section {index}")).in_file(&args.file))?;
    let tensors: Vec<Summary> = payload.names().filter_map(|n| payload.get(n).map(|t| summarise(n, &t))).collect();
    let listing = Listing {
        schema: "conpet.inspect.tensors/1",
        part: Part::new(&args.file, &view, index),
        numbers: tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum(),
        tensors,
    };
    if out.json() {
        out.object(&listing)?;
        return Ok(view.status());
    }
    listing.part.fields(out);
    out.field("parameters", &number(listing.numbers as u64));
    let mut t = Table::new(&["tensor", "type", "shape", ">norm", ">min", ">max", ">NaN", ">inf"]);
    for x in &listing.tensors {
        let float = |v: Option<f32>| v.map_or("-".to_owned(), |v| format!("{v:.5}"));
        let (shape, norm) = (format!("{:?}", x.shape), format!("{:.5}", x.norm));
        let (nan, inf) = (x.nan.to_string(), x.infinite.to_string());
        t.row([&x.name, x.dtype, &shape, &norm, &float(x.min), &float(x.max), &nan, &inf]);
    }
    out.table("", &t);
    Ok(view.status())
}

fn summarise(name: &str, t: &Tensor<'_>) -> Summary {
    let mut s = Summary {
        name: name.to_owned(),
        dtype: t.dtype.name(),
        shape: t.shape.clone(),
        norm: 0.0,
        min: None,
        max: None,
        nan: 0,
        infinite: 0,
    };
    let mut squares = 0.0;
    for v in t.to_f32() {
        if v.is_finite() {
            squares += f64::from(v) * f64::from(v);
            s.min = Some(s.min.map_or(v, |m| m.min(v)));
            s.max = Some(s.max.map_or(v, |m| m.max(v)));
        } else if v.is_nan() {
            s.nan += 1;
        } else {
            s.infinite += 1;
        }
    }
    s.norm = f64::sqrt(squares);
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpet_formats::tensors::Dtype;

    #[test]
    fn values_that_are_not_finite_are_counted_apart() {
        let values = [3.0f32, f32::NAN, -4.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let s = summarise("x", &Tensor { dtype: Dtype::F32, shape: vec![2, 3], data: &data });
        assert_eq!((s.norm, s.min, s.max, s.nan, s.infinite), (5.0, Some(-4.0), Some(3.0), 2, 2));
        let s = summarise("x", &Tensor { dtype: Dtype::F16, shape: vec![1], data: &[0, 0x7e] });
        assert_eq!((s.norm, s.min, s.nan), (0.0, None, 1));
    }
}
