//! `diff` shows what two stages share, and proves it: a section is unchanged if both stages record the same
//! digest for it, and its bytes still hash to that digest.

use super::{count, short};
use crate::cli::DiffArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::part;
use crate::table::{Table, number};
use crate::view::{Damage, View};
use conpet_formats::bundle::manifest::{HeadEntry, Manifest, ModuleEntry, SelectorEntry};
use serde::Serialize;

#[derive(Serialize)]
struct Diff {
    schema: &'static str,
    file: String,
    from: u64,
    to: u64,
    damage: Vec<Damage>,
    parts: Vec<Part>,
    new_tasks: Vec<String>,
    lost_tasks: Vec<String>,
    /// Fields of the manifest that differ otherwise.
    changed: Vec<String>,
}

#[derive(Serialize)]
struct Part {
    part: String,
    verdict: Verdict,
    bytes: u64,
    from: Option<String>,
    to: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Unchanged,
    Changed,
    Added,
    Removed,
    Damaged,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Changed => "changed",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Damaged => "damaged",
        }
    }
}

pub(super) fn run(args: &DiffArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let (a, b) = (View::open(&args.file, Some(args.from), out)?, View::open(&args.file, Some(args.to), out)?);
    let mut damage = Vec::new();
    let parts = compare(&a, &b, &mut damage);
    damage.iter().for_each(|d| out.warn(&d.text));
    damage.extend(a.damage());
    let names = |m: &Manifest| m.tasks.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    let (before, after) = (names(a.manifest()), names(b.manifest()));
    let diff = Diff {
        schema: "conpet.inspect.diff/1",
        file: args.file.display().to_string(),
        from: args.from,
        to: args.to,
        parts,
        new_tasks: after.iter().filter(|t| !before.contains(t)).cloned().collect(),
        lost_tasks: before.into_iter().filter(|t| !after.contains(t)).collect(),
        changed: changed(a.manifest(), b.manifest()),
        damage,
    };
    if out.json() {
        out.object(&diff)?;
    } else {
        print(&diff, out);
    }
    Ok(if diff.damage.is_empty() { ExitStatus::Success } else { ExitStatus::Damaged })
}

fn compare(a: &View, b: &View, damage: &mut Vec<Damage>) -> Vec<Part> {
    let (old, new) = (part::names(a.manifest(), a.sections()), part::names(b.manifest(), b.sections()));
    let mut parts = Vec::new();
    let mut check = |view: &View, index: usize, verdict: Verdict| match view.section(index as u32) {
        Ok(_) => verdict,
        Err(e) => {
            damage.push(Damage::from(&e));
            Verdict::Damaged
        }
    };
    for (i, name) in old.iter().enumerate() {
        let r = &a.sections()[i];
        let j = new.iter().position(|n| n == name);
        let (verdict, to) = match j.map(|j| (j, &b.sections()[j])) {
            None => (check(a, i, Verdict::Removed), None),
            Some((j, s)) if s.hash == r.hash && s.len == r.len => (check(b, j, Verdict::Unchanged), Some(s.hex())),
            Some((j, s)) => {
                let verdict = check(a, i, Verdict::Changed);
                (check(b, j, verdict), Some(s.hex()))
            }
        };
        parts.push(Part { part: name.clone(), verdict, bytes: r.len, from: Some(r.hex()), to });
    }
    for (j, name) in new.iter().enumerate().filter(|(_, n)| !old.contains(n)) {
        let s = &b.sections()[j];
        let verdict = check(b, j, Verdict::Added);
        parts.push(Part { part: name.clone(), verdict, bytes: s.len, from: None, to: Some(s.hex()) });
    }
    parts
}

/// Manifest fields that differ, apart from additions and from the numbers of sections, which
/// may move when a stage drops a section.
fn changed(a: &Manifest, b: &Manifest) -> Vec<String> {
    let mut out = Vec::new();
    let mut note = |differs: bool, what: String| {
        if differs {
            out.push(what);
        }
    };
    note(a.base != b.base, "base".into());
    note(a.method != b.method, format!("method: {} -> {}", a.method, b.method));
    note(a.trunk != b.trunk, format!("trunk: {} -> {}", a.trunk, b.trunk));
    note(a.ext != b.ext, "ext".into());
    let unplaced = |s: &SelectorEntry| SelectorEntry { section: None, stats: None, ..s.clone() };
    note(unplaced(&a.selector) != unplaced(&b.selector), "selector".into());
    for (x, y) in a.modules.iter().zip(&b.modules) {
        note(*x != ModuleEntry { section: x.section, ..y.clone() }, format!("module {}", x.id));
    }
    for (x, y) in a.heads.iter().zip(&b.heads) {
        note(*x != HeadEntry { section: x.section, ..y.clone() }, format!("head {}", x.id));
    }
    for x in &a.tasks {
        let y = b.tasks.iter().find(|y| y.name == x.name);
        note(y.is_some_and(|y| y != x), format!("task {}", x.name));
    }
    out
}

fn print(d: &Diff, out: &mut Output<'_>) {
    let of = |v: Verdict| d.parts.iter().filter(move |p| p.verdict == v);
    let bytes: u64 = of(Verdict::Unchanged).map(|p| p.bytes).sum();
    out.field("stages", &format!("{} -> {}", d.from, d.to));
    let same = count(of(Verdict::Unchanged).count(), "section");
    out.field("unchanged", &format!("{same}, {} bytes, every digest recomputed", number(bytes)));
    for (name, list) in [("new tasks", &d.new_tasks), ("lost tasks", &d.lost_tasks), ("changed", &d.changed)] {
        if !list.is_empty() {
            out.field(name, &list.join(", "));
        }
    }
    if !d.parts.is_empty() {
        let mut t = Table::new(&["part", "verdict", ">bytes", "from", "to"]);
        for p in &d.parts {
            let digest = |d: &Option<String>| d.as_deref().map_or("-".to_owned(), |d| short(d).to_owned());
            t.row([&p.part, p.verdict.name(), &number(p.bytes), &digest(&p.from), &digest(&p.to)]);
        }
        out.table("", &t);
    }
}
