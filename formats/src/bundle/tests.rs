mod rescue;
mod signature;

use super::*;
use crate::feature::{FeatureSpec, Pool, StateNorm};
use crate::{Code, tiny};
use std::path::Path;

pub(super) use crate::tiny::no_base as base;

/// A stage with one more task, `name`, that has a head on the bare base.
pub(super) fn with_task(d: Draft, name: &str) -> Draft {
    let feature = FeatureSpec::single(1, Pool::Mean, StateNorm::Output);
    tiny::with_task(d, name, &["no", "yes"], feature, &[name.len() as f32; 8], &[0.0, 1.0]).unwrap()
}

pub(super) fn two_stages(path: &Path) -> Vec<u8> {
    with_task(Draft::new(base(), "dynamic", 1), "one").create(path).unwrap();
    let first = std::fs::read(path).unwrap();
    with_task(Draft::from_bundle(&Bundle::open(path).unwrap()), "two").append(path).unwrap();
    first
}

#[test]
fn appending_changes_no_earlier_byte_and_keeps_history() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    let first = two_stages(&path);
    let second = std::fs::read(&path).unwrap();
    // The superblocks are the one thing that moves; from 8192 on, old bytes stay.
    assert_eq!(&second[FIRST as usize..first.len()], &first[FIRST as usize..]);
    assert!(second.len() > first.len());
    let b = Bundle::open(&path).unwrap();
    assert_eq!((b.stage(), b.manifest().tasks.len(), b.warnings().len()), (2, 2, 0));
    let h = b.history().unwrap();
    assert_eq!(h.iter().map(|s| (s.stage, s.parent, s.tasks.len())).collect::<Vec<_>>(), [(1, 0, 1), (2, 1, 2)]);
    assert_eq!(Bundle::open_stage(&path, 1).unwrap().manifest().tasks.len(), 1);
    assert_eq!(Bundle::open_stage(&path, 9).unwrap_err().code(), Code::Missing);
    assert_eq!(verify(&path, true).unwrap(), []);
    let unwanted = with_task(Draft::new(base(), "dynamic", 1), "x").create(&path).unwrap_err();
    assert_eq!(unwanted.code(), Code::Duplicate, "create never overwrites");
}

#[test]
fn a_reader_keeps_its_stage_while_the_file_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    with_task(Draft::new(base(), "dynamic", 1), "one").create(&path).unwrap();
    let old = Bundle::open(&path).unwrap();
    with_task(Draft::from_bundle(&old), "two").append(&path).unwrap();
    assert_eq!(old.manifest().tasks.len(), 1);
    assert!(old.section(0).is_ok());
    let stale = with_task(Draft::from_bundle(&old), "three").append(&path).unwrap_err();
    assert_eq!(stale.code(), Code::Layout, "a stage drafted from an old one does not fit");
}

#[test]
fn rollback_repoints_and_never_reuses_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    two_stages(&path);
    let two = std::fs::read(&path).unwrap();
    rollback(&path, 1).unwrap();
    let b = Bundle::open(&path).unwrap();
    assert_eq!((b.stage(), b.manifest().tasks.len()), (1, 1));
    with_task(Draft::from_bundle(&b), "other").append(&path).unwrap();
    let b = Bundle::open(&path).unwrap();
    assert_eq!(b.stage(), 3);
    assert_eq!(b.history().unwrap().iter().map(|s| s.stage).collect::<Vec<_>>(), [1, 3]);
    let now = std::fs::read(&path).unwrap();
    assert_eq!(&now[FIRST as usize..two.len()], &two[FIRST as usize..], "stage 2 is still there");
    // And can be returned to, and grown from.
    assert_eq!(Bundle::open_stage(&path, 2).unwrap().manifest().tasks[1].name, "two");
    rollback(&path, 2).unwrap();
    let b = Bundle::open(&path).unwrap();
    assert_eq!((b.stage(), b.manifest().tasks.len()), (2, 2));
    with_task(Draft::from_bundle(&b), "four").append(&path).unwrap();
    let b = Bundle::open(&path).unwrap();
    assert_eq!(b.history().unwrap().iter().map(|s| s.stage).collect::<Vec<_>>(), [1, 2, 4]);
    rollback(&path, 3).unwrap();
    assert_eq!(Bundle::open(&path).unwrap().manifest().tasks[1].name, "other");
    assert_eq!(verify(&path, true).unwrap(), []);
}

