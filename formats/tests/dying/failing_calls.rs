//! U07, U08: every system call of every protocol fails, once or from then on.

use crate::stage::{self, FIRST, Protocol};
use crate::{folder, trials};
use conpet_formats::bundle::Bundle;
use conpet_formats::bundle::update::{State, TRIES, start};
use conpet_formats::fs::{Op, watched, write_atomic};
use conpet_formats::{Code, Error, Result};
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// With this number of errno(3).
    Errno(i32),
    /// A write takes so many bytes only.
    Short(usize),
}

const FAULTS: [Fault; 6] = [
    Fault::Errno(28),  // ENOSPC
    Fault::Errno(122), // EDQUOT
    Fault::Errno(5),   // EIO
    Fault::Errno(4),   // EINTR
    Fault::Short(1000),
    Fault::Short(0),
];

/// What was seen of one run.
#[derive(Debug, Default)]
struct Heard {
    calls: usize,
    /// The call that failed first, in words.
    hit: Option<&'static str>,
    /// A superblock was written before that.
    published: bool,
    /// Syncs and writes of the same file after a sync had failed.
    after_failed_sync: usize,
}

fn name(op: Op<'_>, temporary: bool) -> &'static str {
    match op {
        Op::Stat => "stat",
        Op::Open => "open",
        Op::Create => "create",
        Op::Lock => "lock",
        Op::Map => "map",
        Op::Free => "statvfs",
        Op::Reserve => "fallocate",
        Op::Write(at, _) if (at as usize) < FIRST && !temporary => "write a superblock",
        Op::Write(..) => "write",
        Op::Sync => "sync",
        Op::Publish(_) => "rename",
        Op::Remove => "unlink",
        Op::SyncDir => "sync the folder",
    }
}

/// Runs `body` with its call number `n` failing, and all later ones if `on`.
fn with_fault<T>(n: usize, fault: Fault, on: bool, body: impl FnOnce() -> T) -> (T, Heard) {
    let heard = Rc::new(RefCell::new(Heard::default()));
    let h = heard.clone();
    let watch = move |op: Op<'_>, path: &Path| {
        let mut h = h.borrow_mut();
        h.calls += 1;
        let temporary = path.file_name().is_some_and(|f| f.to_string_lossy().starts_with(".conpet-tmp-"));
        let failed_sync = h.hit == Some("sync") && matches!(fault, Fault::Errno(_));
        if failed_sync && matches!(op, Op::Sync | Op::Write(..)) {
            h.after_failed_sync += 1;
        }
        if h.calls == n || (on && h.calls > n) {
            h.hit.get_or_insert(name(op, temporary));
            return match (fault, op) {
                (Fault::Errno(e), _) => Err(io::Error::from_raw_os_error(e)),
                (Fault::Short(most), Op::Write(..)) => Ok(most),
                (Fault::Short(_), _) => Ok(usize::MAX),
            };
        }
        h.published |= name(op, temporary) == "write a superblock";
        Ok(usize::MAX)
    };
    let out = watched(watch, body);
    let heard = std::mem::take(&mut *heard.borrow_mut());
    (out, heard)
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn u07_every_call_of_every_protocol_fails_and_the_stage_survives() {
    let mut cases = 0;
    for p in Protocol::ALL {
        for (fault, on) in FAULTS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
            for n in 1.. {
                let dir = folder();
                let path = dir.path().join("b.cpb");
                p.prepare(&path, 2);
                let old = (stage::stage_of(&path).ok(), State::load(&path).0);
                let before = std::fs::read(&path).ok();
                let (done, heard) = with_fault(n, fault, on, || p.run(&path, 2));
                let Some(hit) = heard.hit else { break };
                cases += 1;
                let context = format!("{p:?}, call {n} ({hit}) {fault:?}, from then on: {on}");
                check(p, &path, &context, done, &heard, fault, on, old, before);
            }
        }
    }
    crate::record(&format!("failing calls: {cases} cases"));
    assert!(cases >= 200, "{cases}");
}

