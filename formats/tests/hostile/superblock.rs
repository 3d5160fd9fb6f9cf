//! B: bundles whose superblocks are wrong.

use super::case::Kind::Bundle;
use super::case::{Case, Want};
use super::forge::{PAGE, base, bundle_bytes, get, put, seal_slot};
use Want::{Fine, Refused, Warned};
use conpet_formats::Code::{Cap, Digest, Layout, Magic, Reserved, Truncated, Version};

const A: [usize; 1] = [0];
const B: [usize; 1] = [PAGE];
const BOTH: [usize; 2] = [0, PAGE];

/// The good bundle with bytes of some slots changed, and their checksums made good.
pub(crate) fn slots(which: &[usize], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut out = bundle_bytes().to_vec();
    for slot in which {
        put(&mut out, slot + at, bytes);
        seal_slot(&mut out, *slot);
    }
    out
}

/// As the file was before its last stage was appended, for one slot.
fn older(file: &[u8], slot: usize) -> Vec<u8> {
    let at = get(file, 40, 8) as usize;
    let parent = get(file, at + 16, 8) as usize;
    let len = 144 + get(file, parent + 56, 4) as usize * 96 + get(file, parent + 60, 4) as usize;
    let mut out = file.to_vec();
    put(&mut out, slot + 32, &(get(file, 32, 8) - 1).to_le_bytes());
    put(&mut out, slot + 40, &(parent as u64).to_le_bytes());
    put(&mut out, slot + 48, &(len as u32).to_le_bytes());
    put(&mut out, slot + 56, &((parent + len).next_multiple_of(PAGE) as u64).to_le_bytes());
    put(&mut out, slot + 64, blake3::hash(&file[parent..parent + len]).as_bytes());
    put(&mut out, slot + 96, &(get(file, 96, 8) - 1).to_le_bytes());
    seal_slot(&mut out, slot);
    out
}

/// Slot A as the last append left it, slot B as it was before: an append cut short.
pub(crate) fn interrupted() -> Vec<u8> {
    older(bundle_bytes(), PAGE)
}

pub(crate) fn cases() -> Vec<Case> {
    let good = bundle_bytes();
    let end = good.len() as u64;
    let case = |id, what: &str, bytes, want| Case::new(Bundle, id, what, bytes, want);
    let le = u64::to_le_bytes;
    let mut broken = good.to_vec();
    put(&mut broken, 8, &2u16.to_le_bytes());
    let crc = |which: &[usize]| {
        let mut out = good.to_vec();
        which.iter().for_each(|slot| out[slot + 124] ^= 1);
        out
    };
    let at = get(good, 40, 8);
    let mut c = vec![
        case("B01", "an empty file", Vec::new(), Refused(Magic)),
        case("B01", "one byte", vec![0x89], Refused(Magic)),
        case("B02", "8191 bytes", good[..8191].to_vec(), Refused(Truncated)),
        case("B02", "12287 bytes", good[..12_287].to_vec(), Refused(Truncated)),
        case("B03", "line ends changed", [&good[..4], b"\n", &good[6..], b"\0"].concat(), Refused(Magic)),
        case("B03", "LF became CRLF", [&good[..6], b"\r\n", &good[7..]].concat(), Refused(Magic)),
        case("B04", "major version 2", slots(&BOTH, 8, &[2, 0]), Refused(Version)).in_section("superblock A").at(8),
        case("B04", "major version 0", slots(&BOTH, 8, &[0, 0]), Refused(Version)),
        case("B04", "major version 2 in A only", slots(&A, 8, &[2, 0]), Warned),
        case("B05", "minor version 9", slots(&BOTH, 10, &[9, 0]), Fine),
        case("B07", "a bad checksum in A", crc(&A), Warned),
        case("B07", "a bad checksum in B", crc(&B), Warned),
        case("B08", "two bad checksums", crc(&BOTH), Refused(Digest)).in_section("superblock A").at(124),
        case("B09", "equal numbers, another content", slots(&A, 96, &le(get(good, 96, 8) + 1)), Refused(Layout)),
        case("B10", "the last sequence number", slots(&BOTH, 32, &[0xff; 8]), Fine),
        case("B11", "a commit off its page", slots(&BOTH, 40, &le(at + 1)), Refused(Layout)).at(40),
        case("B11", "a commit in the superblock", slots(&BOTH, 40, &le(4096)), Refused(Layout)).at(40),
        case("B11", "a commit at 0", slots(&BOTH, 40, &le(0)), Refused(Layout)).at(40),
        case("B12", "a commit at 2^64-4096", slots(&BOTH, 40, &le(u64::MAX - 4095)), Refused(Layout)).at(40),
        case("B13", "a commit of no bytes", slots(&BOTH, 48, &[0; 4]), Refused(Layout)).at(40),
        case("B13", "a commit of 2^32-1 bytes", slots(&BOTH, 48, &[0xff; 4]), Refused(Layout)).at(40),
        case("B14", "an end beyond the file", slots(&BOTH, 56, &le(end + 4096)), Refused(Truncated)).at(56),
        case("B14", "an end of 2^64-1", slots(&BOTH, 56, &[0xff; 8]), Refused(Truncated)),
        case("B14", "an end beyond the file in A only", slots(&A, 56, &le(end + 4096)), Warned),
        case("B14", "an end before the commit's", slots(&BOTH, 56, &le(at)), Refused(Layout)).at(40),
        case("B15", "another commit's digest", slots(&BOTH, 64, &[7; 32]), Refused(Digest)),
        case("B15", "another commit's digest in A only", slots(&A, 64, &[7; 32]), Warned),
        case("B16", "A one ahead of B", interrupted(), Warned),
        case("B16", "B one ahead of A", older(good, 0), Warned),
        case("B17", "another file's superblock in B", slots(&B, 16, &[7; 16]), Refused(Layout)),
        case(
            "B17",
            "another file's newer superblock in A",
            {
                let mut out = slots(&A, 16, &[7; 16]);
                put(&mut out, 32, &le(99));
                seal_slot(&mut out, 0);
                out
            },
            Refused(Layout),
        ),
        case("X09", "a base as a bundle", base().to_vec(), Refused(Magic)).at(0),
    ];
    // Big enough that only the cap refuses it.
    let mut large = slots(&BOTH, 48, &((8u32 << 20) + 1).to_le_bytes());
    for slot in BOTH {
        put(&mut large, slot + 56, &le(1 << 40));
        seal_slot(&mut large, slot);
    }
    c.push(case("B13", "a commit of 8 MiB + 1", large, Refused(Cap)).at(48));
    // What a newer superblock may not take back: the end, and the largest number given.
    for (what, at) in [("end", 56), ("largest stage", 96)] {
        let mut out = interrupted();
        put(&mut out, PAGE + at, &le(end * 64));
        put(&mut out, at, &le(if at == 56 { end } else { 2 }));
        if at == 56 {
            // The older slot must be valid in itself: the file has grown to its end.
            out.resize(end as usize * 64, 0);
        }
        BOTH.iter().for_each(|slot| seal_slot(&mut out, *slot));
        c.push(case("B14", &format!("a lower {what} than in the older slot"), out, Refused(Layout)).at(at as u64));
    }
    for at in [12, 15, 52, 104, 123, 128, 4095] {
        let bytes = slots(&BOTH, at, &[1]);
        c.push(
            case("B06", &format!("reserved byte {at}"), bytes, Refused(Reserved))
                .in_section("superblock A")
                .at(at as u64),
        );
    }
    c
}