/// A section that many stages list is hashed once, or a file of many stages could take for ever.
#[test]
fn a_section_that_stages_share_is_checked_once() {
    use super::verify::Sections;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    two_stages(&path);
    let survey = Survey::open(&path).unwrap();
    let [first, second] = survey.stages() else { panic!("two stages") };
    let shared = second.sections[0];
    assert_eq!(first.sections[0], shared);
    assert!(survey.section(first, 0).is_ok());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[shared.offset as usize] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(survey.section(second, 0).is_ok(), "known already");
    assert_eq!(Survey::open(&path).unwrap().section(second, 0).unwrap_err().code(), Code::Digest);
    let found = verify(&path, true).unwrap();
    assert_eq!(found.iter().map(|f| f.code).collect::<Vec<_>>(), ["E_DIGEST"], "said once, not for each stage");
    // Nor may commits list pieces of one another's sections, each with a digest of its own.
    let mut met = Sections::default();
    let at = |page: u64, pages: u64| SectionRecord { offset: page * PAGE, len: pages * PAGE, ..shared };
    assert!(met.is_new(&at(10, 4)).unwrap() && met.is_new(&at(4, 6)).unwrap() && met.is_new(&at(14, 1)).unwrap());
    assert!(!met.is_new(&at(10, 4)).unwrap());
    for other in [at(10, 3), at(11, 3), at(9, 1), at(3, 20), SectionRecord { hash: [7; 32], ..at(10, 4) }] {
        assert_eq!(met.is_new(&other).unwrap_err().code(), Code::Layout, "{other:?}");
    }
}

#[test]
fn two_writers_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    two_stages(&path);
    let held = std::fs::File::open(&path).unwrap();
    crate::fs::lock(&held, &path).unwrap();
    assert_eq!(rollback(&path, 1).unwrap_err().code(), Code::Locked);
}

#[test]
fn every_prefix_opens_as_a_whole_stage_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    two_stages(&path);
    let bytes = std::fs::read(&path).unwrap();
    for n in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
        assert!(Bundle::from_bytes(bytes[..n].to_vec(), &path).is_err(), "prefix of {n} bytes was accepted");
    }
}

/// Opens a damaged file and reads all of it: what a reader would see.
fn outcome(bytes: Vec<u8>) -> Result<(u64, bool), Code> {
    let b = Bundle::from_bytes(bytes, Path::new("b.cpb")).map_err(|e| e.code())?;
    for i in 0..b.section_records().len() {
        b.section(i as u32).map_err(|e| e.code())?;
    }
    b.history().map_err(|e| e.code())?;
    Ok((b.stage(), !b.warnings().is_empty()))
}

#[test]
fn no_flipped_bit_changes_the_stage_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    two_stages(&path);
    let bytes = std::fs::read(&path).unwrap();
    let b = Bundle::open(&path).unwrap();
    // Padding between sections is zero and covered by `verify --full`; all else must be noticed.
    let h = b.history().unwrap();
    let live = |i: u64| {
        i < FIRST
            || h.iter()
                .any(|s| i >= s.offset && i < s.offset + u64::from(reader::commit_len(&bytes, s.offset).unwrap()))
            || b.section_records().iter().any(|r| i >= r.offset && i < r.offset + r.len)
    };
    let mut flips = 0;
    for i in (0..bytes.len()).filter(|i| live(*i as u64) && (*i < 256 || i.is_multiple_of(5))) {
        let mut damaged = bytes.clone();
        damaged[i] ^= 1 << (i % 8);
        flips += 1;
        match outcome(damaged) {
            Err(_) => {}
            Ok((stage, warned)) => {
                assert!(stage == 2 && warned, "byte {i}: opened silently as stage {stage}")
            }
        }
    }
    assert!(flips > 1000);
    // And a flip in the padding is found by the full check.
    let mut damaged = bytes.clone();
    let pad = (b.section_records()[0].offset + b.section_records()[0].len) as usize;
    damaged[pad] = 1;
    std::fs::write(&path, damaged).unwrap();
    assert_eq!(verify(&path, true).unwrap().first().map(|f| f.code), Some("E_RESERVED"), "C08");
}

#[test]
fn an_append_torn_at_any_write_leaves_a_whole_stage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    let first = two_stages(&path);
    let second = std::fs::read(&path).unwrap();
    let (a, f) = (PAGE as usize, FIRST as usize);
    // Tail present in part, superblocks old: stage 1.
    for cut in [first.len(), first.len() + 1, first.len() + 5000, second.len()] {
        let mut image = second[..cut].to_vec();
        image[..f].copy_from_slice(&first[..f]);
        assert_eq!(outcome(image), Ok((1, false)));
    }
    // Slot A torn in the middle of its write: B, with a warning.
    for torn in [36, 44, 70, 126] {
        let mut image = second.clone();
        image[a..f].copy_from_slice(&first[a..f]);
        image[torn..a].copy_from_slice(&first[torn..a]);
        assert_eq!(outcome(image), Ok((1, true)), "torn at {torn}");
    }
    // Slot A new, B old: the new stage, with a warning; then the next append repairs B.
    let mut image = second.clone();
    image[a..f].copy_from_slice(&first[a..f]);
    assert_eq!(outcome(image.clone()), Ok((2, true)));
    std::fs::write(&path, &image).unwrap();
    with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), "three").append(&path).unwrap();
    assert_eq!(outcome(std::fs::read(&path).unwrap()), Ok((3, false)));
    // The superblock is durable but the file's growth is not: the other slot.
    let mut image = second[..first.len()].to_vec();
    image[a..f].copy_from_slice(&first[a..f]);
    assert_eq!(outcome(image), Ok((1, true)));
}

