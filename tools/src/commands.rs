//! The commands, one file each.

mod apply;
mod compact;
mod convert;
mod delta;
mod diff;
mod export;
mod extract;
mod gguf;
mod hexmap;
mod import;
mod log;
mod mark_good;
mod quantize;
mod recover;
mod rollback;
mod show;
mod sign;
mod status;
mod tasks;
mod tensors;
mod verify;

use crate::cli::Command;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;

pub(crate) fn run(command: &Command, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    match command {
        Command::Show(a) => show::run(a, out),
        Command::Tasks(a) => tasks::run(a, out),
        Command::Log(a) => log::run(a, out),
        Command::Diff(a) => diff::run(a, out),
        Command::Verify(a) => verify::run(a, out),
        Command::Tensors(a) => tensors::run(a, out),
        Command::Extract(a) => extract::run(a, out),
        Command::Gguf(a) => gguf::run(a, out),
        Command::Hexmap(a) => hexmap::run(a, out),
        Command::Rollback(a) => rollback::run(a, out),
        Command::Delta(a) => delta::run(a, out),
        Command::Apply(a) => apply::run(a, out),
        Command::MarkGood(a) => mark_good::run(a, out),
        Command::Compact(a) => compact::run(a, out),
        Command::Recover(a) => recover::run(a, out),
        Command::SigningText(a) => sign::text(a, out),
        Command::Sign(a) => sign::run(a, out),
        Command::Status(a) => status::run(a, out),
        Command::Import(a) => import::run(a, out),
        Command::Export(a) => export::run(a, out),
        Command::Convert(a) => convert::run(a, out),
        Command::Quantize(a) => quantize::run(a, out),
    }
}

/// A count with its noun: `1 task`, `2 tasks`.
fn count(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", crate::table::number(n as u64), if n == 1 { "" } else { "s" })
}

/// The first 16 digits of a digest: enough to compare by eye.
fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}
