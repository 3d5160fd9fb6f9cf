//! `report`: joins the reports of several runs on one stream.

use crate::report;
use conpet_formats::Result;
use conpet_program::ExitStatus;
use conpet_program::print::print;
use std::path::PathBuf;

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The report.json files to join.
    #[arg(required = true)]
    pub reports: Vec<PathBuf>,
    /// Folder for the joined report.json and report.html.
    #[arg(short = 'o', long = "out")]
    pub out: PathBuf,
}

/// Writes the joined page.
///
/// # Errors
/// If a file is not a report, or the runs are on different tasks.
pub fn run(a: &Args) -> Result<ExitStatus> {
    let joined = report::joined(&a.reports)?;
    report::write_page(&joined, &a.out)?;
    print(joined.text().trim_start())?;
    Ok(ExitStatus::Success)
}