/// Files that are read but written to with care: what is wrong with others is in `tests/hostile`.
#[test]
fn a_newer_minor_version_is_kept_and_the_last_number_ends_writing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    two_stages(&path);
    let good = std::fs::read(&path).unwrap();
    let (slot, _) = reader::current(&good).unwrap();
    let both = |s: superblock::Superblock| {
        let mut b = good.clone();
        b[..PAGE as usize].copy_from_slice(&s.encode());
        b[PAGE as usize..FIRST as usize].copy_from_slice(&s.encode());
        std::fs::write(&path, b).unwrap();
    };
    let append = || with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), "three").append(&path);
    both(superblock::Superblock { minor: 9, ..slot });
    append().unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[10], 9, "B05: kept by an older writer");
    both(superblock::Superblock { seq: u64::MAX, ..slot });
    assert_eq!(append().unwrap_err().code(), Code::Value, "B10: no number is left for the next stage");
    assert_eq!(rollback(&path, 1).unwrap_err().code(), Code::Value, "B10");
    both(superblock::Superblock { max_stage: u64::MAX, ..slot });
    assert_eq!(append().unwrap_err().code(), Code::Value);
    assert_eq!(Bundle::open(&path).unwrap().stage(), 2, "B10: and reading goes on");
}

#[test]
fn b16_b17_slots_that_differ() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    let first = two_stages(&path);
    let good = std::fs::read(&path).unwrap();
    let (page, two) = (PAGE as usize, FIRST as usize);
    for (name, old) in [("B16 A ahead", page..two), ("B16 B ahead", 0..page)] {
        let mut b = good.clone();
        b[old.clone()].copy_from_slice(&first[old]);
        assert_eq!(outcome(b.clone()), Ok((2, true)), "{name}");
        // Whatever writes next repairs it, here one that moves no stage.
        std::fs::write(&path, b).unwrap();
        rollback(&path, 2).unwrap();
        assert_eq!(outcome(std::fs::read(&path).unwrap()), Ok((2, false)), "{name}");
    }
    let (slot, _) = reader::current(&good).unwrap();
    for seq in [slot.seq, slot.seq - 1, slot.seq + 1] {
        let other = superblock::Superblock { file_id: [7; 16], seq, ..slot };
        for at in [0, page] {
            let mut b = good.clone();
            b[at..at + page].copy_from_slice(&other.encode());
            assert_eq!(outcome(b.clone()), Err(Code::Layout), "B17 at {at}, sequence {seq}");
            std::fs::write(&path, &b).unwrap();
            assert_eq!(rollback(&path, 1).unwrap_err().code(), Code::Layout);
            assert_eq!(std::fs::read(&path).unwrap(), b, "a contradiction is not written over");
        }
    }
}

/// A module entry as every earlier release wrote it, byte for byte.
#[test]
fn entries_of_one_lora_are_written_as_ever_and_others_by_their_text() {
    use super::manifest::ModuleEntry;
    use crate::pet::{Lora, PetSpec, lora::Scaling};
    let old = r#"{"alpha":"16","dtype":"F16","id":"m0000","kind":"lora","rank":8,"scale":"2","scaling":"alpha/r","section":0,"site_count":1,"targets":"t0","train":{}}"#;
    let written = |pet: &PetSpec| ModuleEntry::new(0, pet, 0, "t0".into(), 1);
    let e: ModuleEntry = serde_json::from_str(old).unwrap();
    assert_eq!(serde_json::to_string(&e).unwrap(), old);
    assert_eq!(e.pet().unwrap(), PetSpec::lora(Lora { rank: 8, alpha: 16.0, scaling: Scaling::AlphaOverRank }));
    let e = written(&PetSpec::from_canonical("lora:r=4,alpha=16+bias").unwrap());
    let new = r#"{"dtype":"F16","id":"m0000","kind":"lora","pet":"lora:r=4,alpha=16+bias","section":0,"site_count":1,"targets":"t0","train":{}}"#;
    assert_eq!(serde_json::to_string(&e).unwrap(), new);
    assert_eq!(e.pet().unwrap().to_string(), "lora:r=4,alpha=16+bias");
    let e = written(&PetSpec::lora(Lora { rank: 8, alpha: 16.0, scaling: Scaling::AlphaOverRank }));
    assert_eq!(serde_json::to_string(&e).unwrap(), old);
    // Fields that contradict each other.
    for (from, to) in [
        (r#""rank":8,"#, ""),
        (r#""rank":8"#, r#""rank":4"#),
        (r#""kind":"lora""#, r#""kind":"bias""#),
        (r#""kind":"lora""#, r#""kind":"lora","pet":"bias""#),
    ] {
        let e: ModuleEntry = serde_json::from_str(&old.replace(from, to)).unwrap();
        assert!(e.pet().is_err(), "{to}");
    }
    for (from, to) in
        [("+bias", ""), ("lora:r=4,alpha=16+bias", "bias"), ("+bias", "+bias:at=attn_q/attn_q"), ("+bias", "+magic")]
    {
        let e: ModuleEntry = serde_json::from_str(&new.replace(from, to)).unwrap();
        assert!(e.pet().is_err(), "{to}");
    }
}
