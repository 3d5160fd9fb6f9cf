//! Compaction and rescue.

use super::{base, two_stages, with_task};
use crate::bundle::update::{ApplyOptions, Delta, State, apply, write_delta};
use crate::bundle::*;
use crate::decimal::Decimal;
use crate::feature::{FeatureSpec, Pool, StateNorm};
use crate::selector::SelectorKind;
use crate::tensors::TensorsWriter;
use crate::{Code, fs};
use std::path::{Path, PathBuf};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A stage with a selector that chooses, and its statistics: both anew at each stage.
fn with_selector(mut d: Draft) -> Draft {
    let payload = |n: f32| {
        let mut w = TensorsWriter::new();
        w.add_f32("x", &[2000], &[n; 2000]).unwrap();
        w.finish().unwrap()
    };
    let n = d.stage() as f32;
    let (section, stats) =
        (d.add_section(SectionKind::Selector, payload(n)), d.add_section(SectionKind::Stats, payload(-n)));
    let s = &mut d.manifest.selector;
    (s.kind, s.section, s.stats) = (SelectorKind::Lda, Some(section), Some(stats));
    s.feature = Some(FeatureSpec::single(1, Pool::Mean, StateNorm::Output));
    s.temperature = Decimal::from_f64(1.0);
    d
}

/// Stages 1 to `n`, each with a task, a selector and statistics of its own.
fn grown(path: &Path, n: usize) {
    with_selector(with_task(Draft::new(base(), "dynamic", 1), "task 1")).create(path).unwrap();
    for i in 2..=n {
        with_selector(with_task(Draft::from_bundle(&Bundle::open(path).unwrap()), &format!("task number {i}")))
            .append(path)
            .unwrap();
    }
}

fn payloads(b: &Bundle) -> Vec<Vec<u8>> {
    (0..b.section_records().len()).map(|i| b.section(i as u32).unwrap().to_vec()).collect()
}

/// U17: the new file says the same with less, while readers of the old one notice nothing.
#[test]
fn compaction_keeps_the_stage_and_every_reader() {
    let (p, options) = (Place::new(), CompactOptions::default());
    let path = p.at("b.cpb");
    grown(&path, 5);
    let readers: Vec<Bundle> = (0..8).map(|_| Bundle::open(&path).unwrap()).collect();
    let old = std::fs::read(&path).unwrap();
    let done = compact(&path, options).unwrap();
    assert_eq!((done.before, done.now, done.bytes_before), (5, 6, old.len() as u64));
    assert_eq!(done.bytes_now, std::fs::metadata(&path).unwrap().len());
    // Four superseded selectors, statistics and commits, all of five pages together.
    assert_eq!(done.bytes_now + 4 * 5 * PAGE, done.bytes_before);
    let new = Bundle::open(&path).unwrap();
    for r in &readers {
        assert_eq!((r.stage(), payloads(r)), (5, payloads(&new)), "read through the old file");
    }
    assert_eq!(verify(&path, true).unwrap(), []);
    assert_eq!(new.history().unwrap().len(), 1);
    assert_ne!(new.slot.file_id, readers[0].slot.file_id, "deltas for the old file do not fit the new one");
    // But for what says where it comes from, the manifest is the same.
    let (mut a, mut b) = (readers[0].manifest().clone(), new.manifest().clone());
    let from = b.ext.remove("compacted_from").unwrap();
    assert_eq!(from, format!("stage 5, commit {}", readers[0].digest()));
    a.for_each_section(|s| *s = 0);
    b.for_each_section(|s| *s = 0);
    b.stage = 5;
    assert_eq!(a, b);
    // Once is enough, and learning goes on from there.
    let again = compact(&path, options).unwrap();
    assert_eq!((again.before, again.now), (6, 6));
    let growing = with_selector(with_task(Draft::from_bundle(&new), "the next task"));
    growing.append(&path).unwrap();
    assert_eq!(Bundle::open(&path).unwrap().stage(), 7);
    assert_eq!(verify(&path, true).unwrap(), []);
}

