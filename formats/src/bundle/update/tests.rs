use super::*;
use crate::bundle::tests::{base, two_stages, with_task};
use crate::bundle::{Bundle, Draft, FIRST, PAGE, rollback, verify};
use crate::{Code, fs};
use std::path::{Path, PathBuf};

/// `b.cpb` at stage 2, `new.cpb` the same file at stage `stages`, and `d` the delta between them.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(stages: u64) -> Self {
        let p = Self { dir: tempfile::tempdir().unwrap() };
        two_stages(&p.at("b.cpb"));
        p.copy("b.cpb", "new.cpb");
        (2..stages).for_each(|i| p.grow("new.cpb", &format!("task {i}")));
        write_delta(&p.at("b.cpb"), &p.at("new.cpb"), &p.at("d")).unwrap();
        p
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.at(name)).unwrap()
    }
    fn copy(&self, from: &str, to: &str) {
        std::fs::copy(self.at(from), self.at(to)).unwrap();
    }
    fn grow(&self, name: &str, task: &str) {
        let path = self.at(name);
        with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), task).append(&path).unwrap();
    }
    fn delta(&self, old: &str, new: &str, to: &str) -> Result<Delta, Code> {
        write_delta(&self.at(old), &self.at(new), &self.at(to)).map_err(|e| e.code())
    }
    fn apply(&self, delta: &str, trial: bool) -> Result<Applied, Code> {
        let delta = Delta::open(&self.at(delta)).map_err(|e| e.code())?;
        apply(&self.at("b.cpb"), &delta, ApplyOptions { trial, trust: None }).map_err(|e| e.code())
    }
    /// Stage served by one start, and what was said.
    fn start(&self) -> (u64, String) {
        let b = start(&self.at("b.cpb"), None, None).unwrap();
        (b.stage(), b.warnings().join("; "))
    }
    fn state(&self) -> State {
        State::load(&self.at("b.cpb")).0
    }
}

#[test]
fn a_delta_brings_the_very_bytes_while_a_reader_keeps_its_stage() {
    let p = Place::new(4);
    let reader = Bundle::open(&p.at("b.cpb")).unwrap();
    let d = Delta::open(&p.at("d")).unwrap();
    assert_eq!((d.from_stage(), d.to_stage()), (2, 4));
    let grown = (p.bytes("new.cpb").len() - p.bytes("b.cpb").len()) as u64;
    assert_eq!(p.bytes("d").len() as u64, PAGE + grown, "the tail and one page");
    assert_eq!(p.apply("d", false), Ok(Applied { before: 2, now: 4, written: grown, already: false }));
    assert_eq!(p.bytes("b.cpb"), p.bytes("new.cpb"));
    assert_eq!(verify(&p.at("b.cpb"), true).unwrap(), []);
    assert_eq!(p.apply("d", false), Ok(Applied { before: 4, now: 4, written: 0, already: true }), "once more");
    assert_eq!(p.bytes("b.cpb"), p.bytes("new.cpb"));
    assert_eq!(reader.manifest().tasks.len(), 2);
    assert!((0..2).all(|i| reader.section(i).is_ok()));
    assert!(!State::path(&p.at("b.cpb")).exists(), "nothing is kept that is not needed");
}

/// U13: whatever befalls a delta on its way, the bundle stays as it was.
#[test]
fn a_damaged_delta_changes_nothing() {
    let p = Place::new(3);
    let (good, before) = (p.bytes("d"), p.bytes("b.cpb"));
    let refused = |name: &str, bytes: &[u8], want: &[Code]| {
        std::fs::write(p.at("x"), bytes).unwrap();
        let code = p.apply("x", true).unwrap_err();
        assert!(want.is_empty() || want.contains(&code), "{name}: {code:?}");
        assert!(p.bytes("b.cpb") == before, "{name}: the bundle has changed");
    };
    for cut in (0..good.len()).step_by(PAGE as usize).chain([1, 7, 255, 4095, 4097, good.len() - 1]) {
        refused(&format!("cut at {cut}"), &good[..cut], &[Code::Truncated]);
    }
    refused("a byte too many", &[good.as_slice(), &[0]].concat(), &[Code::Layout]);
    // With CONPET_FULL every bit, which takes minutes.
    let full = std::env::var_os("CONPET_FULL").is_some();
    let bits: Vec<usize> = match full {
        true => (0..good.len() * 8).collect(),
        false => (0..300).chain((300..good.len()).step_by(7)).map(|byte| byte * 8 + byte % 8).collect(),
    };
    for bit in bits {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused(&format!("bit {bit} flipped"), &bytes, &[]);
    }
    refused("a bundle", &before, &[Code::Magic]);
    assert!(!State::path(&p.at("b.cpb")).exists());
    p.apply("d", false).unwrap();
}

