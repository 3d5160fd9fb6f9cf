//! What ends a command before it is done.

use conpet_formats::{Code, Error};
pub(crate) use conpet_program::ExitStatus;

/// Why a command could not go on: printed as `error: ...` and `hint: ...`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: ExitStatus,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Failure {
    /// Something the caller can put right by asking differently.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: ExitStatus::Usage, message: message.into(), hint: hint.into() }
    }
}

/// A file that must not exist does: the command line is wrong, not the file.
pub(crate) fn creating(e: Error) -> Failure {
    let taken = e.code() == Code::Duplicate;
    let failure = Failure::from(e);
    if taken { Failure { status: ExitStatus::Usage, ..failure } } else { failure }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self { status: ExitStatus::from(e.code()), message: e.brief(), hint: e.remedy().to_owned() }
    }
}
