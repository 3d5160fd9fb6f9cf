//! U03 to U05: the power goes at any moment of any protocol, and again while it is put right.
//!
//! Each protocol is run once on a real file and its changes recorded. From them the model of
//! `disk.rs` makes every image that a disk may hold; each must open as the old or the new stage, whole,
//! never older than what was durable, and take the next append. That append is recorded in turn and
//! cut off in the same way.

use crate::disk::{Bytes, Dice, Event, Folder, Seen, trace};
use crate::stage::{self, FIRST, Protocol, Stage};
use crate::{figure, folder, record};
use conpet_formats::Error;
use conpet_formats::fs::write_atomic;
use std::path::{Path, PathBuf};

/// What is wrong with an image.
type Violation = String;

struct Trial {
    /// The name that counts.
    path: PathBuf,
    /// Where images are put to be opened and grown.
    work: tempfile::TempDir,
    /// The change that an image must take.
    next: Box<dyn Fn(&Path) -> conpet_formats::Result<()>>,
    /// The stage that change goes through, where it is two.
    between: Option<Stage>,
    seen: Seen,
    dice: Dice,
}

impl Trial {
    fn new(path: &Path) -> Self {
        let next = Box::new(|image: &Path| stage::append(image, 1));
        Self { path: path.to_owned(), work: folder(), next, between: None, seen: Seen::default(), dice: Dice(1) }
    }

    /// Cuts the power after each event from `start` on. `stages` are those that may be found, oldest
    /// first (`None`: no file); what is durable never falls back, and in the end the last is. `most`
    /// bounds the new images of one moment, `again` those of a second cut in the append after the first.
    fn cut(
        &mut self,
        start: &Folder,
        events: &[Event],
        stages: &[Option<Stage>],
        most: usize,
        again: usize,
    ) -> Result<(), Violation> {
        let rank = |file: Option<&[u8]>| -> Result<usize, Violation> {
            let found = file.map(stage::stage_in).transpose().map_err(|e| format!("an image does not open: {e}"))?;
            stages.iter().position(|s| *s == found).ok_or_else(|| format!("an image opens as {found:?}"))
        };
        let mut folder = start.clone();
        let mut floor = 0;
        for moment in 0..=events.len() {
            if let Some(event) = moment.checked_sub(1).map(|i| &events[i]) {
                folder.apply(event);
            }
            let durable = rank(folder.safe(&self.path).map(|b| b.durable.as_slice()))?;
            let newest = rank(folder.now(&self.path).map(Bytes::seen).as_deref())?;
            if durable < floor {
                return Err(format!("moment {moment}: what was durable is lost"));
            }
            floor = durable;
            let mut bad = None;
            let limit = self.seen.len() + most;
            // Most images of a late moment were seen before; looking on for new ones has an end.
            let mut tries = 8 * most;
            for file in [folder.safe(&self.path), folder.now(&self.path)].into_iter().flatten() {
                let mut dice = Dice(self.dice.roll());
                file.images(&mut dice, &mut |image| {
                    if self.seen.is_new(&image) {
                        let checked = rank(Some(&image)).and_then(|r| {
                            if !(floor..=newest).contains(&r) {
                                return Err(format!("stage {r} where {floor} to {newest} are possible"));
                            }
                            self.grow(&image, stages[r].as_ref(), again)
                        });
                        bad = checked.err();
                    }
                    tries = tries.saturating_sub(1);
                    bad.is_none() && tries > 0 && self.seen.len() < limit
                });
                if let Some(bad) = bad {
                    return Err(format!(
                        "moment {moment} ({:?}): {bad}",
                        moment.checked_sub(1).map(|i| name(&events[i]))
                    ));
                }
            }
        }
        if floor + 1 < stages.len() {
            Err("all calls have returned, and the new stage is not durable".into())
        } else {
            Ok(())
        }
    }

    /// An image takes the next change; with `again`, the power is cut in that too.
    fn grow(&mut self, image: &[u8], stage: Option<&Stage>, again: usize) -> Result<(), Violation> {
        let path = self.work.path().join("image.cpb");
        std::fs::write(&path, image).unwrap();
        let (grown, events) = trace(None, || (self.next)(&path));
        grown.map_err(|e| format!("an image takes no further change: {e}"))?;
        stage::assert_sound(&path, "after the next change");
        let next = stage::stage_of(&path).unwrap();
        assert!(stage.is_none_or(|s| s.stage < next.stage), "{stage:?} before {next:?}");
        if again == 0 {
            return Ok(());
        }
        let outer = std::mem::replace(&mut self.path, path.clone());
        let mut stages = vec![stage.cloned()];
        stages.extend(self.between.clone().map(Some));
        stages.push(Some(next));
        stages.dedup();
        let done = self.cut(&Folder::with(&path, image.to_vec()), &events, &stages, again, 0);
        self.path = outer;
        done.map_err(|e| format!("a second cut: {e}"))
    }
}

