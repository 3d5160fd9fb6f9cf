//! Fuzzes superblocks, commits, section tables and chains. An accepted file must keep the rules of
//! `docs/bundle-format.md`, as checked by a second, naive reader.

use crate::forge::{PAGE, bundle_bytes, commit_at, get, seal, seal_slot};
use crate::recipe;
use conpet_formats::bundle::{Bundle, verify_bytes};
use std::path::Path;

pub(crate) fn run(data: &[u8]) {
    let file = match recipe::raw(data) {
        Some(file) => file.to_vec(),
        None => spoiled(data),
    };
    let path = Path::new("x.cpb");
    if let Ok(b) = Bundle::from_bytes(file.clone(), path) {
        naive(&file, &b);
    }
    verify_bytes(file, path, true);
}

/// The good bundle with edits; half of the results get correct digests and checksums again.
pub(crate) fn spoiled(data: &[u8]) -> Vec<u8> {
    let mut u = recipe::recipe(data);
    let mut file = bundle_bytes().to_vec();
    let mode: u8 = u.arbitrary().unwrap_or(0);
    let (at, n) = (commit_at(&file), get(&file, commit_at(&file) + 56, 4) as usize);
    let slots = [8, 10, 12, 16, 32, 40, 48, 52, 56, 64, 96, 104, 124].map(|f| [f, f + PAGE]).concat();
    let header = [0, 8, 16, 24, 56, 60, 64, 68, 76, 80, 112].map(|f| at + f);
    let table = (0..n).flat_map(|i| [0, 32, 40, 48, 50, 52, 56, 88].map(|f| at + 144 + i * 96 + f));
    let fields: Vec<usize> = slots.into_iter().chain(header).chain(table).collect();
    recipe::edits(&mut u, &mut file, &fields);
    match mode % 4 {
        0 => {}
        1 => [0, PAGE].into_iter().for_each(|slot| seal_slot(&mut file, slot)),
        2 => seal(&mut file),
        _ => {
            // Copy slot A to slot B, so that an edit does not make them contradict each other.
            if file.len() >= 2 * PAGE {
                file.copy_within(..PAGE, PAGE);
            }
            seal(&mut file);
        }
    }
    file
}

/// Checks the rules on the bytes.
fn naive(file: &[u8], b: &Bundle) {
    let slots = [0, PAGE].into_iter().filter(|slot| {
        let (at, len) = (get(file, slot + 40, 8) as usize, get(file, slot + 48, 4) as usize);
        let bytes = at.checked_add(len).and_then(|end| file.get(at..end));
        let crc = file.get(*slot..slot + 124).map(crc32c::crc32c);
        let hash = bytes.map(|c| *blake3::hash(c).as_bytes());
        let reserved = [12..16, 52..56, 104..124, 128..PAGE].into_iter().flatten();
        let fixed = get(file, slot + 8, 2) == 1 && reserved.map(|i| file[slot + i]).all(|b| b == 0);
        let ends = get(file, slot + 56, 8);
        let whole = fixed && ends <= file.len() as u64 && at.saturating_add(len) as u64 <= ends;
        whole
            && crc.is_some_and(|c| u64::from(c) == get(file, slot + 124, 4))
            && hash.is_some_and(|h| {
                file[slot + 64..slot + 96] == h && blake3::Hash::from(h).to_hex().as_str() == b.digest()
            })
    });
    // Both slots may name the stage; only the newer one's end counts.
    let slot = slots.max_by_key(|slot| get(file, slot + 32, 8)).expect("no superblock names this stage");
    let at = get(file, slot + 40, 8);
    assert!(b.end() <= file.len() as u64 && b.end() == get(file, slot + 56, 8));
    assert!(at.is_multiple_of(4096) && at >= 8192 && at + get(file, slot + 48, 4) <= b.end());
    let mut end = 8192;
    for (i, r) in b.section_records().iter().enumerate() {
        assert!(r.offset >= end && r.offset.is_multiple_of(4096) && r.len > 0, "section {i}");
        end = r.offset + r.len;
        assert!(end <= at, "section {i}");
        let payload = &file[r.offset as usize..end as usize];
        assert_eq!(b.section(i as u32).is_ok(), *blake3::hash(payload).as_bytes() == r.hash, "section {i}");
    }
    super::manifest::canonical(file, at as usize, b);
    if let Ok(stages) = b.history() {
        assert!(stages.windows(2).all(|w| w[0].stage < w[1].stage && w[0].offset < w[1].offset));
        assert_eq!((stages[0].parent, stages[stages.len() - 1].stage), (0, b.stage()));
    }
}
