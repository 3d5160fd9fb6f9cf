//! U04, U16: the power goes while a stage is put on trial, started, marked good, or given up. Two files
//! change there, the bundle and the state beside it, and a disk may hold any mixture of both that the
//! syncs allow.

use crate::disk::{Dice, Event, Folder, Seen, trace};
use crate::stage::{self, Protocol, Stage};
use crate::{figure, folder, record};
use conpet_formats::Code;
use conpet_formats::bundle::Bundle;
use conpet_formats::bundle::update::{State, TRIES, mark_good, start};
use std::path::{Path, PathBuf};

/// What is wrong with a mixture.
type Violation = String;

/// A bundle with a stage on trial that has `tries` starts left; the good stage, and the tried one.
pub(crate) fn on_trial(path: &Path, tries: u32, pages: usize) -> [Stage; 2] {
    Protocol::ApplyOnTrial.prepare(path, pages);
    let good = stage::stage_of(path).unwrap();
    Protocol::ApplyOnTrial.run(path, pages).unwrap();
    let mut state = State::load(path).0;
    state.trial.as_mut().unwrap().tries_left = tries;
    state.save(path).unwrap();
    [good, stage::stage_of(path).unwrap()]
}

/// A change of both files, as it was recorded.
struct Recorded {
    path: PathBuf,
    before: Folder,
    events: Vec<Event>,
}

fn recorded(path: &Path, run: impl FnOnce()) -> Recorded {
    let mut before = Folder::default();
    for name in [path.to_owned(), State::path(path)] {
        if let Ok(bytes) = std::fs::read(&name) {
            before = before.and(&name, bytes);
        }
    }
    let ((), events) = trace(None, run);
    Recorded { path: path.to_owned(), before, events }
}

/// Cuts the power after each event, and lets `check` look at every mixture. Returns how many there were.
fn cut(r: &Recorded, check: impl Fn(&Path) -> Result<(), Violation>) -> Result<usize, Violation> {
    let (work, mut seen, mut dice) = (folder(), Seen::default(), Dice(11));
    let image = work.path().join("b.cpb");
    let mut disk = r.before.clone();
    for moment in 0..=r.events.len() {
        if let Some(event) = moment.checked_sub(1).map(|i| &r.events[i]) {
            disk.apply(event);
        }
        // A name leads to the old file or the new, and that may hold anything on its way to it.
        let mut states = Vec::new();
        let name = State::path(&r.path);
        for file in [disk.safe(&name), disk.now(&name)] {
            match file {
                None => states.push(None),
                Some(file) => {
                    file.images(&mut dice, &mut |bytes| {
                        states.push(Some(bytes));
                        states.len() < 40
                    });
                }
            }
        }
        states.dedup();
        let limit = seen.len() + figure(60, 6000);
        let mut tries = 8 * figure(60, 6000);
        let mut bad = None;
        disk.now(&r.path).expect("the bundle keeps its name").images(&mut dice, &mut |bytes| {
            for state in &states {
                let mixture = [bytes.as_slice(), state.as_deref().unwrap_or(b"none")].concat();
                if bad.is_some() || !seen.is_new(&mixture) {
                    continue;
                }
                std::fs::write(&image, &bytes).unwrap();
                match state {
                    Some(text) => std::fs::write(State::path(&image), text).unwrap(),
                    None => drop(std::fs::remove_file(State::path(&image))),
                }
                bad = check(&image).err();
            }
            tries -= 1;
            bad.is_none() && tries > 0 && seen.len() < limit
        });
        if let Some(bad) = bad {
            return Err(format!("moment {moment}: {bad}"));
        }
    }
    Ok(seen.len())
}

/// The trial that the state beside a bundle names, if it is of the stage in force.
fn in_force(path: &Path) -> Result<(Stage, Option<u32>), Violation> {
    let bundle = Bundle::open(path).map_err(|e| format!("does not open: {e}"))?;
    let stage = stage::whole(&bundle).map_err(|e| format!("is not whole: {e}"))?;
    Ok((stage, State::load(path).0.in_force(&bundle).map(|t| t.tries_left)))
}