#[test]
fn compaction_can_drop_the_statistics_and_refuses_what_it_must() {
    let p = Place::new();
    let path = p.at("b.cpb");
    grown(&path, 2);
    let lean = CompactOptions { drop_statistics: true, ..CompactOptions::default() };
    compact(&path, CompactOptions::default()).unwrap();
    let with = compact(&path, lean).unwrap();
    assert_eq!((with.before, with.now), (3, 4));
    let b = Bundle::open(&path).unwrap();
    assert!(b.manifest().selector.stats.is_none() && b.manifest().selector.section.is_some());
    assert!(b.section_records().iter().all(|r| r.kind != SectionKind::Stats));
    // A damaged section is not handed on, and nothing is written.
    grown(&p.at("c.cpb"), 3);
    let mut bytes = std::fs::read(p.at("c.cpb")).unwrap();
    let at = Bundle::open(&p.at("c.cpb")).unwrap().section_records()[1].offset as usize;
    bytes[at + 200] ^= 1;
    std::fs::write(p.at("c.cpb"), &bytes).unwrap();
    assert_eq!(compact(&p.at("c.cpb"), lean).unwrap_err().code(), Code::Digest);
    assert_eq!(std::fs::read(p.at("c.cpb")).unwrap(), bytes);
    // While another process writes.
    let held = std::fs::File::open(&path).unwrap();
    fs::lock(&held, &path).unwrap();
    grown(&p.at("d.cpb"), 2);
    assert_eq!(compact(&path, lean).unwrap_err().code(), Code::Locked);
    drop(held);
    // During a trial.
    std::fs::copy(p.at("d.cpb"), p.at("e.cpb")).unwrap();
    with_task(Draft::from_bundle(&Bundle::open(&p.at("e.cpb")).unwrap()), "new").append(&p.at("e.cpb")).unwrap();
    let delta = write_delta(&p.at("d.cpb"), &p.at("e.cpb"), &p.at("delta")).unwrap();
    apply(&p.at("d.cpb"), &delta, ApplyOptions { trial: true, trust: None }).unwrap();
    assert_eq!(compact(&p.at("d.cpb"), lean).unwrap_err().code(), Code::Value);
    assert_eq!(std::fs::read_dir(p.0.path()).unwrap().filter(is_litter).count(), 0);
}

fn is_litter(e: &std::io::Result<std::fs::DirEntry>) -> bool {
    e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".conpet-tmp")
}

/// A writer that had opened the old file when it was replaced must not append to what no name leads to.
#[test]
fn a_writer_never_appends_to_a_replaced_file() {
    let p = Place::new();
    let path = p.at("b.cpb");
    grown(&path, 2);
    let before = Bundle::open(&path).unwrap();
    compact(&path, CompactOptions::default()).unwrap();
    let stale = with_task(Draft::from_bundle(&before), "late").append(&path).unwrap_err();
    assert_eq!(stale.code(), Code::Layout);
    grown(&p.at("old.cpb"), 2);
    std::fs::copy(p.at("old.cpb"), p.at("new.cpb")).unwrap();
    with_task(Draft::from_bundle(&Bundle::open(&p.at("new.cpb")).unwrap()), "late").append(&p.at("new.cpb")).unwrap();
    write_delta(&p.at("old.cpb"), &p.at("new.cpb"), &p.at("d")).unwrap();
    let done = apply(&path, &Delta::open(&p.at("d")).unwrap(), ApplyOptions::default());
    assert_eq!(done.unwrap_err().code(), Code::Parent, "a delta for the file before compaction");
    assert!(!State::path(&path).exists());
}

/// Damages byte `at` of a copy of `b.cpb`.
fn damaged(p: &Place, at: &[usize]) -> PathBuf {
    let mut bytes = std::fs::read(p.at("b.cpb")).unwrap();
    at.iter().for_each(|i| bytes[*i] ^= 1);
    std::fs::write(p.at("x.cpb"), bytes).unwrap();
    let _ = std::fs::remove_file(p.at("new.cpb"));
    p.at("x.cpb")
}

