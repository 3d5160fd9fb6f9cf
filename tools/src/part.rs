//! Names for the sections of a stage: what the user types, and what tables show.

use crate::exit::Failure;
use crate::output::Output;
use crate::table::number;
use crate::view::{Damage, View};
use conpet_formats::bundle::SectionRecord;
use conpet_formats::bundle::manifest::Manifest;
use serde::Serialize;
use std::path::Path;

/// The name of each section: the id of the module or head it holds, `selector`, `stats`, or
/// `section N` for a kind this release does not know.
pub(crate) fn names(m: &Manifest, sections: &[SectionRecord]) -> Vec<String> {
    let mut names: Vec<String> = (0..sections.len()).map(|i| format!("section {i}")).collect();
    let modules = m.modules.iter().map(|x| (Some(x.section), x.id.as_str()));
    let heads = m.heads.iter().map(|x| (Some(x.section), x.id.as_str()));
    let selector = [(m.selector.section, "selector"), (m.selector.stats, "stats")];
    for (section, name) in modules.chain(heads).chain(selector) {
        // The manifest was validated, so each section it names exists.
        if let Some(slot) = section.and_then(|s| names.get_mut(s as usize)) {
            *slot = name.to_owned();
        }
    }
    names
}

/// The section meant by `wanted`: a name as above, a section number, or the name of a task, which
/// stands for its module, or for its head if it has no module.
pub(crate) fn find(m: &Manifest, sections: &[SectionRecord], wanted: &str) -> Result<u32, Failure> {
    let names = names(m, sections);
    if let Some(i) = names.iter().position(|n| n == wanted) {
        return Ok(i as u32);
    }
    if let Some(i) = wanted.parse::<u32>().ok().filter(|i| (*i as usize) < sections.len()) {
        return Ok(i);
    }
    if let Some(t) = m.tasks.iter().find(|t| t.name == wanted) {
        let module = t.module.map(|i| m.modules[i as usize].section);
        let head = t.head.map(|i| m.heads[i as usize].section);
        return module.or(head).ok_or_else(|| {
            Failure::usage(format!("task {wanted} has no module and no head"), "it is answered by the bare base")
        });
    }
    let hint = match names.len() {
        0 => "this stage has no sections".to_owned(),
        n => format!("this stage has {}, or a number from 0 to {}", names.join(", "), n - 1),
    };
    Err(Failure::usage(format!("no section, module, head or task is called {wanted}"), hint))
}

/// Where one section lies and what it is.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    file: String,
    stage: u64,
    damage: Vec<Damage>,
    part: String,
    section: u32,
    kind: &'static str,
    bytes: u64,
}

impl Part {
    /// Describes the section `index` of a stage.
    pub(crate) fn new(file: &Path, view: &View, index: u32) -> Self {
        let record = &view.sections()[index as usize];
        Self {
            file: file.display().to_string(),
            stage: view.stage(),
            damage: view.damage(),
            part: names(view.manifest(), view.sections()).swap_remove(index as usize),
            section: index,
            kind: record.kind.name(),
            bytes: record.len,
        }
    }

    /// Prints it as fields.
    pub(crate) fn fields(&self, out: &mut Output<'_>) {
        out.field("part", &format!("{}, a {} of stage {}", self.part, self.kind, self.stage));
        out.field("bytes", &number(self.bytes));
    }
}