fn check(
    p: Protocol,
    path: &Path,
    context: &str,
    done: Result<()>,
    heard: &Heard,
    fault: Fault,
    on: bool,
    (old, old_state): (Option<stage::Stage>, State),
    before: Option<Vec<u8>>,
) {
    assert_eq!(heard.after_failed_sync, 0, "{context}: went on after a failed sync");
    let (now, state) = (stage::stage_of(path), State::load(path).0);
    // The new content has its name already, and the error says so.
    let replaced = p == Protocol::Compact && heard.hit == Some("sync the folder");
    match &done {
        Ok(()) => {
            let borne = matches!(fault, Fault::Short(_)) || (fault == Fault::Errno(4) && !on);
            // Failing to remove what is not there any more is no failure.
            assert!(borne || heard.hit == Some("unlink"), "{context}: an error was swallowed");
            match p {
                Protocol::MarkGood => assert!(state.trial.is_none() && state.floor == 3, "{context}: {state:?}"),
                _ => assert_ne!(now.as_ref().ok(), old.as_ref(), "{context}"),
            }
        }
        Err(e) => {
            stage::assert_clear(e, path, context);
            let full = matches!(fault, Fault::Errno(28 | 122));
            let space = e.code() == Code::Space;
            assert_eq!(space, full, "{context}: {e}");
            match (&now, &old) {
                (Ok(now), Some(old)) => {
                    assert!(now == old || heard.published || replaced || heard.hit == Some("sync"), "{context}")
                }
                (Err(_), None) => assert!(!path.exists(), "{context}: half a file"),
                (Ok(_), None) => {
                    assert!(on && heard.hit == Some("sync the folder"), "{context}: the file should be gone")
                }
                (Err(e), Some(_)) => panic!("{context}: the stage is lost: {e}"),
            }
            // An error before the commit point leaves every old byte as it was.
            if let (Some(before), false) = (&before, heard.published || replaced) {
                let after = std::fs::read(path).unwrap();
                let same = after[..FIRST] == before[..FIRST] || heard.hit == Some("write a superblock");
                assert!(same, "{context}: the superblocks changed");
                assert!(after[FIRST..before.len()] == before[FIRST..], "{context}: old bytes changed");
            }
        }
    }
    if p == Protocol::ApplyOnTrial {
        // In force only if it can go back, and then with all its starts.
        let trial = state.trial.as_ref().filter(|t| now.as_ref().is_ok_and(|s| s.digest == t.commit));
        assert_eq!(trial.is_some(), now.as_ref().ok() != old.as_ref(), "{context}: {state:?}");
        assert!(trial.is_none_or(|t| t.tries_left == TRIES), "{context}: {state:?}");
    } else if p != Protocol::MarkGood {
        assert_eq!(state, old_state, "{context}");
    }
    if !on {
        let mut left = names(path.parent().unwrap());
        left.retain(|n| n.starts_with(".conpet-tmp-"));
        // One that cannot be removed stays until the next time.
        assert!(left.is_empty() || heard.hit == Some("unlink"), "{context}: left behind {left:?}");
    }
    // And the next one, with a whole machine, puts everything right.
    if !p.creates() || !path.exists() {
        p.run(path, 2).unwrap_or_else(|e| panic!("{context}: not again: {e}"));
    }
    stage::append(path, 1).unwrap_or_else(|e| panic!("{context}: no further append: {e}"));
    stage::assert_sound(path, context);
    if p == Protocol::Create {
        let _ = std::fs::remove_file(path);
        stage::create(path, 1).unwrap();
        assert_eq!(names(path.parent().unwrap()), ["b.cpb"], "{context}");
    }
}

/// A start of a stage on trial counts it or serves the good one, whatever fails; and one that ends a trial never
/// serves what was tried.
#[test]
fn u07_a_start_is_counted_or_the_good_stage_is_served() {
    let mut cases = 0;
    for tries in [TRIES, 0] {
        for (fault, on) in FAULTS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
            for n in 1.. {
                let dir = folder();
                let path = dir.path().join("b.cpb");
                let [good, tried] = trials::on_trial(&path, tries, 2);
                let (served, heard) = with_fault(n, fault, on, || start(&path, None, None));
                let Some(hit) = heard.hit else { break };
                cases += 1;
                let context = format!("{tries} tries, call {n} ({hit}) {fault:?}, from then on: {on}");
                assert_eq!(heard.after_failed_sync, 0, "{context}: went on after a failed sync");
                match served.map(|b| b.stage()) {
                    Ok(stage) if stage == tried.stage => {
                        let left = State::load(&path).0.trial.map(|t| t.tries_left);
                        assert!(left.is_some_and(|left| left + 1 == tries), "{context}: {left:?} are left");
                    }
                    Ok(stage) => assert_eq!(stage, good.stage, "{context}"),
                    Err(e) => stage::assert_clear(&e, &path, &context),
                }
                // The machine is whole again.
                let next = start(&path, None, None).unwrap().stage();
                assert_eq!(next, if tries > 0 { tried.stage } else { good.stage }, "{context}");
                stage::append(&path, 1).unwrap_or_else(|e| panic!("{context}: no further append: {e}"));
                stage::assert_sound(&path, &context);
            }
        }
    }
    crate::record(&format!("failing calls of starts on trial: {cases} cases"));
    assert!(cases >= 100, "{cases}");
}

#[test]
fn u07_a_replaced_file_survives_every_failing_call() {
    let put = |path: &Path, text: &str| {
        write_atomic(path, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", e)))
    };
    for (fault, on) in FAULTS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        for n in 1.. {
            let dir = folder();
            let path = dir.path().join("state");
            put(&path, "old").unwrap();
            let (done, heard) = with_fault(n, fault, on, || put(&path, "new"));
            let Some(hit) = heard.hit else { break };
            let context = format!("call {n} ({hit}) {fault:?}, from then on: {on}");
            let text = std::fs::read_to_string(&path).unwrap();
            match done {
                Ok(()) => assert_eq!(text, "new", "{context}"),
                Err(e) => {
                    stage::assert_clear(&e, &path, &context);
                    assert_eq!(text == "new", hit == "sync the folder", "{context}");
                }
            }
            assert!(on || names(dir.path()) == ["state"], "{context}: {:?}", names(dir.path()));
        }
    }
}

#[test]
fn u07_a_reader_names_the_call_that_failed() {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    stage::create(&path, 1).unwrap();
    for n in 1.. {
        let (opened, heard) = with_fault(n, Fault::Errno(5), false, || Bundle::open(&path));
        let Some(hit) = heard.hit else { break };
        let e = opened.expect_err(hit);
        stage::assert_clear(&e, &path, hit);
    }
}
