//! C: bundles whose commit or section table is wrong, all digests being right.

use super::case::Kind::{Bundle, Whole};
use super::case::{Case, Want};
use super::forge::{PAGE, base, bundle_bytes, commit_at, get, put, seal};
use Want::{Fine, Refused, Warned};
use conpet_formats::Code::{self, Cap, Digest, Layout, Magic, Missing, Reserved, Truncated, Type, Unsupported, Value};

/// Offsets within a commit, and within a section record.
const STAGE: usize = 8;
const PARENT: usize = 16;
const PARENT_HASH: usize = 24;
const PREVIOUS: usize = 68;
const TABLE: usize = 144;
const RECORD: usize = 96;

/// The good bundle with bytes of its commit changed, and all digests made good.
fn spoiled(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut out = bundle_bytes().to_vec();
    put(&mut out, commit_at(bundle_bytes()) + at, bytes);
    seal(&mut out);
    out
}

/// A field of a section's record changed.
fn record(section: usize, at: usize, bytes: &[u8]) -> Vec<u8> {
    spoiled(TABLE + section * RECORD + at, bytes)
}

pub(crate) fn cases() -> Vec<Case> {
    let good = bundle_bytes();
    let at = commit_at(good);
    assert!(good[at..].starts_with(b"CPBCMT01"));
    let field = |i: usize, f: usize| get(good, at + TABLE + i * RECORD + f, 8);
    let le = u64::to_le_bytes;
    let case = |id, what: &str, bytes, want| Case::new(Bundle, id, what, bytes, want);
    let refused =
        |id, what: &str, bytes, code: Code, offset: usize| case(id, what, bytes, Refused(code)).at(offset as u64);
    let place = |section: usize| TABLE + section * RECORD + 32;
    let (kind, codec, flags, tree) = (48, 50, 52, 56);
    let mut c = vec![
        refused("C01", "2^32-1 sections", spoiled(56, &[0xff; 4]), Cap, 56),
        refused("C01", "16,385 sections", spoiled(56, &16_385u32.to_le_bytes()), Cap, 56),
        refused("C01", "more sections than fit", spoiled(56, &16_384u32.to_le_bytes()), Truncated, 56),
        refused("C01", "a manifest of 2^32-1 bytes", spoiled(60, &[0xff; 4]), Cap, 60),
        case(
            "C01",
            "a manifest one byte longer",
            spoiled(60, &(get(good, at + 60, 4) as u32 + 1).to_le_bytes()),
            Refused(Truncated),
        ),
        case(
            "C01",
            "a manifest one byte shorter",
            spoiled(60, &(get(good, at + 60, 4) as u32 - 1).to_le_bytes()),
            Refused(Layout),
        ),
        refused("C02", "an offset and a length that wrap", record(1, 32, &le(u64::MAX - 4095)), Layout, place(1)),
        refused("C02", "a length of 2^64-1", record(1, 40, &[0xff; 8]), Layout, place(1)),
        refused("C03", "two sections in one page", record(1, 32, &le(field(0, 32))), Layout, place(1)),
        refused(
            "C03",
            "a section one byte into the next",
            record(0, 40, &le(field(1, 32) - field(0, 32) + 1)),
            Layout,
            place(1),
        ),
        refused("C04", "a section in the superblock", record(0, 32, &le(4096)), Layout, place(0)),
        refused("C04", "a section at 0", record(0, 32, &le(0)), Layout, place(0)),
        refused("C05", "a section that is the commit", record(5, 32, &le(at as u64)), Layout, place(5)),
        refused("C05", "a section into the commit", record(5, 40, &le(at as u64 - field(5, 32) + 1)), Layout, place(5)),
        refused("C05", "a section beyond the file", record(5, 32, &le(1 << 40)), Layout, place(5)),
        refused("C07", "a section of no bytes", record(1, 40, &le(0)), Layout, place(1)),
        refused("C07", "a section off its page", record(1, 32, &le(field(1, 32) + 64)), Layout, place(1)),
        refused("C11", "an unknown kind", record(1, kind, &9u16.to_le_bytes()), Type, TABLE + RECORD),
        refused("C11", "kind 0", record(1, kind, &[0, 0]), Type, TABLE + RECORD),
        case(
            "C11",
            "an ignorable kind in place of the statistics",
            record(5, kind, &0x8055u16.to_le_bytes()),
            Refused(Type),
        ),
        refused("C12", "codec 1", record(1, codec, &[1, 0]), Unsupported, TABLE + RECORD),
        refused("C12", "flags", record(1, flags, &[1]), Reserved, TABLE + RECORD),
        refused(
            "C15",
            "a chunk tree, which this release does not know",
            record(1, tree, &[7; 32]),
            Reserved,
            TABLE + RECORD,
        ),
        refused("C15", "the bytes behind the chunk tree", record(1, 95, &[1]), Reserved, TABLE + RECORD),
        refused("C15", "reserved bytes of the commit", spoiled(76, &[1]), Reserved, 76),
        case("C13", "another parent's digest", spoiled(PARENT_HASH, &[7; 32]), Refused(Digest)),
        refused("C13", "a parent without a digest", spoiled(PARENT_HASH, &[0; 32]), Layout, 8),
        refused("C13", "a digest without a parent", spoiled(PARENT, &[0; 8]), Layout, 8),
        refused("C14", "its own parent", spoiled(PARENT, &le(at as u64)), Layout, 8),
        refused("C14", "a parent that comes later", spoiled(PARENT, &le(at as u64 + 4096)), Layout, 8),
        refused("C14", "a parent at 2^64-1", spoiled(PARENT, &[0xff; 8]), Layout, 8),
        case("C14", "a parent in the superblock", spoiled(PARENT, &le(4096)), Refused(Layout)),
        case("C14", "a parent off its page", spoiled(PARENT, &le(8193)), Refused(Layout)),
        case("C14", "a parent that is a section", spoiled(PARENT, &le(8192)), Refused(Truncated)),
        refused("C14", "itself as the commit before", spoiled(PREVIOUS, &le(at as u64)), Layout, 8),
        refused("C14", "stage 0", spoiled(STAGE, &le(0)), Layout, 8),
        case("C14", "another stage number than the manifest's", spoiled(STAGE, &le(7)), Refused(Value)),
        case(
            "C16",
            "a signature of 200 bytes that are not there",
            spoiled(64, &200u32.to_le_bytes()),
            Refused(Truncated),
        ),
        case("C16", "a signature over the cap", spoiled(64, &1025u32.to_le_bytes()), Refused(Cap)).at(64),
        case("C16", "a signature of 2^32-1 bytes", spoiled(64, &[0xff; 4]), Refused(Cap)).at(64),
        case("C01", "no magic", spoiled(0, b"CPBCMT02"), Refused(Magic)).at(0),
        case("C06", "a section less", dropped(), Refused(Missing)),
    ];
    // The table's order: two records changed for each other.
    let table = |i: usize| at + TABLE + i * RECORD;
    let mut swapped = good.to_vec();
    let (first, second) = (good[table(0)..table(1)].to_vec(), good[table(1)..table(2)].to_vec());
    put(&mut swapped, table(0), &second);
    put(&mut swapped, table(1), &first);
    seal(&mut swapped);
    c.push(refused("C06", "sections in another order", swapped, Layout, place(1)));
    // A chain in which the parent is no older: the parent's number is 1, so the child's becomes 1.
    let manifest = super::forge::manifest(good).to_vec();
    let text = String::from_utf8(manifest)
        .unwrap()
        .replace("\"generation\":2", "\"generation\":1")
        .replace("\"stage\":2", "\"stage\":1");
    let mut same = super::forge::with_manifest(good, text.as_bytes());
    put(&mut same, at + STAGE, &le(1));
    seal(&mut same);
    c.push(case("C14", "the stage number of its parent", same, Refused(Layout)));
    // What `open` need not look at, the full check must find.
    let pad = (field(0, 32) + field(0, 40)) as usize;
    assert!(!pad.is_multiple_of(PAGE), "the first section has padding behind it");
    for (what, at) in
        [("a section", pad), ("the page of a section", pad.next_multiple_of(PAGE) - 1), ("the commit", good.len() - 1)]
    {
        let mut hidden = good.to_vec();
        hidden[at] = 1;
        c.push(Case::new(Whole, "C08", format!("a byte hidden behind {what}"), hidden, Refused(Reserved)));
    }
    let page = [good, &[7; PAGE]].concat();
    let mut claimed = page.clone();
    for slot in [0, PAGE] {
        put(&mut claimed, slot + 56, &le(page.len() as u64));
        super::forge::seal_slot(&mut claimed, slot);
    }
    c.push(Case::new(Whole, "C08", "a page that belongs to nothing", claimed, Refused(Layout)));
    for (what, tail) in [("a ZIP", b"PK\x03\x04\x14\0".as_slice()), ("a PDF", b"%PDF-1.7\n"), ("a GGUF", base())] {
        let bytes = [good, tail].concat();
        c.push(Case::new(Whole, "C17", format!("{what} behind the end, told"), bytes.clone(), Warned));
        c.push(case("C17", &format!("{what} behind the end, not read"), bytes, Fine));
    }
    c
}

/// The table without its last record, the manifest still naming it.
fn dropped() -> Vec<u8> {
    let good = bundle_bytes();
    let at = commit_at(good);
    let n = get(good, at + 56, 4) as usize;
    let (table, manifest) = (at + TABLE + (n - 1) * RECORD, super::forge::manifest(good).to_vec());
    let mut out = good[..table].to_vec();
    put(&mut out, at + 56, &(n as u32 - 1).to_le_bytes());
    out.extend(&manifest);
    // Slots, lengths and digests follow.
    super::forge::with_manifest(&out, &manifest)
}
