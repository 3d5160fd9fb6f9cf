//! What the three programs of ConPET share, so that they behave as one: how a program starts and ends
//! ([`run`], [`ExitStatus`]), reads its command line ([`parse`]), prints ([`mod@print`]), stops when a signal
//! asks for it ([`Stop`]), finds or fetches its base ([`BaseArgs`]), and reads rows of text ([`rows`], [`queue`]).
//!
//! A program is one line:
//!
//! ```no_run
//! # #[derive(clap::Parser)] struct Cli;
//! # use conpet_program::{ExitStatus, Stop};
//! # fn commands(_: Cli, _: &Stop) -> conpet_formats::Result<ExitStatus> { Ok(ExitStatus::Success) }
//! fn main() -> std::process::ExitCode {
//!     conpet_program::run(|stop| commands(conpet_program::parse(), stop))
//! }
//! ```

mod base;
mod command_line;
mod exit;
pub mod print;
pub mod queue;
pub mod rows;
mod signals;

pub use base::{BaseArgs, HubArgs};
pub use command_line::{explain, given, parse, spelled, without_token};
pub use exit::{EXIT_CODES, ExitStatus};
pub use signals::Stop;

use conpet_formats::Result;
use std::process::ExitCode;

/// The body of `main`: listens to signals, runs `program`, prints the error it ends with, and says
/// how it ended.
///
/// A program whose standard output was closed by its reader, as in `| head`, ends quietly and with success.
pub fn run(program: impl FnOnce(&'static Stop) -> Result<ExitStatus>) -> ExitCode {
    let stop = signals::listen();
    let status = program(stop).unwrap_or_else(|e| {
        if print::is_closed(&e) {
            return ExitStatus::Success;
        }
        print::complain(&e);
        ExitStatus::from(e.code())
    });
    status.code(stop.signal())
}
