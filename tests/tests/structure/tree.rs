//! The modules of a crate, and which of them use which.

use super::source::{Names, Source};
use std::collections::BTreeMap;
use std::path::Path;

/// The modules of a crate by their paths; the crate's root has the empty path.
#[derive(Debug, Default)]
pub(crate) struct Tree(BTreeMap<Names, Source>);

/// One module uses what another defines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrow {
    pub(crate) from: Names,
    pub(crate) to: Names,
    /// The path that the file spells, e.g. `super::writer::Draft`.
    pub(crate) name: String,
}

/// What a path leads to.
enum Target {
    Module(Names),
    /// An item that this module defines, or takes from another crate.
    ItemOf(Names),
}

/// Most re-exports that are followed one after another; only a circle of re-exports is longer.
const HOPS: usize = 16;

impl Tree {
    /// Reads a crate from the folder of its `lib.rs`, following its `mod` declarations.
    ///
    /// # Panics
    /// If a file cannot be read.
    pub(crate) fn load(src: &Path) -> Self {
        Self::read(&|path| {
            let file = match path {
                [] => src.join("lib.rs"),
                names => src.join(names.join("/")).with_extension("rs"),
            };
            std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
        })
    }

    fn read(text: &dyn Fn(&[String]) -> String) -> Self {
        let mut out = BTreeMap::new();
        let mut open = vec![Names::new()];
        while let Some(path) = open.pop() {
            let source = Source::parse(&text(&path));
            open.extend(source.children.iter().map(|c| child(&path, c)));
            out.insert(path, source);
        }
        Self(out)
    }

    /// The parts of the crate: the modules that its root declares.
    pub(crate) fn parts(&self) -> Names {
        self.0.get(&Names::new()).map(|s| s.children.clone()).unwrap_or_default()
    }

    /// Which module uses which. A file's use of its own parents' items is left out, see the head of this test.
    pub(crate) fn arrows(&self) -> Vec<Arrow> {
        let mut out = Vec::new();
        for (from, source) in &self.0 {
            // `Draft::new` adds nothing to `use super::Draft`.
            let imported = |path: &&Names| {
                let import = source.imports.iter().find(|i| i.name == path[0]);
                let target = import.and_then(|i| self.resolve(from, &i.path, HOPS));
                matches!(target, Some(Target::ItemOf(_)))
            };
            let spelled = source.paths.iter().filter(|p| !imported(p));
            for path in source.imports.iter().map(|i| &i.path).chain(spelled) {
                let to = match self.resolve(from, path, HOPS) {
                    Some(Target::Module(to) | Target::ItemOf(to)) => to,
                    None => continue,
                };
                if !from.starts_with(&to) {
                    out.push(Arrow { from: from.clone(), to, name: path.join("::") });
                }
            }
        }
        out
    }

    /// Follows a path as it is written in `from`; `None` for one that leads out of the crate.
    fn resolve(&self, from: &Names, path: &[String], hops: usize) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.descend(Names::new(), rest, hops),
            "self" => self.descend(from.clone(), rest, hops),
            "super" => {
                let parent = from.split_last()?.1.to_vec();
                // The rest may begin with another `super`.
                match rest {
                    [] => Some(Target::Module(parent)),
                    _ if rest[0] == "super" => self.resolve(&parent, rest, hops),
                    _ => self.descend(parent, rest, hops),
                }
            }
            name => {
                let source = self.0.get(from)?;
                let known = source.children.iter().any(|c| c == name) || source.imports.iter().any(|i| i.name == name);
                // An import of the same name that begins with it, `use rand::rand`, names another crate.
                let itself = source.imports.iter().any(|i| i.name == name && i.path == path);
                (known && !itself).then(|| self.descend(from.clone(), path, hops)).flatten()
            }
        }
    }

    /// Follows the names from a module on, through children and re-exports.
    fn descend(&self, mut at: Names, names: &[String], hops: usize) -> Option<Target> {
        for name in names {
            let source = self.0.get(&at)?;
            if source.children.contains(name) {
                at.push(name.clone());
                continue;
            }
            let import = source.imports.iter().find(|i| i.name == *name);
            match import.filter(|_| hops > 0).and_then(|i| self.resolve(&at, &i.path, hops - 1)) {
                Some(Target::Module(to)) => at = to,
                Some(item) => return Some(item),
                None => return Some(Target::ItemOf(at)),
            }
        }
        Some(Target::Module(at))
    }
}

fn child(path: &[String], name: &str) -> Names {
    [path, &[name.to_owned()]].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The arrows of a made-up crate, given as `(module, text)`, as `from -> to`.
    pub(crate) fn made_up(files: &[(&str, &str)]) -> Vec<Arrow> {
        let text = |path: &[String]| {
            let name = path.join("::");
            let file = files.iter().find(|(n, _)| *n == name);
            file.unwrap_or_else(|| panic!("no file for {name:?}")).1.to_owned()
        };
        Tree::read(&text).arrows()
    }

    fn drawn(files: &[(&str, &str)]) -> Vec<String> {
        made_up(files).iter().map(|a| format!("{} -> {}", a.from.join("::"), a.to.join("::"))).collect()
    }

    #[test]
    fn paths_lead_to_the_files_that_define_them() {
        let files = [
            ("", "mod a; mod b; pub use b::deep::Thing;"),
            ("a", "use crate::Thing; use crate::b::{self, face}; fn f() { b::deep::g(); std::mem::drop(1) }"),
            ("b", "pub mod deep; pub fn face() {}"),
            ("b::deep", "use super::face; use super::super::a::f;"),
        ];
        let expected = [
            " -> b::deep",
            "a -> b::deep",
            "a -> b",
            "a -> b",
            "a -> b::deep",
            // `super::face` is the parent's own: no arrow.
            "b::deep -> a",
        ];
        assert_eq!(drawn(&files), expected);
    }

    #[test]
    fn a_name_taken_from_a_sibling_through_the_parent_is_the_siblings() {
        let files =
            [("", "mod x; mod y; use x::X;"), ("x", ""), ("y", "use super::X; use crate::x as z; fn f(_: z::Q) {}")];
        assert_eq!(drawn(&files), [" -> x", "y -> x", "y -> x", "y -> x"]);
    }

    #[test]
    fn re_exports_in_a_circle_end() {
        let files = [("", "mod x; mod y;"), ("x", "pub use crate::y::A;"), ("y", "pub use crate::x::A;")];
        assert_eq!(drawn(&files).len(), 2);
    }
}
