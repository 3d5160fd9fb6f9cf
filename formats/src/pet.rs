//! PET specs: what a module is, which tensors it holds, and the formula each kind computes.
//!
//! One kind so far, [`Lora`]; each further kind is a spec and a scalar reference in a file of
//! its own beside it, listed in [`PetKind`].

pub mod lora;

pub use lora::Lora;

use serde::{Deserialize, Serialize};

/// The kinds of PET module this release knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PetKind {
    /// Low-rank adaptation, Hu et al. 2021.
    Lora,
}

impl PetKind {
    /// The name used in manifests and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
        }
    }
}
