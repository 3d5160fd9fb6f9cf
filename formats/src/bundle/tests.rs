mod rescue;
mod signature;

use super::manifest::*;
use super::*;
use crate::decimal::Decimal;
use crate::feature::{FeatureSpec, Pool, StateNorm};
use crate::tensors::TensorsWriter;
use crate::{Code, head};
use std::path::Path;

pub(super) fn base() -> BaseRef {
    let d = "ab".repeat(32);
    BaseRef {
        arch: "llama".into(),
        file_blake3: vec![d.clone()],
        file_len: 1,
        name: "test".into(),
        quant: "Q8_0".into(),
        sample: d.clone(),
        structure: d.clone(),
        tokenizer: d,
    }
}

/// A stage with one more task, `name`, that has a head on the bare base.
pub(super) fn with_task(mut d: Draft, name: &str) -> Draft {
    let mut w = TensorsWriter::new();
    w.add_f32(head::WEIGHT, &[2, 4], &[name.len() as f32; 8]).unwrap();
    w.add_f32(head::BIAS, &[2], &[0.0, 1.0]).unwrap();
    let section = d.add_section(SectionKind::Head, w.finish().unwrap());
    let (id, stage) = (d.manifest.tasks.len() as u32, d.generation());
    d.manifest.heads.push(HeadEntry {
        blend: Decimal::from_f64(0.0),
        classes: 2,
        feature: FeatureSpec::single(1, Pool::Mean, StateNorm::Output),
        id: format!("h{id:04}"),
        kind: crate::head::HeadKind::Linear,
        section,
        tasks: vec![id],
        temperature: Decimal::from_f64(1.0),
    });
    d.manifest.tasks.push(TaskEntry {
        ensemble: Vec::new(),
        head: Some(id),
        id,
        kind: TaskKind::Classification,
        labels: vec!["no".into(), "yes".into()],
        max_answer: 0,
        module: None,
        name: name.into(),
        stage,
        template: "{input}".into(),
    });
    d
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
    assert_eq!((b.generation(), b.manifest().tasks.len(), b.warnings().len()), (2, 2, 0));
    let h = b.history().unwrap();
    assert_eq!(h.iter().map(|s| (s.generation, s.parent, s.tasks.len())).collect::<Vec<_>>(), [(1, 0, 1), (2, 1, 2)]);
    assert_eq!(Bundle::open_generation(&path, 1).unwrap().manifest().tasks.len(), 1);
    assert_eq!(Bundle::open_generation(&path, 9).unwrap_err().code(), Code::Missing);
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
    assert_eq!((b.generation(), b.manifest().tasks.len()), (1, 1));
    with_task(Draft::from_bundle(&b), "other").append(&path).unwrap();
    let b = Bundle::open(&path).unwrap();
    assert_eq!(b.generation(), 3);
    assert_eq!(b.history().unwrap().iter().map(|s| s.generation).collect::<Vec<_>>(), [1, 3]);
    let now = std::fs::read(&path).unwrap();
    assert_eq!(&now[FIRST as usize..two.len()], &two[FIRST as usize..], "stage 2 is still there");
    // And can be returned to, and grown from.
    assert_eq!(Bundle::open_generation(&path, 2).unwrap().manifest().tasks[1].name, "two");
    rollback(&path, 2).unwrap();
    let b = Bundle::open(&path).unwrap();
    assert_eq!((b.generation(), b.manifest().tasks.len()), (2, 2));
    with_task(Draft::from_bundle(&b), "four").append(&path).unwrap();
    let b = Bundle::open(&path).unwrap();
    assert_eq!(b.history().unwrap().iter().map(|s| s.generation).collect::<Vec<_>>(), [1, 2, 4]);
    rollback(&path, 3).unwrap();
    assert_eq!(Bundle::open(&path).unwrap().manifest().tasks[1].name, "other");
    assert_eq!(verify(&path, true).unwrap(), []);
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
    Ok((b.generation(), !b.warnings().is_empty()))
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
            Ok((generation, warned)) => {
                assert!(generation == 2 && warned, "byte {i}: opened silently as stage {generation}")
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

/// Re-encodes a manifest given as JSON text into an otherwise whole bundle.
fn with_manifest(bytes: &[u8], edit: impl Fn(String) -> String) -> Vec<u8> {
    let (slot, _) = reader::current(bytes).unwrap();
    let mut commit =
        commit::Commit::decode(&bytes[slot.commit_off as usize..][..slot.commit_len as usize], slot.commit_off)
            .unwrap();
    commit.manifest = edit(String::from_utf8(commit.manifest).unwrap()).into_bytes();
    let encoded = commit.encode();
    let mut out = bytes[..slot.commit_off as usize].to_vec();
    out.extend(&encoded);
    out.resize(out.len().next_multiple_of(PAGE as usize), 0);
    let new = superblock::Superblock {
        commit_len: encoded.len() as u32,
        commit_hash: *blake3::hash(&encoded).as_bytes(),
        end: out.len() as u64,
        ..slot
    };
    out[..PAGE as usize].copy_from_slice(&new.encode());
    out[PAGE as usize..FIRST as usize].copy_from_slice(&new.encode());
    out
}

#[test]
fn hostile_manifests_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    with_task(Draft::new(base(), "dynamic", 1), "one").create(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let replace = |from: &'static str, to: &str| {
        let to = to.to_owned();
        move |s: String| {
            assert!(s.contains(from), "{from} is not in {s}");
            s.replacen(from, &to, 1)
        }
    };
    assert_eq!(outcome(with_manifest(&good, |s| s)), Ok((1, false)), "the helper itself is sound");
    let long = "x".repeat(257);
    let cases: Vec<(&str, Box<dyn Fn(String) -> String>, Code)> = vec![
        ("M-J01 duplicate key", Box::new(replace("\"trunk\":1", "\"trunk\":1,\"trunk\":1")), Code::Value),
        ("M-J03 white space", Box::new(replace("\"trunk\":1", "\"trunk\": 1")), Code::NonCanonical),
        ("M-J02 escape", Box::new(replace("\"one\"", "\"\\u006fne\"")), Code::NonCanonical),
        (
            "M-J04 key order",
            Box::new(replace("\"ext\":{},\"format\":\"conpet.bundle/1\"", "\"format\":\"conpet.bundle/1\",\"ext\":{}")),
            Code::NonCanonical,
        ),
        ("M-J05 float", Box::new(replace("\"trunk\":1", "\"trunk\":1.0")), Code::Value),
        ("M-J05 negative zero", Box::new(replace("\"trunk\":1", "\"trunk\":-0")), Code::Value),
        ("M-J06 NaN", Box::new(replace("\"trunk\":1", "\"trunk\":NaN")), Code::Value),
        ("M-J07 BOM", Box::new(|s| format!("\u{feff}{s}")), Code::Value),
        ("M-J09 depth", Box::new(replace("\"ext\":{}", &format!("\"ext\":{}", "[".repeat(10_000)))), Code::Value),
        ("M-J11 unknown field", Box::new(replace("\"trunk\":1", "\"trunk\":1,\"zzz\":1")), Code::Value),
        (
            "M-J12 unknown requires",
            Box::new(replace("[\"selector:task\"]", "[\"selector:task\",\"zz\"]")),
            Code::Requires,
        ),
        ("M-J13 section out of range", Box::new(replace("\"section\":0", "\"section\":7")), Code::Missing),
        (
            "M-J14 temperature",
            Box::new(replace("\"temperature\":\"1\"}],\"method\"", "\"temperature\":\"0\"}],\"method\"")),
            Code::Value,
        ),
        ("M-J15 control character", Box::new(replace("\"yes\"", "\"\\u001b[0m\"")), Code::Text),
        ("M-J15 right-to-left", Box::new(replace("\"yes\"", "\"\u{202e}\"")), Code::Text),
        ("M-J15 long label", Box::new(replace("\"yes\"", &format!("\"{long}\""))), Code::Cap),
        ("M-J15 equal labels", Box::new(replace("\"yes\"", "\"no\"")), Code::Duplicate),
        ("C09 upper-case digest", Box::new(replace("abab", "ABab")), Code::Value),
        ("C10 path as digest", Box::new(replace(&"ab".repeat(32).leak()[..64], "../../etc/passwd")), Code::Value),
        ("X02 template", Box::new(replace("\"template\":\"{input}\"", "\"template\":\"{config}\"")), Code::Value),
        ("M-J14 margin", Box::new(replace("\"margin\":\"0\"", "\"margin\":\"2\"")), Code::Value),
        ("M-J14 threshold", Box::new(replace("\"threshold\":\"0\"", "\"threshold\":\"-1\"")), Code::Value),
        ("M-J15 trunk", Box::new(replace("\"trunk\":1", "\"trunk\":4000000000")), Code::Cap),
        ("M-J15 control character in the quant", Box::new(replace("\"Q8_0\"", "\"\u{7f}\"")), Code::Text),
        ("M-J05 2^53", Box::new(replace("\"trunk\":1", "\"trunk\":9007199254740992")), Code::Value),
        ("generation", Box::new(replace("\"generation\":1", "\"generation\":2")), Code::Value),
        ("trailing data", Box::new(|s| s + " "), Code::NonCanonical),
    ];
    for (name, edit, code) in cases {
        assert_eq!(outcome(with_manifest(&good, edit)), Err(code), "{name}");
    }
}

#[test]
fn hostile_superblocks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    two_stages(&path);
    let good = std::fs::read(&path).unwrap();
    let (slot, _) = reader::current(&good).unwrap();
    let both = |s: superblock::Superblock| {
        let mut b = good.clone();
        b[..PAGE as usize].copy_from_slice(&s.encode());
        b[PAGE as usize..FIRST as usize].copy_from_slice(&s.encode());
        b
    };
    let raw = |at: usize, v: u8| {
        let mut b = good.clone();
        for page in [0, PAGE as usize] {
            b[page + at] = v;
            let crc = crc32c::crc32c(&b[page..page + 124]);
            b[page + 124..page + 128].copy_from_slice(&crc.to_le_bytes());
        }
        b
    };
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("B01 empty", Vec::new(), Code::Magic),
        ("B02 8191 bytes", good[..8191].to_vec(), Code::Truncated),
        ("B03 LF became CRLF", [&good[..6], b"\r\n", &good[7..]].concat(), Code::Magic),
        ("B04 major 2", raw(8, 2), Code::Version),
        ("B06 reserved", raw(12, 1), Code::Reserved),
        (
            "B11 commit unaligned",
            both(superblock::Superblock { commit_off: slot.commit_off + 1, ..slot }),
            Code::Layout,
        ),
        ("B12 commit far away", both(superblock::Superblock { commit_off: u64::MAX - 4095, ..slot }), Code::Layout),
        ("B13 commit empty", both(superblock::Superblock { commit_len: 0, ..slot }), Code::Layout),
        ("B14 end beyond the file", both(superblock::Superblock { end: slot.end + PAGE, ..slot }), Code::Truncated),
        ("B15 commit digest", both(superblock::Superblock { commit_hash: [7; 32], ..slot }), Code::Digest),
        ("X09 a base as bundle", [b"GGUF".as_slice(), &[7; 20_000]].concat(), Code::Magic),
    ];
    for (name, bytes, code) in cases {
        assert_eq!(outcome(bytes), Err(code), "{name}");
    }
    assert_eq!(outcome(raw(10, 9)), Ok((2, false)), "B05 a newer minor version is read");
    std::fs::write(&path, raw(10, 9)).unwrap();
    with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), "three").append(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[10], 9, "and kept by an older writer");
    let mut b = good.clone();
    b[124] ^= 1;
    assert_eq!(outcome(b), Ok((2, true)), "B07 one bad checksum: the other slot, with a warning");
    let mut b = good.clone();
    let other = superblock::Superblock { max_generation: slot.max_generation + 1, ..slot };
    b[..PAGE as usize].copy_from_slice(&other.encode());
    assert_eq!(outcome(b), Err(Code::Layout), "B09 equal sequence, different content");
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
    let mut e: ModuleEntry = serde_json::from_str(old).unwrap();
    assert_eq!(serde_json::to_string(&e).unwrap(), old);
    assert_eq!(e.pet().unwrap(), PetSpec::lora(Lora { rank: 8, alpha: 16.0, scaling: Scaling::AlphaOverRank }));
    e.set_pet(&PetSpec::from_canonical("lora:r=4,alpha=16+bias").unwrap());
    let new = r#"{"dtype":"F16","id":"m0000","kind":"lora","pet":"lora:r=4,alpha=16+bias","section":0,"site_count":1,"targets":"t0","train":{}}"#;
    assert_eq!(serde_json::to_string(&e).unwrap(), new);
    assert_eq!(e.pet().unwrap().to_string(), "lora:r=4,alpha=16+bias");
    e.set_pet(&PetSpec::lora(Lora { rank: 8, alpha: 16.0, scaling: Scaling::AlphaOverRank }));
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
