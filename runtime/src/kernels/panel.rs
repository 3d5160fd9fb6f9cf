//! Panels: sixteen rows of quantized weights, decoded and interleaved once per batch.
//!
//! Whatever the type, a panel holds byte codes in steps of four columns, `[k / 4, 16 rows, 4]`, and a scale and
//! a minimum for each run of each row, `[k / run, 16]`. So one vector register holds the same four columns of
//! several rows, one integer instruction multiplies them with four values of a token, and no sum has to be
//! reduced across a register. A panel lives in a thread's work space and stays in the L1 or L2 cache; the
//! weights themselves stay quantized in the map.

use super::input::Rows;
use crate::aligned::Aligned;
use conpet_formats::quant::{self, Block, Half, QuantType};
use conpet_formats::with_block;

/// Rows of a panel.
pub(super) const ROWS: usize = 16;

/// Sixteen rows, unpacked.
#[derive(Debug, Default)]
pub(super) struct Panel {
    /// Codes `[k / 4, 16, 4]`.
    pub(super) codes: Aligned<u8>,
    /// `[k / run, 16]`.
    pub(super) scales: Aligned<f32>,
    /// `[k / run, 16]`.
    pub(super) mins: Aligned<f32>,
    /// Number of weights that share a scale: 16 or 32.
    pub(super) run: usize,
    /// Bits of the largest code: codes lie in `0..1 << bits`. Eight-bit codes have `min = -128 · scale`.
    pub(super) bits: u32,
}

/// Codes of up to 256 columns before they are interleaved: `[16 rows, 256]`.
pub(super) type Codes = [[u8; 256]; ROWS];

impl Panel {
    /// Makes room for rows of `k` weights of a type.
    pub(super) fn reserve<B: Block>(&mut self, k: usize) {
        (self.run, self.bits) = (B::RUN, B::BITS);
        self.codes.reserve(k * ROWS);
        self.scales.reserve(k / B::RUN * ROWS);
        self.mins.reserve(k / B::RUN * ROWS);
    }

    /// Unpacks up to 16 rows `bytes`; rows that are missing become zeros.
    ///
    /// `interleave(codes, len, out)` turns `[16, len]` codes into `out [len / 4, 16, 4]`.
    #[inline(always)]
    pub(super) fn unpack<H: Half>(
        &mut self,
        ty: QuantType,
        bytes: &[u8],
        rows: usize,
        k: usize,
        interleave: impl Fn(&Codes, usize, &mut [u8]),
    ) {
        with_block!(ty, B => {
            let (len, runs) = (ty.block_len(), ty.block_len() / B::RUN);
            self.reserve::<B>(k);
            let blocks = quant::blocks::<B>(bytes).unwrap_or_default();
            let per_row = k / len;
            let mut codes: Codes = [[0; 256]; ROWS];
            let (mut scale, mut min) = ([0.0; 16], [0.0; 16]);
            for b in 0..per_row {
                let at = b * runs * ROWS;
                let (scales, mins) = (&mut self.scales[at..at + runs * ROWS], &mut self.mins[at..at + runs * ROWS]);
                if rows < ROWS {
                    scales.fill(0.0);
                    mins.fill(0.0);
                }
                for r in 0..rows {
                    let block = &blocks[r * per_row + b];
                    block.codes(&mut codes[r]);
                    block.scales::<H>(&mut scale, &mut min);
                    for j in 0..runs {
                        scales[j * ROWS + r] = scale[j];
                        mins[j * ROWS + r] = min[j];
                    }
                }
                interleave(&codes, len, &mut self.codes[b * len * ROWS..(b + 1) * len * ROWS]);
            }
        }, float => unreachable!("{} is not made of blocks", ty.name()));
    }
}

/// Interleaves `[16, len]` codes to `[len / 4, 16, 4]`, in plain loops.
pub(super) fn interleave(codes: &Codes, len: usize, out: &mut [u8]) {
    for (step, out) in out.chunks_exact_mut(4 * ROWS).enumerate().take(len / 4) {
        for (row, out) in codes.iter().zip(out.chunks_exact_mut(4)) {
            out.copy_from_slice(&row[4 * step..4 * step + 4]);
        }
    }
}

/// The specification of a panel's product: `out [n, 16]`.
pub(super) fn product(p: &Panel, x: Rows<'_>, out: &mut [f32]) {
    for (t, out) in out.chunks_exact_mut(ROWS).enumerate() {
        let x = x.row(t);
        for (r, o) in out.iter_mut().enumerate() {
            let mut sum = 0.0f64;
            for run in 0..x.codes.len() / p.run {
                let dot: i64 = (run * p.run..(run + 1) * p.run)
                    .map(|i| i64::from(p.codes[(i / 4 * ROWS + r) * 4 + i % 4]) * i64::from(x.codes[i] as i8))
                    .sum();
                let at = run * ROWS + r;
                sum += f64::from(p.scales[at]) * f64::from(x.scales[run * p.run / 32]) * dot as f64
                    + f64::from(p.mins[at]) * f64::from(x.sums(p.run)[run]);
            }
            *o = sum as f32;
        }
    }
}
