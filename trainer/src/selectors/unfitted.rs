//! `task` and `uniform`: there is nothing to fit.

use super::fitting::Fit;
use crate::services::Services;
pub use crate::settings::NoSettings as Settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;

pub(super) fn fit(_: &mut Services<'_>, _: &Settings, draft: &mut Draft, new: &Fit<'_>) -> Result<bool> {
    draft.manifest.selector.kind = new.kind;
    Ok(true)
}
