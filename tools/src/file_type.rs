//! File types: which quant type each tensor of a base gets under one name, such as `Q4_K_M`.
//!
//! The rules are llama.cpp's (`src/llama-quant.cpp`) without an importance matrix, for dense models: a K-quant spends
//! more bits on the output head, on values and on the feed-forward layer's way back in the layers where it pays.

use conpet_formats::gguf::Gguf;
use conpet_formats::model_spec::{EMBEDDING, OUTPUT};
use conpet_formats::quant::QuantType;
use conpet_formats::{Error, Result};

/// A named mixture of quant types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileType {
    /// As llama.cpp calls it.
    pub(crate) name: &'static str,
    /// `general.file_type` in GGUF.
    pub(crate) id: u32,
    /// The type of most weights.
    pub(crate) ty: QuantType,
    mix: Mix,
}

/// How a mixture differs from its one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// Every weight has the type.
    Pure,
    /// The output head has Q6_K.
    Head,
    /// Q2_K.
    Two,
    Small,
    Medium,
    Large,
}

const fn pure(name: &'static str, id: u32, ty: QuantType) -> FileType {
    FileType { name, id, ty, mix: Mix::Pure }
}

const fn mixed(name: &'static str, id: u32, ty: QuantType, mix: Mix) -> FileType {
    FileType { name, id, ty, mix }
}

/// Every file type that is written.
const ALL: &[FileType] = &[
    pure("F32", 0, QuantType::F32),
    pure("F16", 1, QuantType::F16),
    pure("BF16", 32, QuantType::BF16),
    pure("Q8_0", 7, QuantType::Q8_0),
    mixed("Q4_0", 2, QuantType::Q4_0, Mix::Head),
    mixed("Q4_1", 3, QuantType::Q4_1, Mix::Head),
    mixed("Q5_0", 8, QuantType::Q5_0, Mix::Head),
    mixed("Q5_1", 9, QuantType::Q5_1, Mix::Head),
    mixed("Q2_K", 10, QuantType::Q2K, Mix::Two),
    mixed("Q3_K_S", 11, QuantType::Q3K, Mix::Small),
    mixed("Q3_K_M", 12, QuantType::Q3K, Mix::Medium),
    mixed("Q3_K_L", 13, QuantType::Q3K, Mix::Large),
    mixed("Q4_K_S", 14, QuantType::Q4K, Mix::Small),
    mixed("Q4_K_M", 15, QuantType::Q4K, Mix::Medium),
    mixed("Q5_K_S", 16, QuantType::Q5K, Mix::Small),
    mixed("Q5_K_M", 17, QuantType::Q5K, Mix::Medium),
    mixed("Q6_K", 18, QuantType::Q6K, Mix::Head),
];

/// What of a base decides over the types of its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// The embedding table is the output head too.
    pub(crate) tied: bool,
    pub(crate) layers: usize,
    /// Query heads for each key/value head.
    pub(crate) group: usize,
}

impl Shape {
    /// Of a base that is there already.
    pub(crate) fn of(gguf: &Gguf<'_>) -> Result<Self> {
        let arch = gguf.required_str("general.architecture")?;
        let layers = gguf.required_u32(&format!("{arch}.block_count"))? as usize;
        let heads = |key: &str| gguf.u32(&format!("{arch}.attention.{key}")).ok().flatten();
        let query = heads("head_count").unwrap_or(1);
        let group = query / heads("head_count_kv").unwrap_or(query).max(1);
        Ok(Self { tied: gguf.tensor(OUTPUT).is_none(), layers, group: group as usize })
    }
}

impl FileType {
    /// The file type of this name; `Q3_K`, `Q4_K` and `Q5_K` stand for their medium mixtures, as in llama.cpp.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let find = |n: &str| ALL.iter().find(|t| t.name.eq_ignore_ascii_case(n)).copied();
        find(name).or_else(|| find(&format!("{name}_M")))
    }

    /// All names, for people.
    pub(crate) fn names() -> String {
        ALL.iter().map(|t| t.name.to_lowercase()).collect::<Vec<_>>().join(", ")
    }

    /// The type of a tensor with sizes `ne`, fastest first; `None` if a tensor of this kind keeps the precision it has:
    /// vectors, norms, and a BERT's tables of positions and token types.
    pub(crate) fn tensor_type(self, name: &str, ne: &[u64], shape: &Shape) -> Option<QuantType> {
        let kept = ["position_embd.weight", "token_types.weight"].contains(&name) || name.contains("_norm.weight");
        if ne.len() < 2 || !name.ends_with("weight") || kept {
            return None;
        }
        let wanted = if self.mix == Mix::Pure { self.ty } else { self.mixed(name, ne[0], shape) };
        let whole = |ty: QuantType| ne[0].is_multiple_of(ty.block_len() as u64);
        // Rows that are not whole blocks take a type of smaller blocks, or none.
        let smaller = match wanted {
            QuantType::Q2K | QuantType::Q3K => QuantType::Q4_0,
            QuantType::Q4K => QuantType::Q5_0,
            QuantType::Q5K => QuantType::Q5_1,
            QuantType::Q6K => QuantType::Q8_0,
            other => other,
        };
        Some([wanted, smaller].into_iter().find(|ty| whole(*ty)).unwrap_or(QuantType::F16))
    }

    fn mixed(self, name: &str, cols: u64, shape: &Shape) -> QuantType {
        use QuantType::{Q2K, Q3K, Q4K, Q5K, Q6K, Q8_0};
        if name == OUTPUT || name == EMBEDDING && shape.tied {
            return if cols.is_multiple_of(self.ty.block_len() as u64) { Q6K } else { Q8_0 };
        }
        let layer = name.strip_prefix("blk.").and_then(|r| r.split('.').next()?.parse().ok()).unwrap_or(0usize);
        let (n, is) = (shape.layers, |part: &str| name.ends_with(&format!(".{part}.weight")));
        let outer = || layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
        match (self.ty, self.mix) {
            (Q2K, Mix::Two) if is("attn_v") || is("attn_qkv") => {
                if shape.group >= 4 {
                    Q4K
                } else {
                    Q3K
                }
            }
            (Q2K, Mix::Two) if is("ffn_down") || is("attn_output") => Q3K,
            (Q3K, Mix::Medium) if is("attn_v") || is("attn_qkv") => {
                if layer < 2 {
                    Q5K
                } else {
                    Q4K
                }
            }
            (Q3K, Mix::Medium) if is("ffn_down") => {
                if layer < n / 16 {
                    Q5K
                } else {
                    Q4K
                }
            }
            (Q3K, Mix::Medium) if is("attn_output") => Q4K,
            (Q3K, Mix::Large) if is("attn_v") || is("attn_qkv") || is("ffn_down") || is("attn_output") => Q5K,
            (Q4K, Mix::Small) if is("attn_v") || is("attn_qkv") => {
                if layer < 4 {
                    Q5K
                } else {
                    Q4K
                }
            }
            (Q4K, Mix::Small) if is("ffn_down") && layer < n / 8 => Q5K,
            (Q4K | Q5K, Mix::Medium) if (is("attn_v") || is("attn_qkv") || is("ffn_down")) && outer() => Q6K,
            (ty, _) => ty,
        }
    }
}

/// The file type of this name.
///
/// # Errors
/// Lists those there are.
pub(crate) fn named(name: &str) -> Result<FileType> {
    FileType::from_name(name).ok_or_else(|| {
        Error::new(conpet_formats::Code::Value, format!("there is no file type {name:?} that can be written"))
            .hint(format!("types are {}", FileType::names()))
    })
}
