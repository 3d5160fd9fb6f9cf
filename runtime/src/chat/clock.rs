//! `strftime_now`.

use super::python::wrong;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use minijinja::Error;

/// The time that templates are told.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Clock {
    /// This machine's, in its time zone.
    #[default]
    Local,
    /// Always the same, in UTC.
    Fixed(Timestamp),
}

/// Conversions whose meaning is the same everywhere.
const KNOWN: &str = "aAbBCdDeFGhHIjmMnpRStTuUVwWyYzZ";

impl Clock {
    /// The time now.
    pub(super) fn now(self) -> ZonedDateTime {
        match self {
            Self::Local => ZonedDateTime::now(),
            Self::Fixed(at) => at.to_zoned_datetime(TimeZone::UTC),
        }
    }
}

/// A time in a format of C's `strftime`.
///
/// # Errors
/// If the format has a conversion that C does not have, or that depends on the language.
pub(super) fn strftime(format: &str, now: &ZonedDateTime) -> Result<String, Error> {
    let mut rest = format.split('%').skip(1);
    while let Some(conversion) = rest.next() {
        let letter = conversion.trim_start_matches('-').chars().next();
        match letter {
            None if conversion.is_empty() && rest.next().is_some() => {}
            Some(c) if KNOWN.contains(c) => {}
            _ => return Err(wrong(format!("strftime_now({format:?}): %{conversion} is not supported"))),
        }
    }
    strtime::format(format, now).map_err(|e| wrong(format!("strftime_now({format:?}): {e}")))
}
