//! U01, U02: `kill -9` at any moment of a process that changes bundles.
//!
//! The process is this test program, started again with an order. It goes on changing the file
//! until it is killed, and says each stage once it has been told that it is in force; what was said
//! must be found afterwards.

use crate::disk::Dice;
use crate::stage::{self, Protocol, Stage};
use crate::{figure, folder, record, trials};
use conpet_formats::bundle::rollback;
use conpet_formats::bundle::update::{State, TRIES, Trial, start};
use conpet_formats::fs::write_atomic;
use conpet_formats::{Code, Error};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const ORDER: &str = "CONPET_KILL_ME";
const FILE: &str = "CONPET_KILL_ME_AT";

/// Not a test of its own: what the killed process does.
#[test]
fn the_process_that_is_killed() {
    let (Ok(order), Some(path)) = (std::env::var(ORDER), std::env::var_os(FILE).map(PathBuf::from)) else { return };
    let mut out = std::io::stdout();
    for i in 0u64.. {
        match order.as_str() {
            "append" => stage::append(&path, 4).unwrap(),
            "rollback" => rollback(&path, 1 + i % 2).unwrap(),
            "create" => {
                let _ = std::fs::remove_file(&path);
                stage::create(&path, 4).unwrap();
            }
            "replace" => {
                write_atomic(&path, |w| w.write_all(&vec![i as u8; 20_000]).map_err(|e| Error::io("write", e))).unwrap()
            }
            other => panic!("{other}"),
        }
        let said = if order == "replace" { i % 256 } else { stage::stage_of(&path).unwrap().stage };
        writeln!(out, "done {said}").unwrap();
    }
}

/// Not a test either: as above, for what updates do. Each round begins with the bundle as it was before.
#[test]
fn the_updater_that_is_killed() {
    let (Ok(order), Some(path)) = (std::env::var(ORDER), std::env::var_os(FILE).map(PathBuf::from)) else { return };
    let protocol = update(&order);
    let kit = stage::beside(&path);
    let before = std::fs::read(kit.join("before.cpb")).unwrap();
    let trial = |tries_left| {
        let trial = Trial { tries_left, ..State::load(&kit.join("tried.cpb")).0.trial.unwrap() };
        State { trial: Some(trial), ..State::default() }.save(&path).unwrap();
    };
    let mut out = std::io::stdout();
    for _ in 0.. {
        // While this bundle is in force, a trial that the state still names is none.
        write_atomic(&path, |w| w.write_all(&before).map_err(|e| Error::io("write", e))).unwrap();
        let _ = std::fs::remove_file(State::path(&path));
        match order.as_str() {
            "mark-good" => trial(1),
            "recover" => std::fs::remove_file(&path).unwrap(),
            "give up" => {
                trial(0);
                let tried = std::fs::read(kit.join("tried.cpb")).unwrap();
                write_atomic(&path, |w| w.write_all(&tried).map_err(|e| Error::io("write", e))).unwrap();
            }
            _ => {}
        }
        match protocol {
            Some(p) => p.run(&path, 4).unwrap(),
            None => drop(start(&path, None, None).unwrap()),
        }
        writeln!(out, "done 0").unwrap();
    }
}

/// What is run at that order; nothing but a start ends a trial.
fn update(order: &str) -> Option<Protocol> {
    match order {
        "apply" => Some(Protocol::Apply),
        "apply --trial" => Some(Protocol::ApplyOnTrial),
        "mark-good" => Some(Protocol::MarkGood),
        "compact" => Some(Protocol::Compact),
        "recover" => Some(Protocol::Recover),
        _ => None,
    }
}

/// Starts the process `who`, kills it after `pause`, and returns what it said last.
fn killed(who: &str, order: &str, path: &Path, pause: Duration) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("kills::{who}"), "--nocapture"])
        .env(ORDER, order)
        .env(FILE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // Counted from its first change, so that slow starts are not all that is hit.
    let first = lines.by_ref().find(|l| l.starts_with("done ")).expect("the process changes something");
    std::thread::sleep(pause);
    child.kill().unwrap();
    assert!(child.wait().unwrap().code().is_none(), "the process ended by itself");
    let last = lines.last().unwrap_or(first);
    last.strip_prefix("done ").and_then(|n| n.parse().ok())
}

