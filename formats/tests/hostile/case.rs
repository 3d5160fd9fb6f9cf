//! What a hostile file is, and what must come of reading it.

use super::forge;
use super::heap::{Cost, cost};
use conpet_formats::bundle::{Bundle, verify_bytes};
use conpet_formats::fingerprint::{CheckDepth, base_ref, check_base};
use conpet_formats::gguf::Gguf;
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::selector::{Scorer, SelectorKind};
use conpet_formats::tensors::Tensors;
use conpet_formats::{Code, Error, Result, template};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Which reader a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A base: parsed, and its model read.
    Gguf,
    /// A base that is given with [`forge::bundle`].
    Base,
    /// A safetensors payload.
    Module,
    /// A bundle: opened, all sections read, its history walked.
    Bundle,
    /// A bundle given to the full check.
    Whole,
    /// The payload of a selector for [`forge::TASKS`] tasks.
    Selector,
    /// A task's template.
    Template,
}

/// What must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Read, with nothing to say.
    Fine,
    /// Read, with a warning.
    Warned,
    /// Refused by this rule.
    Refused(Code),
}

/// One hostile file.
pub(crate) struct Case {
    /// The id of the threat model, e.g. `G03`.
    pub(crate) id: &'static str,
    pub(crate) what: String,
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
    /// The file's length, where it is much longer than `bytes` (a sparse file of zeros).
    pub(crate) sparse: Option<u64>,
    pub(crate) want: Want,
    /// What the error must name besides: the section, and the byte offset.
    pub(crate) section: Option<&'static str>,
    pub(crate) at: Option<u64>,
}

impl Case {
    pub(crate) fn new(kind: Kind, id: &'static str, what: impl Into<String>, bytes: Vec<u8>, want: Want) -> Self {
        Self { id, what: what.into(), kind, bytes, sparse: None, want, section: None, at: None }
    }

    pub(crate) fn at(self, offset: u64) -> Self {
        Self { at: Some(offset), ..self }
    }

    pub(crate) fn in_section(self, section: &'static str) -> Self {
        Self { section: Some(section), ..self }
    }

    pub(crate) fn sparse(self, len: u64) -> Self {
        Self { sparse: Some(len), ..self }
    }

    /// Reads the file and compares; the cost of reading, or what is not as it must be.
    pub(crate) fn check(&self) -> Result<Cost, String> {
        let input = match self.sparse {
            None => Mapped::from_vec(self.bytes.clone()),
            Some(len) => forge::sparse(&self.bytes, len),
        };
        let read = || cost(|| catch_unwind(AssertUnwindSafe(|| self.kind.read(input))));
        let (got, cost) = read();
        let told = |what: &str| Err(format!("{} {}: {what}", self.id, self.what));
        let got = match got {
            Err(_) => return told("it panicked"),
            Ok(Ok(true)) => Want::Warned,
            Ok(Ok(false)) => Want::Fine,
            Ok(Err(e)) => {
                if self.section.is_some_and(|s| e.section() != Some(s))
                    || self.at.is_some_and(|a| e.offset() != Some(a))
                {
                    return told(&format!("not at {:?} byte {:?}: {e}", self.section, self.at));
                }
                if e.to_string().chars().any(|c| c.is_control() && c != '\n') || e.message().len() > 1000 {
                    return told(&format!("the message carries what the file says: {:?}", e.message()));
                }
                if self.want != Want::Refused(e.code()) {
                    return told(&format!("want {:?}: {e}", self.want));
                }
                Want::Refused(e.code())
            }
        };
        if got == self.want { Ok(cost) } else { told(&format!("{got:?} where {:?} is due", self.want)) }
    }
}

impl Kind {
    /// The file's ending, for those who publish it.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Gguf | Self::Base => "gguf",
            Self::Module | Self::Selector => "safetensors",
            Self::Bundle | Self::Whole => "cpb",
            Self::Template => "txt",
        }
    }

    /// Reads a file as the programs do; true if there is something to warn about.
    pub(crate) fn read(self, file: Mapped) -> Result<bool> {
        match self {
            Self::Gguf => {
                let gguf = Gguf::parse(&file)?;
                // What no model is may be looked at; a model must make sense.
                if gguf.get("general.architecture").is_some() {
                    ModelSpec::from_gguf(&gguf)?;
                    base_ref(&gguf)?;
                }
                Ok(false)
            }
            Self::Base => {
                let want = &forge::bundle().manifest().base;
                check_base(want, &Gguf::parse(&file)?, CheckDepth::Quick).map(|()| false)
            }
            Self::Module => Tensors::parse(&file).map(|_| false),
            Self::Bundle => {
                let b = Bundle::from_bytes(file.to_vec(), Path::new("x.cpb"))?;
                (0..b.section_records().len()).try_for_each(|i| b.section(i as u32).map(drop))?;
                b.history()?;
                Ok(!b.warnings().is_empty())
            }
            Self::Whole => {
                let found = verify_bytes(file.to_vec(), Path::new("x.cpb"), true);
                match found.iter().find(|f| f.damage) {
                    None => Ok(!found.is_empty()),
                    Some(f) => Err(match Code::ALL.iter().find(|c| c.as_str() == f.code) {
                        Some(code) => Error::new(*code, f.text.clone()),
                        None => Error::new(Code::Layout, f.text.clone()),
                    }),
                }
            }
            Self::Selector => {
                let range = 0..file.len();
                Scorer::load(SelectorKind::Lda, file, range, forge::TASKS, forge::HIDDEN).map(|_| false)
            }
            Self::Template => {
                let text = std::str::from_utf8(&file).map_err(|_| Error::new(Code::Text, "not UTF-8"))?;
                template::check(text).map(|()| false)
            }
        }
    }
}
