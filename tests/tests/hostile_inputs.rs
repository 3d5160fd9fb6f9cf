//! Malformed input of any kind ends in a clear error: exit code not 0, no panic, a message that
//! names the file and the place and says what to do, and nothing lost.
//!
//! Each case prepares files in a folder of its own, runs a real program, and afterwards compares
//! every file with what it was.

#[path = "hostile_inputs/bases.rs"]
mod bases;
#[path = "hostile_inputs/bundles.rs"]
mod bundles;
#[path = "hostile_inputs/place.rs"]
mod place;
#[path = "hostile_inputs/runs.rs"]
mod runs;
#[path = "hostile_inputs/settings.rs"]
mod settings;
#[path = "hostile_inputs/streams.rs"]
mod streams;

use place::{Case, check_all};

/// The least number of cases this project promises to survive.
const PROMISED: usize = 100;

#[test]
fn every_hostile_input_ends_in_a_clear_error() {
    let cases: Vec<Case> =
        [bases::cases(), bundles::cases(), runs::cases(), streams::cases(), settings::cases()].concat();
    assert!(cases.len() >= PROMISED, "only {} cases", cases.len());
    check_all(&cases);
}
