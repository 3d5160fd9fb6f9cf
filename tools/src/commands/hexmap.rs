//! `hexmap` shows what lies at which byte of a bundle, damaged or not.

use crate::cli::FileArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::part;
use crate::table::{Table, number};
use conpet_formats::bundle::{Region, RegionKind, SectionRecord, Survey};
use conpet_formats::{Code, Error};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Hexmap {
    schema: &'static str,
    file: String,
    bytes: u64,
    /// How far the bundle reaches; `None` if no superblock says so.
    end: Option<u64>,
    regions: Vec<Row>,
    /// Bytes of each kind of region.
    totals: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Row {
    offset: u64,
    bytes: u64,
    what: &'static str,
    /// `A` or `B`; the id of a module or head, `selector`, `stats`, or `section N`.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The stage of a commit and its parts; the first stage that lists a section.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<u64>,
    /// For a section, whether the current stage lists it.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<bool>,
    damaged: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

pub(super) fn run(args: &FileArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let survey = Survey::look(&args.file)?;
    let regions = survey.regions();
    let slots = || {
        regions.iter().filter_map(|r| match &r.kind {
            RegionKind::Superblock(_, says) => Some(says.as_ref()),
            _ => None,
        })
    };
    // Neither superblock nor stage: another kind of file.
    let no_bundle = |e: &Error| e.code() == Code::Magic || e.code() == Code::Truncated;
    if survey.stages().is_empty() && slots().all(|s| s.is_err_and(no_bundle)) {
        let first = regions.into_iter().find_map(|r| match r.kind {
            RegionKind::Superblock(_, says) => says.err(),
            _ => None,
        });
        return Err(first.unwrap_or_else(|| Error::new(Code::Magic, "not a bundle")).in_file(&args.file).into());
    }
    let current = slots().filter_map(Result::ok).max_by_key(|s| s.sequence);
    let end = current.map(|s| s.end);
    // The stage in force; where no superblock says which, the last that is whole.
    let stage = match current {
        Some(slot) => survey.stages().iter().find(|s| s.offset == slot.commit),
        None => survey.stage(None),
    };
    let live: &[SectionRecord] = stage.map_or(&[], |s| &s.sections);
    let rows: Vec<Row> = regions.iter().map(|r| row(r, &survey, live, end)).collect();
    let mut totals = BTreeMap::new();
    rows.iter().for_each(|r| *totals.entry(r.what).or_insert(0) += r.bytes);
    let status = if rows.iter().any(|r| r.damaged) { ExitStatus::Damaged } else { ExitStatus::Success };
    let bytes = rows.iter().map(|r| r.bytes).sum();
    let file = args.file.display().to_string();
    let map = Hexmap { schema: "conpet.inspect.hexmap/1", file, bytes, end, regions: rows, totals };
    if out.json() {
        out.object(&map)?
    } else {
        print(&map, out)
    }
    Ok(status)
}

fn row(r: &Region, survey: &Survey, live: &[SectionRecord], end: Option<u64>) -> Row {
    let behind = end.is_some_and(|end| r.offset >= end);
    let number_of = |stage: usize| Some(survey.stages()[stage].stage);
    let mut row = Row {
        offset: r.offset,
        bytes: r.len,
        what: "",
        name: None,
        stage: None,
        current: None,
        damaged: false,
        note: String::new(),
    };
    match &r.kind {
        RegionKind::Superblock(name, says) => {
            (row.what, row.name) = ("superblock", Some(name.to_string()));
            row.damaged = says.is_err();
            row.note = match says {
                Ok(s) => format!("sequence {}, commit at {:#x}, end {:#x}", s.sequence, s.commit, s.end),
                Err(e) => e.brief(),
            };
        }
        RegionKind::Commit { stage } => (row.what, row.stage) = ("commit", number_of(*stage)),
        RegionKind::Manifest { stage } => (row.what, row.stage) = ("manifest", number_of(*stage)),
        RegionKind::Signature { stage } => (row.what, row.stage) = ("signature", number_of(*stage)),
        RegionKind::Section { stage, index, whole } => {
            let s = &survey.stages()[*stage];
            let record = &s.sections[*index as usize];
            row.what = record.kind.name();
            row.name = part::names(&s.manifest, &s.sections).get(*index as usize).cloned();
            (row.stage, row.current) = (number_of(*stage), Some(live.contains(record)));
            // Bytes that were never published are nobody's loss.
            row.damaged = !whole && !behind;
            row.note = match (whole, row.current) {
                (false, _) => "its digest does not match".into(),
                (true, Some(false)) => "not of the current stage".into(),
                _ => String::new(),
            };
        }
        RegionKind::BrokenCommit => (row.what, row.damaged) = ("broken commit", !behind),
        RegionKind::Padding => row.what = "padding",
        RegionKind::Zeros => (row.what, row.damaged) = ("zeros", !behind),
        RegionKind::Unreachable => (row.what, row.damaged) = ("unreachable", !behind),
    }
    if behind {
        let what = "behind the end: an unfinished append";
        row.note = if row.note.is_empty() { what.into() } else { format!("{what}; {}", row.note) };
    }
    row
}

fn print(map: &Hexmap, out: &mut Output<'_>) {
    let mut t = Table::new(&[">offset", ">bytes", "what", "part", ">stage", "note"]);
    for r in &map.regions {
        let stage = r.stage.map_or_else(|| "-".to_owned(), |s| s.to_string());
        let note = match (r.damaged, r.note.as_str()) {
            (true, "") => "damaged".to_owned(),
            (true, note) => format!("damaged: {note}"),
            (false, note) => note.to_owned(),
        };
        t.row([&format!("{:#x}", r.offset), &number(r.bytes), r.what, r.name.as_deref().unwrap_or("-"), &stage, &note]);
    }
    out.table("", &t);
    let mut t = Table::new(&["what", ">bytes"]);
    map.totals.iter().for_each(|(what, bytes)| t.row([what, &number(*bytes)]));
    out.table("totals", &t);
}
