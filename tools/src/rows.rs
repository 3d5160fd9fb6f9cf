//! Tensors rewritten in another type, a few rows at a time: memory does not grow with the tensor.

use conpet_formats::quant::{self, QuantType};
use conpet_formats::{Code, Error, Result};
use std::io::Write;

/// Values that are turned at once by each thread; whole rows, and at least one.
const AT_ONCE: usize = 1 << 18;

/// Writes a tensor of `rows` rows of `cols` values as type `ty`; `read(row, out)` gives a row.
///
/// # Errors
/// If a value is not finite or too large for `ty`, or writing fails; and those of `read`.
pub(crate) fn write(
    out: &mut dyn Write,
    ty: QuantType,
    (rows, cols): (usize, usize),
    read: &(dyn Fn(usize, &mut [f32]) -> Result<()> + Sync),
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let band = (AT_ONCE / cols.max(1)).max(1);
    let turn = |first: usize| {
        let n = band.min(rows - first);
        let mut values = vec![0.0; n * cols];
        values.chunks_exact_mut(cols).enumerate().try_for_each(|(i, row)| read(first + i, row))?;
        quant::quantize(ty, &values).map_err(|e| e.hint("the weights are damaged; download them again"))
    };
    let starts: Vec<usize> = (0..rows).step_by(band).collect();
    for together in starts.chunks(threads) {
        let turn = &turn;
        let done: Vec<Result<Vec<u8>>> = std::thread::scope(|s| {
            let workers: Vec<_> = together.iter().map(|first| s.spawn(move || turn(*first))).collect();
            let lost = |_| Err(Error::new(Code::Io, "a thread of the conversion was lost"));
            workers.into_iter().map(|w| w.join().unwrap_or_else(lost)).collect()
        });
        for bytes in done {
            out.write_all(&bytes?).map_err(|e| Error::io("write", e))?;
        }
    }
    Ok(())
}
