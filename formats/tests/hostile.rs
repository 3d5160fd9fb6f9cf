//! The corpus of hostile files: every case of the threat model (`docs/security.md`), made here from good
//! files and named by its id, with the error it must give.
//!
//! `CONPET_CORPUS=DIR cargo test -p conpet-formats --test hostile` also writes the files to `DIR`, with
//! `expected.tsv` beside them, for whoever reads such files with other programs.

#![allow(clippy::print_stdout, reason = "figures, for those who run with --nocapture")]

mod hostile {
    pub(crate) mod caps;
    pub(crate) mod case;
    pub(crate) mod commit;
    pub(crate) mod flips;
    pub(crate) mod forge;
    pub(crate) mod fuzz;
    pub(crate) mod gguf;
    pub(crate) mod heap;
    pub(crate) mod manifest;
    pub(crate) mod module;
    pub(crate) mod selector;
    pub(crate) mod superblock;
    pub(crate) mod text;
}

// The fuzz targets' bodies, and how their inputs are read: one text for libFuzzer and for `cargo test`.
#[path = "../../tests/fuzz/src/recipe.rs"]
mod recipe;
#[path = "../../tests/fuzz/src/replay.rs"]
mod replay;
#[path = "../../tests/fuzz/src/targets.rs"]
mod targets;

use conpet_formats::Code;
use hostile::case::{Case, Want};
use hostile::forge;
use std::collections::BTreeSet;

/// Ids of each group of the threat model, from 1 to the number.
const GROUPS: [(&str, usize); 7] = [("B", 17), ("C", 17), ("M-J", 16), ("M", 20), ("G", 25), ("S", 5), ("X", 14)];

/// Ids that need more than one file for one reader, and the source that has a test named after each.
const ELSEWHERE: [(&str, &str); 7] = [
    ("M19", include_str!("../../runtime/tests/hostile.rs")),
    ("M20", include_str!("../../runtime/tests/hostile.rs")),
    ("G19", include_str!("../../runtime/tests/hostile.rs")),
    ("G21", include_str!("../../runtime/tests/hostile.rs")),
    ("X06", include_str!("hostile/text.rs")),
    ("X07", include_str!("../../tools/tests/commands/damage.rs")),
    ("X08", include_str!("hostile/text.rs")),
];

/// Codes that no single file earns, and a source that has a test which expects it.
const CODES_ELSEWHERE: [(Code, &str); 7] = [
    (Code::Io, include_str!("../src/bundle/tests/signature.rs")),
    (Code::Locked, include_str!("../src/bundle/tests.rs")),
    (Code::Space, include_str!("dying/full_disk.rs")),
    (Code::Changed, include_str!("../../runtime/tests/vanishing.rs")),
    (Code::Parent, include_str!("../src/bundle/update/tests.rs")),
    (Code::Signature, include_str!("../src/bundle/tests/signature.rs")),
    (Code::Rollback, include_str!("../src/bundle/update/tests.rs")),
];

/// Most heap that reading any of the files may take, in bytes.
const HEAP: usize = 64 << 20;

fn all() -> Vec<Case> {
    use hostile::{commit, gguf, manifest, module, selector, superblock, text};
    [
        superblock::cases(),
        commit::cases(),
        manifest::cases(),
        module::cases(),
        gguf::cases(),
        selector::cases(),
        text::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_hostile_file_ends_as_it_must() {
    let cases = all();
    let results: Vec<_> = cases.iter().map(Case::check).collect();
    let failed: Vec<&String> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} cases failed:\n{failed:#?}", failed.len(), cases.len());
    for (c, cost) in cases.iter().zip(results.iter().flatten()) {
        let bytes = c.bytes.len();
        assert!(cost.peak < HEAP, "{} {}: {cost:?} for {bytes} bytes", c.id, c.what);
        // No step without a byte that asks for it.
        assert!(cost.calls <= 2000 + bytes, "{} {}: {cost:?} for {bytes} bytes", c.id, c.what);
    }
    publish(&cases);
}

#[test]
fn every_id_is_there() {
    let mut found: BTreeSet<&str> = all().iter().map(|c| c.id).collect();
    for (id, source) in ELSEWHERE {
        assert!(source.contains(&format!("\nfn {}_", id.to_lowercase())), "{id} is not where it should be");
        found.insert(id);
    }
    let ids =
        GROUPS.iter().flat_map(|(group, n)| (1..=*n).map(move |i| format!("{group}{i:02}"))).chain(["G12b".into()]);
    let missing: Vec<String> = ids.filter(|id| !found.contains(id.as_str())).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn every_code_is_expected_somewhere() {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    for c in all() {
        if let Want::Refused(code) = c.want {
            found.insert(code.as_str());
        }
    }
    for (code, source) in CODES_ELSEWHERE {
        assert!(!found.contains(code.as_str()), "{code:?} has a file of its own");
        assert!(source.contains(&format!("Code::{code:?}")) || source.contains(code.as_str()), "no test of {code:?}");
        found.insert(code.as_str());
    }
    let missing: Vec<&Code> = Code::ALL.iter().filter(|c| !found.contains(c.as_str())).collect();
    assert!(missing.is_empty(), "nothing expects {missing:?}");
}

/// Writes the corpus where it is asked for.
fn publish(cases: &[Case]) {
    let Some(dir) = std::env::var_os("CONPET_CORPUS").map(std::path::PathBuf::from) else { return };
    std::fs::create_dir_all(&dir).unwrap();
    let mut table = String::from("file\tlength\texpected\tcase\n");
    for (i, c) in cases.iter().enumerate() {
        let name = format!("{}-{i:03}.{}", c.id, c.kind.extension());
        let file = std::fs::File::create(dir.join(&name)).unwrap();
        std::io::Write::write_all(&mut &file, &c.bytes).unwrap();
        let len = c.sparse.unwrap_or(c.bytes.len() as u64);
        file.set_len(len).unwrap();
        let want = match c.want {
            Want::Fine => "read",
            Want::Warned => "read with a warning",
            Want::Refused(code) => code.as_str(),
        };
        table += &format!("{name}\t{len}\t{want}\t{}\n", c.what);
    }
    std::fs::write(dir.join("expected.tsv"), table).unwrap();
}