fn name(e: &Event) -> String {
    match e {
        Event::Write(_, at, bytes) => format!("write {} bytes at {at}", bytes.len()),
        Event::Sync(_) => "sync".into(),
        other => format!("{other:?}"),
    }
}

/// A protocol before and after: where it begins, what it did, and the stages around it.
struct Recorded {
    start: Folder,
    events: Vec<Event>,
    stages: Vec<Option<Stage>>,
}

fn recorded(path: &Path, run: impl FnOnce() -> conpet_formats::Result<()>) -> Recorded {
    let before = std::fs::read(path).ok();
    let old = before.as_deref().map(|b| stage::stage_in(b).unwrap());
    let (done, events) = trace(None, run);
    done.unwrap();
    let new = stage::stage_of(path).unwrap();
    let start = before.map_or_else(Folder::default, |b| Folder::with(path, b));
    Recorded { start, events, stages: vec![old, Some(new)] }
}

/// Pages of the new section: enough that their subsets are thousands.
fn pages() -> usize {
    figure(8, 12)
}

fn cut_off(what: &str, p: Protocol, path: &Path, r: &Recorded) {
    let mut t = Trial::new(path);
    if p == Protocol::Apply {
        // An update that was cut off is sent again, and then the box goes on.
        let (kit, updated) = (stage::beside(path), r.stages[1].as_ref().map_or(0, |s| s.stage));
        t.next = Box::new(move |image| {
            if stage::stage_of(image)?.stage <= updated {
                stage::apply_delta(image, &kit, false)?;
            }
            stage::append(image, 1)
        });
        t.between = r.stages[1].clone();
    }
    // A rollback writes superblocks only, so it has fewer images than an append, and more by a second cut.
    let tail = r.events.iter().any(|e| matches!(e, Event::Write(_, at, _) if *at >= FIRST));
    let (most, again) = (figure(60, 14_000), figure(3, if tail { 30 } else { 150 }));
    if let Err(e) = t.cut(&r.start, &r.events, &r.stages, most, again) {
        panic!("{what}: {e}");
    }
    record(&format!("{what}: {} distinct images, 0 violations", t.seen.len()));
    // A file made anew is whole before it has its name, so there is little to find under that name; what may
    // stand under its temporary name is the business of u06.
    let renamed = r.events.iter().any(|e| matches!(e, Event::Publish(..)));
    let least = match (renamed, tail) {
        (true, _) => 10,
        // Sent again, an update comes to the same images once more.
        (_, true) if p == Protocol::Apply => figure(100, 14_000),
        (_, true) => figure(100, 20_000),
        (_, false) => figure(100, 5000),
    };
    assert!(t.seen.len() >= least, "{what}: only {} images", t.seen.len());
}

#[test]
fn u03_every_image_of_every_protocol_is_whole() {
    // What also writes the state beside the bundle is the business of `trials.rs`.
    let two = [Protocol::ApplyOnTrial, Protocol::MarkGood];
    for p in Protocol::ALL.into_iter().filter(|p| !two.contains(p)) {
        let dir = folder();
        let path = dir.path().join("b.cpb");
        p.prepare(&path, pages());
        let r = recorded(&path, || p.run(&path, pages()));
        cut_off(&format!("{p:?}"), p, &path, &r);
    }
}

#[test]
fn u04_the_power_goes_in_the_repair_too() {
    // What an append leaves that was cut off between its superblocks, and one whose slot A tore.
    for (what, torn) in [("B behind A", FIRST / 2..FIRST), ("A torn", 64..FIRST / 2)] {
        for p in [Protocol::Append, Protocol::Rollback] {
            let dir = folder();
            let path = dir.path().join("b.cpb");
            stage::create(&path, 1).unwrap();
            stage::append(&path, 1).unwrap();
            let old = std::fs::read(&path).unwrap();
            stage::append(&path, 1).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[torn.clone()].copy_from_slice(&old[torn.clone()]);
            std::fs::write(&path, bytes).unwrap();
            let r = recorded(&path, || p.run(&path, pages()));
            cut_off(&format!("{p:?} with repair, {what}"), p, &path, &r);
        }
    }
}

#[test]
fn u08_a_sync_that_failed_is_not_believed_later() {
    // After a failed sync the system goes on showing what was written, and a later sync of the same
    // file says nothing; only what is written again is on its way again.
    let mut images = 0;
    for p in [Protocol::Append, Protocol::Rollback, Protocol::Apply] {
        for refused in 0.. {
            let dir = folder();
            let path = dir.path().join("b.cpb");
            p.prepare(&path, 2);
            let before = std::fs::read(&path).unwrap();
            let old = stage::stage_of(&path).unwrap();
            let (done, events) = trace(Some(refused), || p.run(&path, 2));
            if done.is_ok() {
                break;
            }
            let shown = stage::stage_of(&path).unwrap();
            let mut disk = Folder::with(&path, before);
            events.iter().for_each(|e| disk.apply(e));
            let (next, events) = trace(None, || stage::append(&path, 1));
            next.unwrap();
            let mut stages = vec![Some(old), Some(shown), Some(stage::stage_of(&path).unwrap())];
            stages.dedup();
            let mut t = Trial::new(&path);
            let mut dice = Dice(3);
            let mut starts = 0;
            disk.now(&path).unwrap().images(&mut dice, &mut |image| {
                starts += 1;
                let start = Folder::with(&path, image);
                if let Err(e) = t.cut(&start, &events, &stages, figure(4, 12), 0) {
                    panic!("{p:?}, sync {refused} refused: {e}");
                }
                starts < figure(10, 100)
            });
            images += t.seen.len();
        }
    }
    record(&format!("appends after a failed sync: {images} distinct images, 0 violations"));
    assert!(images >= figure(200, 20_000), "{images}");
}

