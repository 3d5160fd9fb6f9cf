//! The weights of a checkpoint: one safetensors file, or the shards of an index, mapped and read row by row.

use super::config::object;
use conpet_formats::mmap::Mapped;
use conpet_formats::quant::{self, QuantType};
use conpet_formats::{Code, Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The weights of a folder, by name.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    files: Vec<(PathBuf, Mapped)>,
    tensors: BTreeMap<String, Stored>,
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    len: usize,
}

impl Checkpoint {
    /// Maps all files of a folder and reads their headers.
    ///
    /// # Errors
    /// If there are none, a shard is missing, a header is invalid, or a name occurs twice.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let index = folder.join("model.safetensors.index.json");
        let names: Vec<String> = match object(&index)? {
            Some(index_json) => {
                let map = index_json.get("weight_map").and_then(|m| m.as_object());
                let map = map.ok_or_else(|| Error::new(Code::Missing, "no weight_map").in_file(&index))?;
                let mut names: Vec<String> = map.values().filter_map(|v| v.as_str().map(String::from)).collect();
                names.sort();
                names.dedup();
                if let Some(odd) = names.iter().find(|n| n.contains(['/', '\\']) || *n == "..") {
                    return Err(Error::new(Code::Value, format!("{odd:?} is not the name of a file beside the index"))
                        .in_file(&index));
                }
                names
            }
            None => vec!["model.safetensors".to_owned()],
        };
        let mut out = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            let path = folder.join(&name);
            if !path.exists() {
                return Err(Error::new(Code::Missing, format!("the folder has no {name}"))
                    .in_file(folder)
                    .hint("weights are read from safetensors; download them all, or save the model in that format"));
            }
            out.add(path)?;
        }
        let listed = object(&index)?;
        let listed = listed.as_ref().and_then(|i| i.get("weight_map")?.as_object());
        if let Some(lost) = listed.and_then(|map| map.keys().find(|k| !out.tensors.contains_key(*k))) {
            return Err(Error::new(Code::Missing, format!("the index names tensor {lost}, which no shard has"))
                .in_file(&index)
                .hint("a shard is missing or of another model; download all files again"));
        }
        Ok(out)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let map = Mapped::open(&path)?;
        let wrong = |e| Error::new(Code::Layout, format!("not valid safetensors: {e}")).in_file(&path);
        let view = SafeTensors::deserialize(&map).map_err(wrong)?;
        for (name, t) in view.tensors() {
            let start = t.data().as_ptr() as usize - map.as_ptr() as usize;
            let stored = Stored {
                file: self.files.len(),
                dtype: t.dtype(),
                shape: t.shape().to_vec(),
                start,
                len: t.data().len(),
            };
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(Error::new(Code::Duplicate, "this tensor is in two files")
                    .in_file(&path)
                    .in_section(format!("tensor {}", name.escape_debug())));
            }
        }
        drop(view);
        self.files.push((path, map));
        Ok(())
    }

    /// All names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The file a tensor lies in.
    pub(crate) fn file_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(Path::new(""), |t| &self.files[t.file].0)
    }

    /// A tensor of `[rows, cols]`; a vector is one row.
    ///
    /// # Errors
    /// If it is missing, has another shape, or holds no floats.
    pub(crate) fn matrix(&self, name: &str, shape: &[usize]) -> Result<Rows<'_>> {
        let missing = || {
            Error::new(Code::Missing, format!("the checkpoint lacks the tensor {name}"))
                .in_file(self.files.first().map_or(Path::new(""), |f| &f.0))
                .hint("the checkpoint is incomplete, or of another kind than its config.json says")
        };
        let t = self.tensors.get(name).ok_or_else(missing)?;
        let bad = |code, what: String| {
            Err(Error::new(code, what).in_file(self.file_of(name)).in_section(format!("tensor {name}")))
        };
        if t.shape != shape {
            return bad(Code::Shape, format!("shape {:?} where config.json demands {shape:?}", t.shape));
        }
        let ty = match t.dtype {
            Dtype::F32 => QuantType::F32,
            Dtype::F16 => QuantType::F16,
            Dtype::BF16 => QuantType::BF16,
            other => return bad(Code::Type, format!("its values are {other:?}, only F32, F16 and BF16 are converted")),
        };
        let cols = shape.last().copied().unwrap_or(1);
        Ok(Rows { ty, cols, data: &self.files[t.file].1[t.start..t.start + t.len] })
    }

    /// Whether two tensors hold the same bytes.
    pub(crate) fn same(&self, a: &str, b: &str) -> bool {
        let bytes = |n: &str| self.tensors.get(n).map(|t| &self.files[t.file].1[t.start..t.start + t.len]);
        bytes(a) == bytes(b)
    }

    /// Fails if a file was cut short while it was read.
    pub(crate) fn check(&self) -> Result<()> {
        self.files.iter().try_for_each(|(path, map)| map.check().map_err(|e| e.in_file(path)))
    }
}

/// The rows of a tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    ty: QuantType,
    cols: usize,
    data: &'a [u8],
}

impl Rows<'_> {
    /// The same values as rows of another length.
    pub(crate) fn as_rows(self, cols: usize) -> Self {
        Self { cols, ..self }
    }

    /// One row, as F32.
    pub(crate) fn read(&self, row: usize, out: &mut [f32]) {
        let size = self.cols * self.ty.block_bytes();
        quant::dequantize(self.ty, &self.data[row * size..(row + 1) * size], out);
    }
}
