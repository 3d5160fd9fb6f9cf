//! A norm of a base, ready to be applied.

use crate::cpu::Cpu;
use crate::kernels::Kernels;
use conpet_formats::model_spec::NormKind;

/// A norm over rows of its weight's width.
#[derive(Debug, Clone, Copy)]
pub struct NormRef<'a> {
    /// How it normalises.
    pub kind: NormKind,
    /// Constant added to the mean square, or to the variance.
    pub eps: f32,
    /// Weight `[width]`.
    pub weight: &'a [f32],
    /// Bias `[width]`; empty for RMSNorm.
    pub bias: &'a [f32],
}

impl NormRef<'_> {
    /// Normalises one row `x [width]` into `out`.
    pub fn row(self, kernels: Kernels, x: &[f32], out: &mut [f32]) {
        match self.kind {
            NormKind::Rms => kernels.rms_norm(x, self.weight, self.eps, out),
            NormKind::Layer => kernels.layer_norm(x, [self.weight, self.bias], self.eps, out),
        }
    }

    /// Normalises one row `[width]` in place.
    pub fn row_inplace(self, kernels: Kernels, x: &mut [f32]) {
        match self.kind {
            NormKind::Rms => kernels.rms_norm_inplace(x, self.weight, self.eps),
            NormKind::Layer => kernels.layer_norm_inplace(x, [self.weight, self.bias], self.eps),
        }
    }

    /// Normalises each row of `x [n, width]` into `out`.
    pub(crate) fn rows(self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        let width = self.weight.len();
        cpu.by_row(out, width, |t, y| self.row(cpu.kernels, &x[t * width..][..width], y));
    }

    /// Normalises each row of `x [n, width]` in place.
    pub(crate) fn rows_inplace(self, cpu: &Cpu, x: &mut [f32]) {
        cpu.by_row(x, self.weight.len(), |_, x| self.row_inplace(cpu.kernels, x));
    }
}
