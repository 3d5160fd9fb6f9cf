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

impl Clock {
    /// The time in a format of C's `strftime`.
    pub(super) fn strftime(self, format: &str) -> Result<String, Error> {
        let now = match self {
            Self::Local => ZonedDateTime::now(),
            Self::Fixed(at) => at.to_zoned_datetime(TimeZone::UTC),
        };
        strtime::format(format, &now).map_err(|e| wrong(format!("strftime_now({format:?}): {e}")))
    }
}