/// A delta with other content, its digests made right again.
fn forged(bytes: &[u8], edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut b = bytes.to_vec();
    edit(&mut b);
    let tail = blake3::hash(&b[PAGE as usize..]);
    b[80..112].copy_from_slice(tail.as_bytes());
    let crc = crc32c::crc32c(&b[128..252]);
    b[252..256].copy_from_slice(&crc.to_le_bytes());
    let head = blake3::hash(&b[..256]);
    b[256..288].copy_from_slice(head.as_bytes());
    b
}

/// The same of a delta made by someone who knows the format: nothing is believed.
#[test]
fn a_forged_delta_changes_nothing() {
    let p = Place::new(3);
    let (good, before) = (p.bytes("d"), p.bytes("b.cpb"));
    let number = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap());
    let (start, commit) = (number(64), number(128 + 40));
    // Where the tail's one section and its commit lie in the delta.
    let (section, commit) = (PAGE as usize, (commit - start + PAGE) as usize);
    let section_end = section + Bundle::open(&p.at("new.cpb")).unwrap().section_records()[2].len as usize;
    let put = |at: usize, v: u64| move |b: &mut Vec<u8>| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("a section changed", forged(&good, |b| b[section + 100] ^= 1), Code::Digest),
        ("bytes hidden behind a section", forged(&good, |b| b[section_end] = 7), Code::Reserved),
        ("the manifest changed", forged(&good, |b| b[commit + 700] ^= 1), Code::Digest),
        ("the commit's parent", forged(&good, |b| b[commit + 24] ^= 1), Code::Digest),
        ("another commit's digest", forged(&good, |b| b[128 + 64] ^= 1), Code::Digest),
        ("another file id", forged(&good, |b| b[128 + 16] ^= 1), Code::Parent),
        ("another parent", forged(&good, |b| b[32] ^= 1), Code::Parent),
        ("a parent elsewhere", forged(&good, put(24, FIRST)), Code::Parent),
        ("a lower end", forged(&good, put(64, start - PAGE)), Code::Layout),
        ("an unaligned end", forged(&good, put(64, start + 1)), Code::Layout),
        ("an end that wraps", forged(&good, put(64, u64::MAX - 4095)), Code::Layout),
        ("a longer tail", forged(&good, put(72, number(72) + PAGE)), Code::Layout),
        ("a commit that does not end the tail", forged(&good, put(128 + 56, number(128 + 56) + PAGE)), Code::Layout),
        ("a higher stage number", forged(&good, put(128 + 96, 9)), Code::Digest),
        ("a newer major version", forged(&good, |b| b[8] = 2), Code::Version),
        ("reserved bytes", forged(&good, |b| b[12] = 1), Code::Reserved),
        ("no tail", forged(&good[..PAGE as usize], put(72, 0)), Code::Layout),
    ];
    for (name, bytes, code) in cases {
        std::fs::write(p.at("x"), bytes).unwrap();
        assert_eq!(p.apply("x", false), Err(code), "{name}");
        assert!(p.bytes("b.cpb") == before, "{name}: the bundle has changed");
    }
    // The helper itself is sound.
    std::fs::write(p.at("x"), forged(&good, |_| ())).unwrap();
    p.apply("x", false).unwrap();
}