fn go(order: &str, kills: usize) {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    let mut dice = Dice(9);
    let mut last: Option<Stage> = None;
    for round in 0..kills {
        // Begin anew before the file grows large.
        if order != "replace" && std::fs::metadata(&path).map_or(true, |m| m.len() > 4 << 20) {
            let _ = std::fs::remove_file(&path);
            stage::create(&path, 1).unwrap();
            stage::append(&path, 1).unwrap();
            last = None;
        }
        let said = killed("the_process_that_is_killed", order, &path, Duration::from_micros(dice.roll() % 3000));
        let context = format!("{order}, kill {round}");
        if order == "replace" {
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes.len() == 20_000 && bytes.iter().all(|b| *b == bytes[0]), "{context}: half a file");
            let (said, next) = (said.unwrap() as u8, said.unwrap() as u8 + 1);
            assert!([said, next].contains(&bytes[0]), "{context}: {said} was said, {} is there", bytes[0]);
            continue;
        }
        let found = match stage::stage_of(&path) {
            Ok(found) => found,
            // Killed between removing the last and creating the next.
            Err(e) if order == "create" && e.code() == Code::Io && !path.exists() => {
                stage::create(&path, 1).unwrap();
                continue;
            }
            Err(e) => panic!("{context}: {e}"),
        };
        if let ("append", Some(said)) = (order, said) {
            assert!((said..=said + 1).contains(&found.stage), "{context}: {said} was said, {found:?} found");
            assert!(last.is_none_or(|l| l.stage <= found.stage), "{context}: went back to {found:?}");
        }
        if order == "rollback" {
            assert!([1, 2].contains(&found.stage), "{context}: {found:?}");
        }
        if round % 16 == 0 {
            stage::append(&path, 1).unwrap_or_else(|e| panic!("{context}: {e}"));
            stage::assert_sound(&path, &context);
        }
        last = Some(stage::stage_of(&path).unwrap());
    }
    // Of all the temporary files that were left, the next create leaves none.
    if order == "create" || order == "replace" {
        let _ = std::fs::remove_file(&path);
        stage::create(&path, 1).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    record(&format!("{order}: {kills} kills, 0 violations"));
}

#[test]
fn u01_u02_killed_at_any_moment() {
    go("append", figure(24, 10_000));
    for order in ["rollback", "create", "replace"] {
        go(order, figure(8, 1000));
    }
}

/// What a killed updater leaves: one of the stages around the change, whole, with the trial that belongs to it.
fn go_updating(order: &str, kills: usize) {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    let kit = stage::beside(&path);
    let mut dice = Dice(10);
    match order {
        "mark-good" | "give up" => drop(trials::on_trial(&path, 1, 4)),
        _ => update(order).unwrap().prepare(&path, 4),
    }
    // The updater of `recover` begins with nothing; this stands for it.
    if order == "recover" {
        stage::create(&path, 1).unwrap();
    }
    if order == "give up" {
        std::fs::copy(&path, kit.join("tried.cpb")).unwrap();
        std::fs::copy(State::path(&path), State::path(&kit.join("tried.cpb"))).unwrap();
        rollback(&path, 2).unwrap();
    }
    if order == "mark-good" {
        std::fs::copy(State::path(&path), State::path(&kit.join("tried.cpb"))).unwrap();
    }
    std::fs::copy(&path, kit.join("before.cpb")).unwrap();
    let before = stage::stage_of(&path).unwrap();
    for round in 0..kills {
        killed("the_updater_that_is_killed", order, &path, Duration::from_micros(dice.roll() % 3000));
        let context = format!("{order}, kill {round}");
        let found = match stage::stage_of(&path) {
            Ok(found) => found,
            Err(e) if order == "recover" && e.code() == Code::Io && !path.exists() => continue,
            Err(e) => panic!("{context}: {e}"),
        };
        let trial = State::load(&path).0.trial.filter(|t| t.commit == found.digest);
        match order {
            "apply" => assert!(found == before || found.stage == 3, "{context}: {found:?}"),
            "apply --trial" => {
                let tries = (found != before).then_some(TRIES);
                assert_eq!(trial.map(|t| t.tries_left), tries, "{context}: {found:?}");
            }
            "mark-good" => assert_eq!(found, before, "{context}"),
            // From stage 2, under a number of its own; of a damaged file of two stages too.
            "compact" | "recover" => assert!(found == before || found.stage == 3, "{context}: {found:?}"),
            _ => {
                let served = start(&path, None, None).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(served.stage(), before.stage, "{context}");
            }
        }
        if round % 16 == 0 {
            stage::append(&path, 1).unwrap_or_else(|e| panic!("{context}: {e}"));
            stage::assert_sound(&path, &context);
        }
    }
    record(&format!("{order}: {kills} kills, 0 violations"));
}

#[test]
fn u02_an_update_killed_at_any_moment() {
    for order in ["apply", "apply --trial", "mark-good", "give up", "compact", "recover"] {
        go_updating(order, figure(8, 1000));
    }
}
