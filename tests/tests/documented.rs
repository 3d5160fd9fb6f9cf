//! Every method and every selector has its row in the docs and its name in the help. (PET kinds:
//! `pet_kinds.rs`.)

use conpet_tests::program;
use conpet_trainer::method::METHODS;
use conpet_trainer::selectors::SELECTORS;
use std::process::Command;

/// Whether a table of this page has `name` in backticks in the first column of some row.
fn has_row(page: &str, name: &str) -> bool {
    let quoted = format!("`{name}`");
    page.lines()
        .filter_map(|l| l.strip_prefix("| "))
        .filter_map(|l| l.split('|').next())
        .any(|first| first.contains(&quoted))
}

/// What `conpet-train stream --help` says of this flag: from its line to the next flag's.
fn help_of(flag: &str) -> String {
    let out = Command::new(program("conpet-train")).args(["stream", "--help"]).output().unwrap();
    let help = String::from_utf8(out.stdout).unwrap();
    let lines = help.lines().map(str::trim_start).skip_while(|l| l.split(' ').next() != Some(flag)).skip(1);
    lines.take_while(|l| !l.starts_with("--")).collect::<Vec<_>>().join(" ")
}

/// Whether `name` is one of the words of `text`.
fn says(text: &str, name: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '-').any(|w| w == name)
}

/// Fails if a method was added to the list only.
#[test]
fn every_method_has_its_row_and_is_in_the_help() {
    let help = help_of("--method");
    for method in METHODS {
        assert!(has_row(include_str!("../../docs/methods.md"), method.name), "docs/methods.md lacks {}", method.name);
        assert!(says(&help, method.name), "the help of --method lacks {}: {help}", method.name);
    }
}

/// Fails if a selector was added to the list only.
#[test]
fn every_selector_has_its_row_and_is_in_the_help() {
    let help = help_of("--selector");
    for name in SELECTORS.iter().map(|s| s.kind.name()) {
        assert!(has_row(include_str!("../../docs/selectors.md"), name), "docs/selectors.md lacks {name}");
        assert!(says(&help, name), "the help of --selector lacks {name}: {help}");
    }
}