/// U14: a length that no disk has is refused before it is read, let alone written.
#[test]
fn a_terabyte_is_refused_before_anything_is_written() {
    let p = Place::new(3);
    let (good, before) = (p.bytes("d"), p.bytes("b.cpb"));
    let number = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap());
    let huge = forged(&good, |b| {
        let mut add = |at: usize| b[at..at + 8].copy_from_slice(&(number(at) + (1 << 40)).to_le_bytes());
        [72, 128 + 40, 128 + 56].into_iter().for_each(&mut add);
    });
    std::fs::write(p.at("x"), &huge).unwrap();
    assert_eq!(p.apply("x", false), Err(Code::Truncated), "it only says so");
    // It even is so long, in a file of holes.
    let file = std::fs::OpenOptions::new().write(true).open(p.at("x")).unwrap();
    if file.set_len(PAGE + number(72) + (1 << 40)).is_ok() {
        assert_eq!(p.apply("x", false), Err(Code::Space));
    }
    assert_eq!(p.bytes("b.cpb"), before);
}

#[test]
fn a_delta_fits_one_stage_of_one_file() {
    let p = Place::new(3);
    // Of an earlier stage, replayed after a later one.
    p.copy("new.cpb", "newer.cpb");
    p.grow("newer.cpb", "later");
    p.delta("new.cpb", "newer.cpb", "later").unwrap();
    assert_eq!(p.apply("later", false), Err(Code::Parent), "a stage is missing in between");
    p.apply("d", false).unwrap();
    p.apply("later", false).unwrap();
    assert_eq!(p.apply("d", false), Err(Code::Parent), "replayed");
    assert_eq!(p.bytes("b.cpb"), p.bytes("newer.cpb"));
    // After going back, the stage left behind is not continued, and what has grown otherwise stays.
    rollback(&p.at("b.cpb"), 2).unwrap();
    assert_eq!(p.apply("later", false), Err(Code::Parent));
    p.grow("b.cpb", "mine");
    rollback(&p.at("b.cpb"), 2).unwrap();
    let before = p.bytes("b.cpb");
    assert_eq!(p.apply("d", false), Err(Code::Parent), "it has more than the delta leads to");
    assert_eq!(p.bytes("b.cpb"), before);
    // Making one: the older file first, of the same bundle, and something to send.
    assert_eq!(p.delta("newer.cpb", "new.cpb", "x").unwrap_err(), Code::Parent);
    assert_eq!(p.delta("new.cpb", "new.cpb", "x").unwrap_err(), Code::Parent);
    assert_eq!(p.delta("b.cpb", "newer.cpb", "x").unwrap_err(), Code::Parent, "grown apart");
    with_task(Draft::new(base(), "other", 1), "one").create(&p.at("other.cpb")).unwrap();
    assert_eq!(p.delta("other.cpb", "new.cpb", "x").unwrap_err(), Code::Parent, "another file id");
    rollback(&p.at("new.cpb"), 1).unwrap();
    p.copy("new.cpb", "back.cpb");
    assert_eq!(p.delta("back.cpb", "new.cpb", "x").unwrap_err(), Code::Parent, "nothing newer is current");
    assert!(!p.at("x").exists());
    assert_eq!(p.delta("new.cpb", "newer.cpb", "d").unwrap_err(), Code::Duplicate, "nothing is overwritten");
}

/// U16: a trial that never proves itself is over after exactly three starts.
#[test]
fn a_trial_goes_back_by_itself_after_three_starts() {
    let p = Place::new(3);
    p.apply("d", true).unwrap();
    let after = p.bytes("b.cpb");
    for left in [2, 1, 0] {
        let (stage, said) = p.start();
        assert_eq!((stage, p.state().trial.unwrap().tries_left), (3, left));
        assert!(said.contains(&format!("start {} of 3", 3 - left)), "{said}");
    }
    let (stage, said) = p.start();
    assert_eq!(stage, 2);
    assert!(said.contains("stage 2 is current again"), "{said}");
    assert_eq!(p.start(), (2, String::new()), "and it stays so, in silence");
    assert_eq!(p.bytes("b.cpb")[FIRST as usize..], after[FIRST as usize..], "nothing was erased");
    assert_eq!(verify(&p.at("b.cpb"), true).unwrap(), []);
    // What failed is not tried again unless someone asks for it by number.
    assert_eq!(p.apply("d", true), Err(Code::Rollback));
    assert_eq!(p.apply("d", false), Err(Code::Rollback));
    rollback(&p.at("b.cpb"), 3).unwrap();
    assert_eq!((p.start().0, p.state()), (3, State::default()));
    // The next stage, made from the same earlier one, finds the failed one's bytes in its way and uses them.
    rollback(&p.at("b.cpb"), 2).unwrap();
    p.two_to_four();
    assert_eq!(p.apply("d4", false).unwrap().now, 4);
    assert_eq!(p.bytes("b.cpb")[FIRST as usize..], p.bytes("new.cpb")[FIRST as usize..]);
}

