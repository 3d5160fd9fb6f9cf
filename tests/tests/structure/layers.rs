//! The order of a crate's parts, as `ARCHITECTURE.md` draws it.
//!
//! A drawing is a fenced block that begins with three backticks and `layers NAME`. Each line names one or more parts,
//! with commas between them, and after two spaces says what they are. A part may use those on the lines below it.

use super::source::Names;
use super::tree::Arrow;

/// The lines of a crate's drawing, from the top.
pub(crate) fn drawn(text: &str, name: &str) -> Vec<Names> {
    let lines = text.lines().skip_while(|l| l.trim() != format!("```layers {name}")).skip(1);
    let parts = |l: &str| l.split("  ").next().unwrap_or_default().split(',').map(|p| p.trim().to_owned()).collect();
    lines.take_while(|l| l.trim() != "```").filter(|l| !l.is_empty()).map(parts).collect()
}

/// The differences from the drawing: parts that are missing from it or no longer exist, and arrows that point up.
pub(crate) fn check(drawing: &[Names], parts: &[String], arrows: &[Arrow]) -> Vec<String> {
    let line = |part: &String| drawing.iter().position(|l| l.contains(part));
    let mut out = Vec::new();
    for part in parts {
        match drawing.iter().flatten().filter(|d| *d == part).count() {
            1 => {}
            n => out.push(format!("{part} stands {n} times in the drawing of ARCHITECTURE.md, not once")),
        }
    }
    for gone in drawing.iter().flatten().filter(|d| !parts.contains(d)) {
        out.push(format!("ARCHITECTURE.md draws {gone:?}, which the crate does not have"));
    }
    for a in arrows {
        let (Some(from), Some(to)) = (a.from.first(), a.to.first()) else { continue };
        if from != to && line(from) >= line(to) {
            out.push(format!("{} uses {}, and {to} does not stand below {from}", a.from.join("::"), a.name));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tree::tests::made_up;
    use super::*;

    const TEXT: &str =
        "# A\n```layers other\nx\n```\n```layers this\ntop       what it is, and why\nleft, right  both\nground\n```\n";

    fn faults(top: &str, left: &str) -> Vec<String> {
        let names: Names = ["ground", "left", "right", "top"].map(String::from).to_vec();
        let files = [
            ("", "mod ground; mod left; mod right; mod top;"),
            ("ground", ""),
            ("left", left),
            ("right", ""),
            ("top", top),
        ];
        check(&drawn(TEXT, "this"), &names, &made_up(&files))
    }

    #[test]
    fn arrows_down_are_fine_and_others_are_named() {
        assert_eq!(drawn(TEXT, "this").len(), 3);
        assert!(faults("use crate::{ground::G, left::L};", "use crate::ground::G;").is_empty());
        assert_eq!(faults("", "use crate::top::T;"), ["left uses crate::top::T, and top does not stand below left"]);
        assert_eq!(faults("", "use crate::right::R;").len(), 1, "on one line, neither may use the other");
    }

    #[test]
    fn the_drawing_has_each_part_once_and_no_other() {
        let parts: Names = ["top", "left", "new"].map(String::from).to_vec();
        let faults = check(&drawn(TEXT, "this"), &parts, &[]);
        assert_eq!(faults.len(), 3, "new is missing, right and ground are gone: {faults:?}");
        assert_eq!(check(&drawn(TEXT, "none"), &parts, &[]).len(), 3);
    }
}
