//! Finds the parts of a crate that use each other in a circle.

use super::tree::Arrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Parts of one module that can all be reached from one another.
#[derive(Debug)]
pub(crate) struct Circle {
    parts: BTreeSet<String>,
    /// The uses between them, as `from uses name`.
    ties: BTreeSet<String>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} use each other in a circle:", Vec::from_iter(self.parts.iter().map(String::as_str)).join(", "))?;
        self.ties.iter().try_for_each(|t| write!(f, "\n    {t}"))
    }
}

/// The circles among these arrows, at every level of the module tree.
pub(crate) fn find(arrows: &[Arrow]) -> Vec<Circle> {
    // Keyed by the module where the two paths divide: which of its parts uses which.
    let mut levels: BTreeMap<&[String], BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for (level, from, to) in arrows.iter().filter_map(between) {
        levels.entry(level).or_default().entry(from).or_default().insert(to);
    }
    let mut out = Vec::new();
    for (level, uses) in levels {
        let mut left: BTreeSet<&str> = uses.keys().copied().collect();
        while let Some(part) = left.pop_first() {
            let back = |other: &&str| reached(&uses, other).contains(part);
            let circle: BTreeSet<&str> = reached(&uses, part).into_iter().filter(back).collect();
            if circle.is_empty() {
                continue;
            }
            left.retain(|p| !circle.contains(p));
            let ties = arrows.iter().filter(|a| {
                between(a).is_some_and(|(l, from, to)| l == level && circle.contains(from) && circle.contains(to))
            });
            let full = |part: &&str| level.iter().map(String::as_str).chain([*part]).collect::<Vec<_>>().join("::");
            out.push(Circle {
                parts: circle.iter().map(full).collect(),
                ties: ties.map(|a| format!("{} uses {}", a.from.join("::"), a.name)).collect(),
            });
        }
    }
    out
}

/// Where the paths of an arrow's ends divide, and the parts on either side; `None` between a parent and its child.
fn between(a: &Arrow) -> Option<(&[String], &str, &str)> {
    let shared = a.from.iter().zip(&a.to).take_while(|(x, y)| x == y).count();
    Some((&a.from[..shared], a.from.get(shared)?, a.to.get(shared)?))
}

/// All parts that can be reached from one by following its uses.
fn reached<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>, part: &str) -> BTreeSet<&'a str> {
    let mut out = BTreeSet::new();
    let mut open: Vec<&str> = vec![part];
    while let Some(p) = open.pop() {
        for next in uses.get(p).into_iter().flatten() {
            if out.insert(*next) {
                open.push(next);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tree::tests::made_up;
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        find(&made_up(files)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_circle_of_three_files_is_found_with_the_names_that_tie_it() {
        let files = [
            ("", "mod a; mod b; mod c; mod d;"),
            ("a", "use crate::b::B;"),
            ("b", "fn f() { super::c::g(crate::d::D) }"),
            ("c", "use crate::{a::A as Other, d};"),
            ("d", ""),
        ];
        let text = "a, b, c use each other in a circle:\n    a uses crate::b::B\n    b uses super::c::g\n    c uses crate::a::A";
        assert_eq!(found(&files), [text]);
    }

    #[test]
    fn a_circle_through_a_re_export_is_found() {
        let files = [
            ("", "mod m;"),
            ("m", "mod reader; mod writer; pub use reader::Reader; pub use writer::Writer;"),
            ("m::reader", "use super::Writer;"),
            ("m::writer", "use super::Reader;"),
        ];
        assert_eq!(found(&files).len(), 1);
        assert!(found(&files)[0].starts_with("m::reader, m::writer use each other"), "{:?}", found(&files));
    }

    #[test]
    fn two_folders_may_not_use_files_of_each_other() {
        let files = [
            ("", "mod a; mod b;"),
            ("a", "mod one; mod two;"),
            ("a::one", "use crate::b::Face;"),
            ("a::two", ""),
            ("b", "mod deep;"),
            ("b::deep", "use crate::a::two::T;"),
        ];
        assert!(found(&files)[0].contains("b::deep uses crate::a::two::T"), "{:?}", found(&files));
    }

    #[test]
    fn a_parent_and_its_children_are_no_circle() {
        let files = [
            ("", "mod quant;"),
            ("quant", "mod q4; mod q8; pub trait Block {} fn f() { q4::read(); q8::read() }"),
            ("quant::q4", "use super::Block;"),
            ("quant::q8", "use super::{Block, q4};"),
        ];
        assert!(found(&files).is_empty(), "{:?}", found(&files));
    }
}