fn served(path: &Path) -> Result<u64, Violation> {
    start(path, None, None).map(|b| b.stage()).map_err(|e| format!("is not served: {e}"))
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<(), Violation> {
    if got == want { Ok(()) } else { Err(format!("{what}: {got:?}, not {want:?}")) }
}

/// The machine goes on: another stage is learned, and nothing is damaged.
fn goes_on(path: &Path) -> Result<(), Violation> {
    stage::append(path, 1).map_err(|e| format!("takes no append: {e}"))?;
    stage::assert_sound(path, "after the next append");
    Ok(())
}

/// A stage is never in force without its trial, and the update can be sent again.
fn put_on_trial(r: &Recorded, [good, tried]: &[Stage; 2]) -> Result<usize, Violation> {
    let kit = stage::beside(&r.path);
    cut(r, |image| {
        let (stage, trial) = in_force(image)?;
        equal("trial", trial, (stage == *tried).then_some(TRIES))?;
        if stage != *tried {
            equal("stage", &stage, good)?;
        }
        equal("served", served(image)?, stage.stage)?;
        stage::apply_delta(image, &kit, true).map_err(|e| format!("not again: {e}"))?;
        let (stage, trial) = in_force(image)?;
        equal("stage", &stage, tried)?;
        equal("on trial", trial.is_some(), true)?;
        goes_on(image)
    })
}

#[test]
fn u04_a_stage_is_in_force_with_its_trial_or_not_at_all() {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    Protocol::ApplyOnTrial.prepare(&path, figure(2, 12));
    let good = stage::stage_of(&path).unwrap();
    let r = recorded(&path, || Protocol::ApplyOnTrial.run(&path, 0).unwrap());
    let stages = [good, stage::stage_of(&path).unwrap()];
    let n = put_on_trial(&r, &stages).unwrap();
    record(&format!("apply --trial: {n} distinct images of bundle and state, 0 violations"));
    // A full run has met 8,048: this protocol has fewer images than an append.
    assert!(n >= figure(100, 8_000), "{n}");
    // The state goes before the superblock, whole and durable; without any of its syncs that is lost.
    let is_sync = |e: &Event| matches!(e, Event::Sync(f) if *f != path) || *e == Event::SyncDir;
    let syncs: Vec<usize> = (0..r.events.len()).filter(|i| is_sync(&r.events[*i])).collect();
    assert_eq!(syncs.len(), 2);
    for sync in syncs {
        let mut events = r.events.clone();
        events.remove(sync);
        let r = Recorded { path: path.clone(), before: r.before.clone(), events };
        assert!(put_on_trial(&r, &stages).is_err(), "without {:?} a trial should be lost", r.events[sync - 1]);
    }
}

#[test]
fn u16_a_start_cut_off_is_counted_or_not_and_the_trial_ends() {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    let [good, tried] = on_trial(&path, TRIES, 2);
    let r = recorded(&path, || drop(start(&path, None, None).unwrap()));
    let n = cut(&r, |image| {
        let (stage, trial) = in_force(image)?;
        equal("stage", &stage, &tried)?;
        let left = trial.ok_or("no trial")?;
        equal("counted once at most", [TRIES, TRIES - 1].contains(&left), true)?;
        for _ in 0..left {
            equal("served", served(image)?, tried.stage)?;
        }
        equal("served at last", served(image)?, good.stage)?;
        goes_on(image)
    });
    assert!(n.unwrap() >= 2);
}

#[test]
fn u16_what_was_given_up_is_never_served_again() {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    let [good, tried] = on_trial(&path, 0, 2);
    let r = recorded(&path, || drop(start(&path, None, None).unwrap()));
    let kit = stage::beside(&path);
    let n = cut(&r, |image| {
        let (stage, trial) = in_force(image)?;
        equal("trial", trial, (stage == tried).then_some(0))?;
        equal("served", served(image)?, good.stage)?;
        equal("stage", &stage::stage_of(image).unwrap(), &good)?;
        equal("failed", State::load(image).0.bad, vec![tried.digest.clone()])?;
        let again = stage::apply_delta(image, &kit, false).map_err(|e| e.code());
        equal("the same delta", again, Err(Code::Rollback))?;
        goes_on(image)
    });
    let n = n.unwrap();
    record(&format!("a trial given up: {n} distinct images of bundle and state, 0 violations"));
    assert!(n >= 100, "{n}");
}

#[test]
fn u06_a_stage_is_marked_good_or_still_on_trial() {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    let [_, tried] = on_trial(&path, 1, 2);
    let r = recorded(&path, || mark_good(&path, true).map(drop).unwrap());
    let n = cut(&r, |image| {
        let (stage, trial) = in_force(image)?;
        equal("stage", &stage, &tried)?;
        let floor = State::load(image).0.floor;
        equal("trial and floor", (trial, floor) == (Some(1), 0) || (trial, floor) == (None, tried.stage), true)?;
        mark_good(image, true).map_err(|e| format!("not again: {e}"))?;
        equal("served", served(image)?, tried.stage)?;
        goes_on(image)
    });
    assert!(n.unwrap() >= 2);
}