impl Place {
    fn two_to_four(&self) {
        two_stages(&self.at("old.cpb"));
        self.grow("new.cpb", "four");
        self.delta("old.cpb", "new.cpb", "d4").unwrap();
    }
}

#[test]
fn a_trial_marked_good_stays() {
    let p = Place::new(3);
    p.apply("d", true).unwrap();
    assert_eq!(p.start().0, 3);
    p.two_to_four();
    assert_eq!(p.apply("d4", false), Err(Code::Value), "one thing at a time");
    assert_eq!(mark_good(&p.at("b.cpb"), false).unwrap(), Marked { stage: 3, was_trial: true, floor: 0 });
    for _ in 0..5 {
        assert_eq!(p.start(), (3, String::new()));
    }
    assert_eq!(mark_good(&p.at("b.cpb"), false).unwrap(), Marked { stage: 3, was_trial: false, floor: 0 });
    // A stage learned on top of a trial, or a return to the old one, ends it.
    let p = Place::new(3);
    p.apply("d", true).unwrap();
    rollback(&p.at("b.cpb"), 2).unwrap();
    assert_eq!(p.start(), (2, String::new()));
    p.apply("d", true).unwrap();
    p.grow("b.cpb", "more");
    (0..5).for_each(|_| assert_eq!(p.start(), (4, String::new())));
}

/// A stage below the floor is refused on every way in, even where the whole file is replaced.
#[test]
fn nothing_below_the_floor_is_used() {
    let p = Place::new(3);
    p.copy("b.cpb", "old.cpb");
    p.apply("d", true).unwrap();
    assert_eq!(mark_good(&p.at("b.cpb"), true).unwrap().floor, 3);
    assert_eq!(rollback(&p.at("b.cpb"), 2).unwrap_err().code(), Code::Rollback);
    assert_eq!(start(&p.at("b.cpb"), Some(2), None).unwrap_err().code(), Code::Rollback);
    assert_eq!(start(&p.at("b.cpb"), Some(3), None).unwrap().stage(), 3);
    p.copy("old.cpb", "b.cpb");
    assert_eq!(start(&p.at("b.cpb"), None, None).unwrap_err().code(), Code::Rollback);
    let before = p.bytes("b.cpb");
    assert_eq!(mark_good(&p.at("b.cpb"), true).unwrap().floor, 3, "it never falls");
    State { floor: 4, ..State::default() }.save(&p.at("b.cpb")).unwrap();
    assert_eq!(p.apply("d", false), Err(Code::Rollback));
    assert_eq!(p.bytes("b.cpb"), before);
}

/// U06: no state can keep a bundle from being served.
#[test]
fn a_lost_state_costs_the_trial_not_the_bundle() {
    let p = Place::new(3);
    p.apply("d", true).unwrap();
    let path = State::path(&p.at("b.cpb"));
    let whole = std::fs::read(&path).unwrap();
    let bad: Vec<Vec<u8>> = (0..whole.len() - 1).map(|n| whole[..n].to_vec()).collect();
    let flips = (0..whole.len() - 1).map(|i| {
        let mut b = whole.clone();
        b[i] ^= 1;
        b
    });
    for bytes in bad.into_iter().chain(flips).chain([vec![0; 1 << 20], b"null\nnull\n".to_vec(), vec![0xff; 9]]) {
        std::fs::write(&path, &bytes).unwrap();
        let (stage, said) = p.start();
        assert!(stage == 3 && said.contains("the state "), "{said}: {:?}", bytes.escape_ascii().to_string());
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(p.start(), (3, String::new()));
    std::fs::create_dir(&path).unwrap();
    assert!(p.start().1.contains("regular file"));
    // The next trial puts it right.
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, b"").unwrap();
    rollback(&p.at("b.cpb"), 2).unwrap();
    p.apply("d", true).unwrap();
    assert_eq!(p.state().trial.unwrap().tries_left, TRIES);
    // Power lost after the state was written, before the superblock: no trial is in force.
    rollback(&p.at("b.cpb"), 2).unwrap();
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(p.start(), (2, String::new()));
}

