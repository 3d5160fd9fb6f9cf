//! U09: a disk that fills up. A small tmpfs of every size from the bundle's to what an append needs.

use crate::stage;
use crate::{figure, folder, record};
use conpet_formats::Code;
use conpet_formats::fs::{Op, watched};
use std::path::Path;
use std::process::Command;

const PAGE: u64 = 4096;

/// A file system of its own, gone when dropped. `None` where mounting is not allowed.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Option<Self> {
        let dir = folder();
        mount(&["-t", "tmpfs", "-o", "size=4k", "tmpfs"], dir.path()).then(|| Self(dir))
    }

    fn resize(&self, bytes: u64) {
        assert!(mount(&["-o", &format!("remount,size={bytes}")], self.0.path()), "a tmpfs can be resized");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn mount(args: &[&str], at: &Path) -> bool {
    let done = Command::new("mount").args(args).arg(at).output();
    done.is_ok_and(|o| o.status.success())
}

#[test]
fn u09_an_append_to_a_full_disk_leaves_the_old_stage() {
    let Some(small) = Small::new() else {
        return record("U09 NOT RUN: mounting a tmpfs takes root");
    };
    let pages = figure(12, 520);
    let dir = folder();
    let (made, path) = (dir.path().join("b.cpb"), small.0.path().join("b.cpb"));
    stage::create(&made, 1).unwrap();
    let before = std::fs::metadata(&made).unwrap().len();
    let old = stage::stage_of(&made).unwrap();
    let bytes = std::fs::read(&made).unwrap();
    stage::append(&made, pages).unwrap();
    let after = std::fs::metadata(&made).unwrap().len();
    // The writer keeps a reserve of 3 %.
    let enough = (after + after / 16).next_multiple_of(PAGE);
    let (mut sizes, mut refused) = (0, 0);
    for size in (before..=enough).step_by(PAGE as usize) {
        // A file at the limit fills the rest, so each size is met once by asking and once while writing.
        for fills_up in [false, true] {
            small.resize(enough * 2);
            let filler = small.0.path().join("filler");
            let _ = std::fs::remove_file(&filler);
            std::fs::write(&path, &bytes).unwrap();
            small.resize(size);
            let watch = move |op: Op<'_>, _: &Path| {
                if fills_up && matches!(op, Op::Reserve) {
                    // Somebody else takes all but a page after there seemed to be room.
                    let _ = std::fs::write(&filler, vec![1; (size - before).saturating_sub(PAGE) as usize]);
                }
                Ok(usize::MAX)
            };
            let context = format!("{size} bytes for {before} to {after}, fills up: {fills_up}");
            sizes += 1;
            match watched(watch, || stage::append(&path, pages)) {
                Ok(()) => {
                    assert!(size >= after && !fills_up, "{context}: there was no room");
                    stage::assert_sound(&path, &context);
                }
                Err(e) => {
                    refused += 1;
                    assert_eq!(e.code(), Code::Space, "{context}: {e}");
                    stage::assert_clear(&e, &path, &context);
                    assert_eq!(stage::stage_of(&path).unwrap(), old, "{context}");
                    assert!(size < enough || fills_up, "{context}: refused with room to spare");
                }
            }
        }
    }
    // With room again, the next append takes the place of what was left.
    small.resize(enough * 2);
    let _ = std::fs::remove_file(small.0.path().join("filler"));
    stage::append(&path, pages).unwrap();
    stage::assert_sound(&path, "with room again");
    record(&format!("full disk: {sizes} appends on {} sizes, {refused} refused, 0 violations", sizes / 2));
    assert!(sizes >= figure(20, 1000) && refused > sizes / 2, "{sizes} {refused}");
}