#[test]
fn without_superblocks_the_last_stage_is_saved_whole() {
    let p = Place::new();
    grown(&p.at("b.cpb"), 3);
    let whole = Bundle::open(&p.at("b.cpb")).unwrap();
    let x = damaged(&p, &[40, PAGE as usize + 40]);
    let done = recover(&x, &p.at("new.cpb"), None).unwrap();
    assert_eq!((done.found, done.stage, done.tasks.len(), done.lost.len()), (3, 4, 3, 0));
    let new = Bundle::open(&p.at("new.cpb")).unwrap();
    assert_eq!(payloads(&new), payloads(&whole));
    assert_eq!(verify(&p.at("new.cpb"), true).unwrap(), []);
    assert_eq!(new.manifest().ext["recovered_from"], format!("stage 3, commit {}", whole.digest()));
    assert_eq!(recover(&x, &p.at("new.cpb"), None).unwrap_err().code(), Code::Duplicate);
    // An earlier one by number; none that is not there.
    assert_eq!(recover(&x, &p.at("two.cpb"), Some(2)).unwrap().tasks.len(), 2);
    assert_eq!(recover(&x, &p.at("nine.cpb"), Some(9)).unwrap_err().code(), Code::Missing);
    // After a rollback it is the stage that was current, as long as a superblock says which.
    rollback(&p.at("b.cpb"), 1).unwrap();
    let x = damaged(&p, &[40]);
    assert_eq!(recover(&x, &p.at("new.cpb"), None).unwrap().found, 1);
}

#[test]
fn what_needs_a_damaged_section_is_left_out_and_named() {
    let p = Place::new();
    grown(&p.at("b.cpb"), 3);
    let b = Bundle::open(&p.at("b.cpb")).unwrap();
    let section = |s: u32| b.section_records()[s as usize].offset as usize + 200;
    let m = b.manifest();
    // A head: its task goes, and with it the selector, which counts on all tasks.
    let x = damaged(&p, &[section(m.heads[1].section)]);
    let done = recover(&x, &p.at("new.cpb"), None).unwrap();
    assert_eq!(done.tasks, ["task 1", "task number 3"]);
    assert_eq!(done.lost.len(), 3, "{:?}", done.lost);
    let new = Bundle::open(&p.at("new.cpb")).unwrap();
    assert_eq!(new.manifest().selector.kind, SelectorKind::Task);
    assert_eq!(verify(&p.at("new.cpb"), true).unwrap(), []);
    let third = b.section(m.heads[2].section).unwrap();
    assert_eq!(new.section(new.manifest().heads[1].section).unwrap(), third);
    // The statistics: nothing but further learning is lost.
    let x = damaged(&p, &[section(m.selector.stats.unwrap())]);
    let done = recover(&x, &p.at("new.cpb"), None).unwrap();
    assert!(done.tasks.len() == 3 && done.lost.len() == 1 && done.lost[0].contains("statistics"), "{:?}", done.lost);
    assert_eq!(Bundle::open(&p.at("new.cpb")).unwrap().manifest().selector.kind, SelectorKind::Lda);
    // The selector.
    let x = damaged(&p, &[section(m.selector.section.unwrap())]);
    let done = recover(&x, &p.at("new.cpb"), None).unwrap();
    assert!(done.tasks.len() == 3 && done.lost[0].contains("the selector is damaged"), "{:?}", done.lost);
    // All heads: nothing of that stage is left.
    let x = damaged(&p, &m.heads.iter().map(|h| section(h.section)).collect::<Vec<_>>());
    assert_eq!(recover(&x, &p.at("new.cpb"), None).unwrap_err().code(), Code::Missing);
    assert!(!p.at("new.cpb").exists());
}

/// Whatever byte is damaged: what is saved verifies in full, and holds nothing that was not there.
#[test]
fn what_is_saved_always_verifies() {
    let p = Place::new();
    two_stages(&p.at("b.cpb"));
    let good = payloads(&Bundle::open(&p.at("b.cpb")).unwrap());
    let n = std::fs::metadata(p.at("b.cpb")).unwrap().len() as usize;
    let mut saved = 0;
    for i in (0..n).step_by(61) {
        let x = damaged(&p, &[i, i / 2, PAGE as usize + 40]);
        if recover(&x, &p.at("new.cpb"), None).is_ok() {
            saved += 1;
            assert_eq!(verify(&p.at("new.cpb"), true).unwrap(), [], "byte {i}");
            let new = Bundle::open(&p.at("new.cpb")).unwrap();
            assert!(payloads(&new).iter().all(|s| good.contains(s)), "byte {i}");
        }
    }
    assert!(saved * 2 > n / 61, "only {saved} of {}", n / 61);
}
