//! Inside a crate arrows point one way: no two source files use each other in a circle, and the parts of a
//! crate depend on one another as `ARCHITECTURE.md` draws them.
//!
//! A part is a module with all that lies in its folder: `name.rs` and `name/`. At every level of the module tree,
//! parts may use each other one way only. No circle of files escapes this: at the level where the paths of its files
//! divide, it is a circle of parts.
//!
//! One arrow is free: from a file up to what its own parent (or the parent's parent) defines. A child is a part of its
//! parent, which declares it and cannot be read or compiled without it, and what siblings share, such as a trait or a
//! constant, is defined there. What a parent merely re-exports counts where it is defined.

#[path = "structure/circles.rs"]
mod circles;
#[path = "structure/layers.rs"]
mod layers;
#[path = "structure/source.rs"]
mod source;
#[path = "structure/tree.rs"]
mod tree;

use std::path::{Path, PathBuf};
use tree::Tree;

/// The crates whose parts are drawn.
const ENFORCED: &[&str] = &["formats", "tools", "runtime", "trainer"];
/// Small crates that are told in a sentence.
const SMALL: &[&str] = &["formats/fetch", "formats/program"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn load(name: &str) -> Tree {
    let tree = Tree::load(&root().join(name).join("src"));
    assert!(!tree.arrows().is_empty(), "the sources of {name} were not read");
    tree
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let report = |name: &&str| -> Vec<String> {
        circles::find(&load(name).arrows()).iter().map(|c| format!("{name}: {c}")).collect()
    };
    let wrong: Vec<String> = ENFORCED.iter().chain(SMALL).flat_map(report).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn parts_stand_on_one_another_as_drawn() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md can be read");
    let wrong: Vec<String> = ENFORCED
        .iter()
        .flat_map(|name| {
            let tree = load(name);
            let faults = layers::check(&layers::drawn(&text, name), &tree.parts(), &tree.arrows());
            faults.into_iter().map(move |f| format!("{name}: {f}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
