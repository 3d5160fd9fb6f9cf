//! A module's payload while it is hooked: every tensor is checked when it is taken, and none may be left.

use crate::error::{Code, Error, Result};
use crate::kernels::MatrixRef;
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::Site;
use conpet_formats::quant::QuantType;
use conpet_formats::tensors::{Dtype, Tensor, Tensors};
use std::collections::BTreeSet;
use std::ops::Range;

/// A payload and what of it has been taken.
pub(super) struct Payload<'a> {
    pub(super) spec: &'a ModelSpec,
    tensors: Tensors<'a>,
    /// Address of the map's first byte.
    base: usize,
    used: usize,
    sites: BTreeSet<Site>,
}

/// Numbers of a payload: where they lie in its map.
#[derive(Debug, Clone)]
pub(super) struct Factor {
    ty: QuantType,
    rows: usize,
    cols: usize,
    bytes: Range<usize>,
}

impl Factor {
    /// As `[rows, cols]`; one row if it is a vector.
    pub(super) fn matrix<'m>(&self, map: &'m Mapped) -> MatrixRef<'m> {
        MatrixRef { ty: self.ty, rows: self.rows, cols: self.cols, data: &map[self.bytes.clone()] }
    }

    /// The same numbers in rows of `cols`.
    pub(super) fn in_rows_of(self, cols: usize) -> Self {
        Self { rows: self.rows * self.cols / cols, cols, ..self }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Some of a vector's numbers.
    pub(super) fn part<'m>(&self, map: &'m Mapped, range: Range<usize>) -> MatrixRef<'m> {
        let size = self.bytes.len() / (self.rows * self.cols);
        let start = self.bytes.start;
        let data = &map[start + range.start * size..start + range.end * size];
        MatrixRef { ty: self.ty, rows: 1, cols: range.len(), data }
    }
}

impl<'a> Payload<'a> {
    pub(super) fn new(map: &'a Mapped, bytes: Range<usize>, spec: &'a ModelSpec) -> Result<Self> {
        Ok(Self {
            spec,
            tensors: Tensors::parse(&map[bytes])?,
            base: map.as_ptr() as usize,
            used: 0,
            sites: BTreeSet::new(),
        })
    }

    /// Whether a site has this tensor.
    pub(super) fn has(&self, site: Site, name: &str) -> bool {
        self.tensors.get(&format!("{site}.{name}")).is_some()
    }

    fn take(&mut self, site: Site, name: &str) -> Result<(Tensor<'a>, Range<usize>)> {
        let name = format!("{site}.{name}");
        let t = self.tensors.get(&name).ok_or_else(|| {
            Error::new(Code::Missing, format!("the module declares site {site} but has no tensor {name}"))
        })?;
        self.used += 1;
        self.sites.insert(site);
        let start = t.data.as_ptr() as usize - self.base;
        let bytes = start..start + t.data.len();
        Ok((t, bytes))
    }

    /// A site's tensor of floats of this shape, or of any length where the shape is empty.
    ///
    /// # Errors
    /// If it is not there, or of another shape or type.
    pub(super) fn factor(&mut self, site: Site, name: &str, shape: &[usize]) -> Result<Factor> {
        let (t, bytes) = self.take(site, name)?;
        let ty = match t.dtype {
            Dtype::F32 => QuantType::F32,
            Dtype::F16 => QuantType::F16,
            Dtype::BF16 => QuantType::BF16,
            other => return Err(Error::new(Code::Type, format!("dtype {other:?} of {site}.{name}"))),
        };
        if t.shape != shape && !(shape.is_empty() && t.shape.len() == 1) {
            return Err(Error::new(
                Code::Shape,
                format!("{site}.{name} has shape {:?} where {shape:?} is needed", t.shape),
            )
            .hint(
                "the module is of another base or another spec than it says; it is refused rather than applied in part",
            ));
        }
        let cols = t.shape.last().copied().unwrap_or(1);
        Ok(Factor { ty, rows: t.shape.iter().product::<usize>() / cols, cols, bytes })
    }

    /// A site's vector of integers.
    ///
    /// # Errors
    /// If it is not there, or no such vector.
    pub(super) fn integers(&mut self, site: Site, name: &str) -> Result<Range<usize>> {
        let (t, bytes) = self.take(site, name)?;
        if t.dtype != Dtype::I32 || t.shape.len() != 1 {
            return Err(Error::new(Code::Type, format!("{site}.{name} is {:?} {:?}, not I32 [n]", t.dtype, t.shape)));
        }
        Ok(bytes)
    }

    /// How many tensors have been taken.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Whether any tensor of a site has been taken.
    pub(super) fn used_at(&self, site: Site) -> bool {
        self.sites.contains(&site)
    }

    /// # Errors
    /// If a tensor was not taken.
    pub(super) fn finish(self, sites: usize) -> Result<()> {
        let held = self.tensors.names().filter(|n| !n.starts_with("__pad")).count();
        if held != self.used {
            return Err(Error::new(
                Code::Layout,
                format!("the payload holds {held} tensors, but its {sites} declared sites use {}", self.used),
            )
            .hint("a module is refused rather than applied in part"));
        }
        Ok(())
    }
}
