//! Every flipped bit and every prefix of a small bundle: noticed, or of no consequence.
//!
//! In CI a spread of them; with `CONPET_FULL=1` all (see `docs/security.md`).

use super::forge::{bundle, bundle_bytes};
use super::superblock::interrupted;
use conpet_formats::bundle::{Bundle, verify_bytes};
use std::path::Path;

/// What a reader sees of a file: the stage, its digest, its sections' digests; and whether it warned.
fn seen(bytes: Vec<u8>) -> Option<(u64, String, bool)> {
    let b = Bundle::from_bytes(bytes, Path::new("x.cpb")).ok()?;
    (0..b.section_records().len()).try_for_each(|i| b.section(i as u32).map(drop)).ok()?;
    b.history().ok()?;
    Some((b.stage(), b.digest(), !b.warnings().is_empty()))
}

/// 1 where all cases are asked for, else `sampled`, which is prime to 8 so that all bits of a byte have their turn.
fn step(sampled: usize) -> usize {
    if std::env::var_os("CONPET_FULL").is_some() { 1 } else { sampled }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = bundle_bytes();
    let stage = (bundle().stage(), bundle().digest());
    // What the current stage consists of; the rest is padding and earlier stages.
    let live = |i: u64| {
        i < 8192
            || i >= super::forge::commit_at(good) as u64 && i < good.len() as u64 - padding(good)
            || bundle().section_records().iter().any(|r| i >= r.offset && i < r.offset + r.len)
    };
    // Refused, read from the other superblock with a warning, or outside the stage.
    let flip = |bit: usize| -> usize {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = verify_bytes(bytes.clone(), Path::new("x.cpb"), true);
        assert!(found.iter().any(|f| f.damage), "bit {bit}: the full check finds nothing");
        match seen(bytes) {
            None => 0,
            Some((number, digest, warning)) => {
                assert_eq!((number, digest), stage, "bit {bit}: another stage");
                assert!(warning || !live(bit as u64 / 8), "bit {bit} is part of the stage and was not noticed");
                if warning { 1 } else { 2 }
            }
        }
    };
    // Each flip is a whole reading, so all of them are shared out among the processors.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bits: Vec<usize> = (0..good.len() * 8).step_by(step(61)).collect();
    let counts = std::thread::scope(|s| {
        let share = |t: usize| {
            let (bits, flip) = (&bits, &flip);
            s.spawn(move || {
                bits.iter().skip(t).step_by(threads).fold([0; 3], |mut n, bit| {
                    n[flip(*bit)] += 1;
                    n
                })
            })
        };
        let all: Vec<_> = (0..threads).map(share).collect();
        all.into_iter().map(|t| t.join().expect("a flip that was not noticed")).collect::<Vec<_>>()
    });
    let [refused, warned, elsewhere] = std::array::from_fn(|i| counts.iter().map(|n| n[i]).sum::<usize>());
    let flips = refused + warned + elsewhere;
    println!(
        "{flips} flips: {refused} refused, {warned} read from the other superblock, {elsewhere} outside the stage; the full check found all"
    );
    assert!(refused > 0 && warned > 0 && elsewhere > 0 && flips >= good.len() * 8 / 61);
}

/// Zeros behind the last commit.
fn padding(bytes: &[u8]) -> u64 {
    bytes.iter().rev().take_while(|b| **b == 0).count() as u64
}

#[test]
fn every_prefix_is_refused_or_the_older_stage() {
    let good = bundle_bytes();
    let first = bundle().history().unwrap()[0].clone();
    // Where the first stage ends: with the page its commit ends in, where the second's sections begin.
    let ends = bundle().section_records().iter().map(|r| r.offset).find(|o| *o > first.offset).unwrap();
    // Both slots name the new stage: no prefix holds it. One still names the old one: those that hold that.
    for (file, both) in [(good.to_vec(), true), (interrupted(), false)] {
        let (mut prefixes, mut older) = (0, 0);
        for n in (0..file.len()).step_by(step(13)).chain([ends as usize - 1, ends as usize, file.len() - 1]) {
            prefixes += 1;
            let got = seen(file[..n].to_vec());
            if both || (n as u64) < ends {
                assert_eq!(got, None, "a prefix of {n} bytes was read");
            } else {
                assert_eq!(got, Some((1, first.digest.clone(), true)), "a prefix of {n} bytes");
                older += 1;
            }
        }
        println!("{prefixes} prefixes, {older} read as the older stage");
    }
}