#[test]
fn a_trial_that_cannot_be_counted_is_not_started() {
    let p = Place::new(3);
    p.apply("d", true).unwrap();
    // A folder where the temporary file would be stands for a disk that cannot be written.
    let tmp = p.at(&format!(".conpet-tmp-{}-b.cpb.state", std::process::id()));
    std::fs::create_dir(&tmp).unwrap();
    let before = (p.bytes("b.cpb"), p.state());
    let (stage, said) = p.start();
    assert!(stage == 2 && said.contains("cannot be counted"), "{said}");
    assert_eq!(before, (p.bytes("b.cpb"), p.state()));
    std::fs::remove_dir(&tmp).unwrap();
    assert_eq!(p.start().0, 3);
}

/// U11: a second updater is told at once; a start goes on without counting.
#[test]
fn only_one_process_updates() {
    let p = Place::new(3);
    let held = std::fs::File::open(p.at("b.cpb")).unwrap();
    fs::lock(&held, &p.at("b.cpb")).unwrap();
    let before = p.bytes("b.cpb");
    assert_eq!(p.apply("d", true), Err(Code::Locked));
    assert_eq!(mark_good(&p.at("b.cpb"), false).unwrap_err().code(), Code::Locked);
    assert_eq!(p.bytes("b.cpb"), before);
    drop(held);
    p.apply("d", true).unwrap();
    let held = std::fs::File::open(p.at("b.cpb")).unwrap();
    fs::lock(&held, &p.at("b.cpb")).unwrap();
    let (stage, said) = p.start();
    assert!(stage == 3 && said.contains("not counted"), "{said}");
    assert_eq!(p.state().trial.unwrap().tries_left, TRIES);
}

/// U15: back and forth, and growth from an old stage, while a reader of the newest keeps its bytes.
#[test]
fn rolling_back_and_forth_moves_no_byte_under_a_reader() {
    let p = Place::new(7);
    p.apply("d", false).unwrap();
    let path = p.at("b.cpb");
    let reader = Bundle::open(&path).unwrap();
    let seven = p.bytes("b.cpb");
    for stage in [3, 7, 3] {
        rollback(&path, stage).unwrap();
        assert_eq!(start(&path, None, None).unwrap().stage(), stage);
    }
    p.grow("b.cpb", "other");
    let now = Bundle::open(&path).unwrap();
    let parent = now.history().unwrap().last().unwrap().parent;
    assert_eq!((now.stage(), parent), (8, 3));
    assert_eq!(p.bytes("b.cpb")[FIRST as usize..seven.len()], seven[FIRST as usize..]);
    assert!((0..7).all(|i| reader.section(i).is_ok()));
    assert_eq!(verify(&path, true).unwrap(), []);
}

/// Deltas between any two states of a file that grew, went back and grew again.
#[test]
fn a_delta_may_lead_to_another_branch() {
    let p = Place::new(4);
    rollback(&p.at("new.cpb"), 3).unwrap();
    p.grow("new.cpb", "branch");
    p.delta("b.cpb", "new.cpb", "branch").unwrap();
    p.apply("branch", false).unwrap();
    assert_eq!(p.bytes("b.cpb"), p.bytes("new.cpb"));
    let stages: Vec<_> = Bundle::open(&p.at("b.cpb")).unwrap().history().unwrap();
    assert_eq!(stages.iter().map(|s| s.stage).collect::<Vec<_>>(), [1, 2, 3, 5]);
}

#[test]
fn what_is_no_delta_is_named() {
    let p = Place::new(3);
    assert_eq!(Delta::open(Path::new("/dev/null")).unwrap_err().code(), Code::Io);
    assert_eq!(Delta::open(p.dir.path()).unwrap_err().code(), Code::Io);
    assert_eq!(Delta::open(&p.at("absent")).unwrap_err().code(), Code::Io);
}
