//! U25, U22: readers beside a writer. Every open sees one whole stage, and what was opened stays.

use crate::stage::{self, whole};
use crate::{figure, folder, record};
use conpet_formats::bundle::{Bundle, rollback};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[test]
fn u25_readers_beside_a_writer_see_whole_stages() {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    stage::create(&path, 1).unwrap();
    let held = Bundle::open(&path).unwrap();
    let first = whole(&held).unwrap();
    let (done, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    // What a stage's digest is: the same for every reader, whenever it looked.
    let digests = Mutex::new(BTreeMap::<u64, String>::new());
    let changes = figure(60, 10_000);
    let made = std::thread::scope(|s| {
        for _ in 0..figure(3, 8) {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let found = stage::stage_of(&path).expect("a reader beside a writer");
                    let mut known = digests.lock().unwrap();
                    let digest = known.entry(found.stage).or_insert_with(|| found.digest.clone());
                    assert_eq!(*digest, found.digest, "two contents of stage {}", found.stage);
                    opened.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // On a busy machine readers may hardly have their turn: the writer goes on until they had it.
        let met = || opened.load(Ordering::Relaxed) >= changes / 4 && digests.lock().unwrap().len() > 3;
        let mut i = 0;
        while i < changes || (!met() && i < 50 * changes) {
            i += 1;
            // A rollback now and then, far enough back that the manifest stays small.
            let done = if i % 40 == 0 { rollback(&path, 1) } else { stage::append(&path, 1) };
            done.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        i
    });
    assert_eq!(whole(&held).unwrap(), first, "what was opened first is unchanged");
    held.check().unwrap();
    stage::assert_sound(&path, "after all");
    let (opened, stages) = (opened.load(Ordering::Relaxed), digests.lock().unwrap().len());
    record(&format!("readers beside a writer: {made} changes, {opened} opens of {stages} stages, all whole"));
    assert!(opened >= changes / 4 && stages > 3, "{opened} opens of {stages} stages");
}

#[test]
fn u21_a_rewrite_in_place_is_noticed_and_an_append_is_none() {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    stage::create(&path, 1).unwrap();
    let used = Bundle::open(&path).unwrap();
    whole(&used).unwrap();
    stage::append(&path, 1).unwrap();
    used.check().unwrap();
    let at = used.section_records()[0].offset;
    // Some file systems count time in steps of some milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(30));
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::io::Write::write_all(
        &mut std::io::Seek::seek(&mut &file, std::io::SeekFrom::Start(at)).map(|_| &file).unwrap(),
        b"x",
    )
    .unwrap();
    assert_eq!(used.check().unwrap_err().code(), conpet_formats::Code::Digest);
}
