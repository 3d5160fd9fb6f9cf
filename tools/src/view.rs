//! One stage of a bundle for reading, from a whole file or from what is left of a damaged one.

use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use conpet_formats::bundle::manifest::Manifest;
use conpet_formats::bundle::{Bundle, FoundStage, SectionRecord, StageInfo, Survey};
use conpet_formats::{Code, Error};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Something wrong with the file, as JSON shows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Damage {
    /// The rule, e.g. `E_DIGEST`.
    pub(crate) code: &'static str,
    /// What and where.
    pub(crate) text: String,
}

impl From<&Error> for Damage {
    fn from(e: &Error) -> Self {
        Self { code: e.code().as_str(), text: e.brief() }
    }
}

/// A bundle opened for reading.
#[derive(Debug)]
pub(crate) enum View {
    /// As a runtime would open it.
    Whole(Box<Bundle>),
    /// The current stage cannot be opened; these stages were found.
    Salvaged { survey: Survey, stage: usize, reason: Damage },
}

impl View {
    /// Opens a stage, by default the current one; of a damaged file, the newest that is whole, with a warning.
    pub(crate) fn open(path: &Path, stage: Option<u64>, out: &mut Output<'_>) -> Result<Self, Failure> {
        let error = match Bundle::open(path) {
            Ok(now) => {
                let view = Self::Whole(Box::new(match stage.filter(|s| *s != now.stage()) {
                    None => now,
                    Some(s) => older(&now, s)?,
                }));
                view.bundle_warnings().iter().for_each(|w| out.warn(&format!("{}: {w}", path.display())));
                return Ok(view);
            }
            Err(e) => e,
        };
        // Only damage is worth digging into; a missing file or a newer format is not. Wrong magic
        // bytes are damage if there are stages behind them.
        if error.code() != Code::Magic && ExitStatus::from(error.code()) != ExitStatus::Damaged {
            return Err(error.into());
        }
        let Ok(survey) = Survey::open(path) else { return Err(error.into()) };
        let Some(found) = survey.stage(stage) else {
            let known: Vec<_> = survey.stages().iter().map(|s| s.stage.to_string()).collect();
            return Err(Failure {
                status: ExitStatus::Damaged,
                hint: format!("whole stages that were found: {}; choose one with --stage", known.join(", ")),
                ..error.into()
            });
        };
        let stage = survey.stages().iter().position(|s| std::ptr::eq(s, found)).unwrap_or(0);
        out.warn(&format!(
            "{}; showing stage {}, which is whole; restore the file from a copy before running it",
            error.brief(),
            found.stage
        ));
        Ok(Self::Salvaged { stage, reason: Damage::from(&error), survey })
    }

    fn bundle_warnings(&self) -> &[String] {
        match self {
            Self::Whole(b) => b.warnings(),
            Self::Salvaged { .. } => &[],
        }
    }

    fn found(survey: &Survey, stage: usize) -> &FoundStage {
        &survey.stages()[stage]
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        match self {
            Self::Whole(b) => b.manifest(),
            Self::Salvaged { survey, stage, .. } => &Self::found(survey, *stage).manifest,
        }
    }

    pub(crate) fn stage(&self) -> u64 {
        self.manifest().stage
    }

    pub(crate) fn digest(&self) -> String {
        match self {
            Self::Whole(b) => b.digest(),
            Self::Salvaged { survey, stage, .. } => Self::found(survey, *stage).digest.clone(),
        }
    }

    /// True if it carries a signature, trusted or not.
    pub(crate) fn signed(&self) -> bool {
        match self {
            Self::Whole(b) => b.signature().is_some(),
            Self::Salvaged { survey, stage, .. } => Self::found(survey, *stage).signed,
        }
    }

    pub(crate) fn sections(&self) -> &[SectionRecord] {
        match self {
            Self::Whole(b) => b.section_records(),
            Self::Salvaged { survey, stage, .. } => &Self::found(survey, *stage).sections,
        }
    }

    /// A section's bytes, their digest checked.
    pub(crate) fn section(&self, index: u32) -> conpet_formats::Result<&[u8]> {
        match self {
            Self::Whole(b) => b.section(index),
            Self::Salvaged { survey, stage, .. } => survey.section(Self::found(survey, *stage), index),
        }
    }

    /// Why the current stage cannot be opened; empty if it can.
    pub(crate) fn damage(&self) -> Vec<Damage> {
        match self {
            Self::Whole(_) => Vec::new(),
            Self::Salvaged { reason, .. } => vec![reason.clone()],
        }
    }

    /// The exit status of a command that has read this.
    pub(crate) fn status(&self) -> ExitStatus {
        match self {
            Self::Whole(_) => ExitStatus::Success,
            Self::Salvaged { .. } => ExitStatus::Damaged,
        }
    }

    /// The stages up to this one, oldest first; of a damaged file, those that were found.
    pub(crate) fn history(&self) -> conpet_formats::Result<Vec<StageInfo>> {
        match self {
            Self::Whole(b) => b.history(),
            Self::Salvaged { survey, .. } => {
                let at: BTreeMap<u64, u64> = survey.stages().iter().map(|s| (s.offset, s.stage)).collect();
                Ok(survey.stages().iter().map(|s| stage_info(s, at.get(&s.parent_offset).copied())).collect())
            }
        }
    }
}

fn stage_info(s: &FoundStage, parent: Option<u64>) -> StageInfo {
    StageInfo {
        stage: s.stage,
        parent: parent.unwrap_or(0),
        offset: s.offset,
        digest: s.digest.clone(),
        tasks: s.manifest.tasks.iter().map(|t| t.name.clone()).collect(),
        section_bytes: s.sections.iter().map(|r| r.len).sum(),
        signed: s.signed,
    }
}

/// An older stage; asking for one that is not there is the user's mistake, not damage.
pub(crate) fn older(now: &Bundle, stage: u64) -> Result<Bundle, Failure> {
    Bundle::open_stage(now.path(), stage).map_err(|e| {
        let mistaken = e.code() == Code::Missing;
        let failure = Failure::from(e);
        if mistaken { Failure { status: ExitStatus::Usage, ..failure } } else { failure }
    })
}