#[test]
fn the_images_tell_when_a_sync_is_left_out() {
    // Without this the tests above could pass for the wrong reason.
    let is_sync = |e: &Event| matches!(e, Event::Sync(_) | Event::SyncDir);
    for (p, needed) in [
        (Protocol::Create, vec![0, 1]),
        (Protocol::Append, vec![1, 2]),
        (Protocol::Rollback, vec![1]),
        (Protocol::Apply, vec![1, 2]),
        (Protocol::Compact, vec![0, 1]),
        (Protocol::Recover, vec![0, 1]),
    ] {
        for sync in needed {
            let dir = folder();
            let path = dir.path().join("b.cpb");
            p.prepare(&path, 2);
            let mut r = recorded(&path, || p.run(&path, 2));
            let at = r.events.iter().enumerate().filter(|(_, e)| is_sync(e)).nth(sync).unwrap().0;
            r.events.remove(at);
            let found = Trial::new(&path).cut(&r.start, &r.events, &r.stages, 3000, 0);
            assert!(found.is_err(), "{p:?} without its sync {sync} should lose something");
        }
    }
}

#[test]
fn k02_a_replaced_file_is_the_old_or_the_new() {
    let dir = folder();
    let path = dir.path().join("checkpoint");
    let content = |n: u8| (0..40_000u32).map(|i| (i as u8).wrapping_mul(7) ^ n).collect::<Vec<u8>>();
    let write = |bytes: Vec<u8>| write_atomic(&path, |w| w.write_all(&bytes).map_err(|e| Error::io("write", e)));
    write(content(1)).unwrap();
    let (done, events) = trace(None, || write(content(2)));
    done.unwrap();
    let (old, new) = (content(1), content(2));
    let mut disk = Folder::with(&path, old.clone());
    let mut seen = Seen::default();
    for event in &events {
        disk.apply(event);
        for file in [disk.safe(&path), disk.now(&path)].into_iter().flatten() {
            file.images(&mut Dice(5), &mut |image| {
                seen.is_new(&image);
                assert!(image == old || image == new, "after {}", name(event));
                true
            });
        }
    }
    assert_eq!(disk.safe(&path).unwrap().durable, new);
    assert_eq!(seen.len(), 2);
    // Without the sync before the rename it would be neither.
    let synced = events.iter().position(|e| matches!(e, Event::Sync(_))).unwrap();
    let mut disk = Folder::with(&path, old.clone());
    events.iter().enumerate().filter(|(i, _)| *i != synced).for_each(|(_, e)| disk.apply(e));
    let mut neither = false;
    disk.now(&path).unwrap().images(&mut Dice(5), &mut |image| {
        neither |= image != old && image != new;
        !neither
    });
    assert!(neither);
}

#[test]
fn u06_what_a_killed_process_leaves_is_swept_away_by_the_next() {
    for p in [Protocol::Create, Protocol::Compact, Protocol::Recover] {
        let dir = folder();
        let path = dir.path().join("b.cpb");
        p.prepare(&path, pages());
        let before = std::fs::read(&path).ok();
        let put_back = || match &before {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        };
        let (done, events) = trace(None, || p.run(&path, pages()));
        done.unwrap();
        put_back();
        let Some(Event::Create(temporary)) = events.first() else { panic!("{p:?} begins with a temporary file") };
        let mut disk = Folder::default();
        let mut seen = Seen::default();
        for event in events.iter().take_while(|e| !matches!(e, Event::Publish(..))) {
            disk.apply(event);
            let limit = seen.len() + figure(60, 21_000);
            disk.now(temporary).unwrap().images(&mut Dice(7), &mut |image| {
                if seen.is_new(&image) {
                    std::fs::write(temporary, &image).unwrap();
                    p.run(&path, 1).unwrap();
                    assert!(!temporary.exists(), "{p:?}: the temporary file is still there");
                    stage::stage_of(&path).unwrap();
                    put_back();
                }
                seen.len() < limit
            });
        }
        record(&format!("{p:?} cut off: {} distinct temporary files swept", seen.len()));
        assert!(seen.len() >= figure(60, 20_000), "{p:?}: {}", seen.len());
    }
}
