//! Quant blocks: the GGUF tensor types this project computes with.
//!
//! One file per type (`quant/q4_0.rs`, ...): the block as a zerocopy struct with a const size
//! assert, scalar dequantize, scalar dot, and quantize where we write that type. They are the
//! specification every fast kernel is checked against.

/// A tensor type that can be run. Anything else in a file is listed, and refused on use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QuantType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 32 numbers: f16 scale, 32 x i8.
    Q8_0,
    /// 32 numbers: f16 scale, 4-bit, offset 8.
    Q4_0,
    /// 32 numbers: f16 scale, f16 minimum, 4-bit.
    Q4_1,
    /// 32 numbers: f16 scale, 5-bit, offset 16.
    Q5_0,
    /// 32 numbers: f16 scale, f16 minimum, 5-bit.
    Q5_1,
    /// 256 numbers: 8 sub-blocks with 6-bit scales and minima, 4-bit.
    Q4K,
    /// 256 numbers: 8 sub-blocks with 6-bit scales and minima, 5-bit.
    Q5K,
    /// 256 numbers: 16 sub-blocks with 8-bit scales, 6-bit.
    Q6K,
}

impl QuantType {
    /// Every type, in the order of the enum.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// (ggml type id, name, numbers per block, bytes per block).
    const fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q5_0 => (6, "Q5_0", 32, 22),
            Self::Q5_1 => (7, "Q5_1", 32, 24),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q4K => (12, "Q4_K", 256, 144),
            Self::Q5K => (13, "Q5_K", 256, 176),
            Self::Q6K => (14, "Q6_K", 256, 210),
            Self::BF16 => (30, "BF16", 1, 2),
        }
    }

    /// The id used in GGUF files.
    pub const fn ggml_id(self) -> u32 {
        self.facts().0
    }
    /// The name llama.cpp prints.
    pub const fn name(self) -> &'static str {
        self.facts().1
    }
    /// Numbers per block.
    pub const fn block_len(self) -> usize {
        self.facts().2
    }
    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        self.facts().3
    }
    /// The type with this GGUF id, if it can be run.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.ggml_id() == id)
    }
    /// The type with this name (as in flags), if any.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }
    /// Bytes of a row of `n` numbers; `None` if `n` is not a whole number of blocks or overflows.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        if n % self.block_len() != 0 {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}
