//! Every cap, at the cap and one beyond; and what reading takes at the caps.
//!
//! Caps of one small file each (a manifest of 4 MiB + 1, 2^32-1 sections, ...) are in the corpus.

use super::case::Kind;
use super::forge::{PAGE, bundle, bundle_bytes, commit_at, get, manifest, put, seal, with_manifest};
use super::gguf::Raw;
use super::heap::cost;
use conpet_formats::Code::{self, Cap, Layout, Shape, Text, Value};
use conpet_formats::bundle::manifest::{HeadEntry, Manifest, ModuleEntry, TaskEntry};
use conpet_formats::bundle::{COMMA_CAP, COMMIT_CAP, MANIFEST_CAP, SECTION_CAP, SectionKind, check_manifest};
use conpet_formats::gguf::{Gguf, TRAILING_CAP};
use conpet_formats::mmap::Mapped;
use conpet_formats::tensors::{HEADER_CAP, Tensors, TensorsWriter};
use std::ops::Range;

/// Reads a file and compares; returns the heap it took.
fn read(kind: Kind, bytes: Vec<u8>, want: Result<(), Code>, what: &str) -> usize {
    let map = Mapped::from_vec(bytes);
    let (got, cost) = cost(|| kind.read(map));
    assert_eq!(got.map(|_| ()).map_err(|e| e.code()), want, "{what}");
    cost.peak
}

/// The good bundle's manifest with `n` bytes more, in entries of `ext`.
fn padded(n: usize) -> Vec<u8> {
    let text = std::str::from_utf8(manifest(bundle_bytes())).unwrap();
    // An entry is `"000000":"xx",` at most 256 + 12 bytes, the last without its comma.
    let (mut ext, mut left, mut i) = (String::new(), n + 1, 0);
    while left > 0 {
        let len = if left > 600 {
            256
        } else if left > 268 {
            left / 2 - 12
        } else {
            left - 12
        };
        ext += &format!("\"{i:06}\":\"{}\",", "x".repeat(len));
        (left, i) = (left - len - 12, i + 1);
    }
    text.replacen("\"ext\":{}", &format!("\"ext\":{{{}}}", ext.trim_end_matches(',')), 1).into_bytes()
}

#[test]
fn a_manifest_has_4_mib() {
    let room = MANIFEST_CAP as usize - manifest(bundle_bytes()).len();
    for (more, want) in [(room, Ok(())), (room + 1, Err(Cap))] {
        let text = padded(more);
        assert_eq!(text.len(), manifest(bundle_bytes()).len() + more);
        let peak = read(Kind::Bundle, with_manifest(bundle_bytes(), &text), want, "manifest");
        assert!(peak < 64 << 20, "{peak} bytes of heap");
    }
}

/// The most that a manifest of 4 MiB can make of itself: the shortest strings, the shortest entries, as many
/// as fit and as many as are read.
#[test]
fn a_manifest_of_small_things_stays_small() {
    let text = std::str::from_utf8(manifest(bundle_bytes())).unwrap();
    for (field, entry) in [
        ("\"labels\":[", "\"\","),
        ("\"file_blake3\":[", "\"\","),
        ("\"tasks\":[0", ",0"),
        ("\"target_sets\":{", "\"#####\":[],"),
        ("\"q1\":[", "\"\","),
        ("\"ensemble\":[", "0,"),
        ("\"ext\":{", "\"#####\":\"\","),
        ("\"train\":{", "\"#####\":\"\","),
        ("\"parts\":[", "{\"layer\":0,\"pool\":\"min\"},"),
        ("\"requires\":[", "\"\","),
    ] {
        let fit = (MANIFEST_CAP as usize - text.len() - 100) / entry.len();
        for n in [fit, fit.min((COMMA_CAP - 1000) / entry.matches(',').count())] {
            small(text, field, entry, n);
        }
    }
    assert_eq!(read_commas(COMMA_CAP), Code::Value, "as many commas as there may be: then it is no JSON");
    assert_eq!(read_commas(COMMA_CAP + 1), Cap);
}

/// The code for a manifest of commas.
fn read_commas(n: usize) -> Code {
    let map = Mapped::from_vec(with_manifest(bundle_bytes(), &vec![b','; n]));
    Kind::Bundle.read(map).unwrap_err().code()
}

fn small(text: &str, field: &str, entry: &str, n: usize) {
    let list: String = (0..n).map(|i| entry.replace("#####", &format!("{i:05x}"))).collect();
    let text = match field {
        "\"ensemble\":[" => {
            text.replacen("{\"head\"", &format!("{{\"ensemble\":[{}],\"head\"", list.trim_end_matches(',')), 1)
        }
        "\"ext\":{" => text.replacen(field, &format!("{field}{}", list.trim_end_matches(',')), 1),
        _ => text.replacen(field, &format!("{field}{list}"), 1),
    };
    let map = Mapped::from_vec(with_manifest(bundle_bytes(), text.as_bytes()));
    let (_, cost) = cost(|| Kind::Bundle.read(map));
    println!("{field} {entry}: {} bytes at most", cost.peak);
    assert!(cost.peak < 64 << 20, "{field} x {n}: {cost:?}");
}

/// The good bundle's last commit with ignorable sections of one byte added up to `n`.
fn sections(n: usize) -> Vec<u8> {
    let good = bundle_bytes();
    let at = commit_at(good);
    let old = get(good, at + 56, 4) as usize;
    let commit = at + (n - old) * PAGE;
    let mut table = good[at..at + 144 + old * 96].to_vec();
    for i in 0..n - old {
        let mut r = [0; 96];
        put(&mut r, 0, blake3::hash(&[0]).as_bytes());
        put(&mut r, 32, &((at + i * PAGE) as u64).to_le_bytes());
        put(&mut r, 40, &1u64.to_le_bytes());
        put(&mut r, 48, &0x8099u16.to_le_bytes());
        table.extend(r);
    }
    put(&mut table, 56, &(n as u32).to_le_bytes());
    let mut out = vec![0; commit + table.len()];
    out[..at].copy_from_slice(&good[..at]);
    out[commit..].copy_from_slice(&table);
    for slot in [0, PAGE] {
        put(&mut out, slot + 40, &(commit as u64).to_le_bytes());
    }
    with_manifest(&out, manifest(good))
}

#[test]
fn a_stage_has_16_384_sections() {
    let n = SECTION_CAP as usize;
    // The file of 64 MiB is read twice over by the corpus' reader; the table is what is looked at here.
    for (n, want) in [(n, Ok(())), (n + 1, Err(Cap))] {
        let bytes = sections(n);
        let opened = || conpet_formats::bundle::Bundle::from_bytes(bytes, std::path::Path::new("x.cpb"));
        let (got, cost) = cost(opened);
        assert_eq!(got.map(|b| b.section_records().len()).map_err(|e| e.code()), want.map(|()| n));
        assert!(cost.peak < 16 << 20, "{cost:?}");
    }
}

#[test]
fn a_commit_has_8_mib() {
    let mut bytes = bundle_bytes().to_vec();
    for (len, code) in [(COMMIT_CAP, Code::Truncated), (COMMIT_CAP + 1, Cap)] {
        for slot in [0, PAGE] {
            put(&mut bytes, slot + 48, &(len as u32).to_le_bytes());
            put(&mut bytes, slot + 56, &(1u64 << 40).to_le_bytes());
        }
        seal(&mut bytes);
        [0, PAGE].into_iter().for_each(|slot| super::forge::seal_slot(&mut bytes, slot));
        read(Kind::Bundle, bytes.clone(), Err(code), "commit");
    }
}

/// The good manifest changed, and the kinds of the sections it then needs.
fn check(change: impl FnOnce(&mut Manifest, &mut Vec<SectionKind>)) -> Result<(), Code> {
    let mut m = bundle().manifest().clone();
    let mut kinds: Vec<SectionKind> = bundle().section_records().iter().map(|r| r.kind).collect();
    change(&mut m, &mut kinds);
    check_manifest(&m, &kinds).map_err(|e| e.code())
}

/// Checks `at` and one more.
fn cap(what: &str, at: usize, code: Code, f: impl Fn(usize, &mut Manifest, &mut Vec<SectionKind>)) {
    for (n, want) in [(at, Ok(())), (at + 1, Err(code))] {
        assert_eq!(check(|m, kinds| f(n, m, kinds)), want, "{n} {what}");
    }
}

/// Every number in `range` as an entry.
fn fill<T>(list: &mut Vec<T>, range: Range<usize>, f: impl Fn(usize) -> T) {
    list.extend(range.map(f));
}

#[test]
fn lists_of_a_manifest_have_caps() {
    assert_eq!(check(|_, _| ()), Ok(()));
    cap("tasks", 4096, Cap, |n, m, _| {
        let like = TaskEntry {
            head: None,
            kind: conpet_formats::bundle::manifest::TaskKind::Generation,
            labels: Vec::new(),
            ..m.tasks[0].clone()
        };
        fill(&mut m.tasks, 2..n, |i| TaskEntry { id: i as u32, name: format!("t{i}"), ..like.clone() });
    });
    cap("modules", 4096, Cap, |n, m, kinds| {
        let (like, first) = (m.modules[0].clone(), kinds.len());
        let section = |i| (first + i - 2) as u32;
        fill(&mut m.modules, 2..n, |i| ModuleEntry { id: format!("m{i:04}"), section: section(i), ..like.clone() });
        fill(kinds, 2..n, |_| SectionKind::Module);
    });
    cap("heads", 4096, Cap, |n, m, kinds| {
        let (like, first) = (m.heads[0].clone(), kinds.len());
        let section = |i| (first + i - 2) as u32;
        fill(&mut m.heads, 2..n, |i| HeadEntry { id: format!("h{i:04}"), section: section(i), ..like.clone() });
        fill(kinds, 2..n, |_| SectionKind::Head);
    });
    // X06: and with the longest labels there are.
    cap("labels", 10_000, Cap, |n, m, _| {
        m.tasks[1].labels = (0..n).map(|i| format!("{i:0>256}")).collect();
        m.heads[1].classes = n as u32;
    });
    // The good manifest has a target set and an entry of `train`.
    cap("target sets", 16_384, Cap, |n, m, _| m.target_sets.extend((1..n).map(|i| (format!("a{i}"), Vec::new()))));
    cap("entries of train", 16_384, Cap, |n, m, _| {
        m.modules[0].train.extend((1..n).map(|i| (format!("a{i}"), String::new())));
    });
    cap("entries of ext", 16_384, Cap, |n, m, _| m.ext.extend((0..n).map(|i| (format!("a{i}"), String::new()))));
    cap("parts of a feature", 32, Cap, |n, m, _| {
        m.heads[0].feature.parts = vec![m.heads[0].feature.parts[0].clone(); n];
    });
}

#[test]
fn texts_and_numbers_of_a_manifest_have_caps() {
    cap("bytes of a label", 256, Cap, |n, m, _| m.tasks[0].labels[0] = "x".repeat(n));
    cap("bytes of a task's name", 256, Cap, |n, m, _| m.tasks[0].name = "x".repeat(n));
    cap("bytes of the base's name", 256, Cap, |n, m, _| m.base.name = "x".repeat(n));
    cap("bytes of the method", 256, Cap, |n, m, _| m.method = "x".repeat(n));
    cap("bytes in ext", 256, Cap, |n, m, _| drop(m.ext.insert("k".into(), "x".repeat(n))));
    cap("bytes of a site", 256, Cap, |n, m, _| *m.target_sets.get_mut("q1").unwrap() = vec!["x".repeat(n)]);
    cap("bytes of a template", 16 << 10, Cap, |n, m, _| {
        m.tasks[0].template = format!("{{input}}{}", "x".repeat(n - 7))
    });
    cap("layers of trunk", 512, Cap, |n, m, _| m.trunk = n as u32);
    cap("layers below a feature", 512, Value, |n, m, _| m.heads[0].feature.parts[0].layer = n as u32);
    cap("ranks", 4096, Value, |n, m, _| {
        let e = &mut m.modules[0];
        e.rank = Some(n as u32);
        e.alpha = Some(conpet_formats::decimal::Decimal::from_f64(2.0 * n as f64));
    });
}

/// A payload whose canonical header is as long as it can be, or one step of 64 bytes longer.
#[test]
fn a_payload_has_a_header_of_1_mib() {
    // The length prefix and the header together are a multiple of 64.
    let longest = HEADER_CAP / 64 * 64 - 8;
    let write = |names: usize, last: usize| {
        let mut w = TensorsWriter::new();
        for i in 0..names {
            let width = if i == 0 { last } else { 9 };
            w.add_u8(&format!("a{i:0>width$}"), &[1, 64], &[0; 64]).unwrap();
        }
        w.finish()
    };
    // As many tensors as fit, then a longer name up to the cap.
    let (mut names, mut many) = (1, HEADER_CAP / 50);
    while names + 1 < many {
        let mid = names.midpoint(many);
        if write(mid, 9).is_ok() { names = mid } else { many = mid }
    }
    let name = (9..128).take_while(|l| write(names, *l).is_ok()).last().unwrap();
    let bytes = write(names, name).unwrap();
    assert_eq!(get(&bytes, 0, 8) as usize, longest);
    let (got, cost) = cost(|| Tensors::parse(&bytes).map(|t| t.names().count()).map_err(|e| e.code()));
    assert_eq!(got, Ok(names));
    assert!(cost.peak < 16 * HEADER_CAP, "{cost:?} for {names} tensors");
    // Declared longer, it is refused before anything is read.
    for (len, code) in [(HEADER_CAP, Code::Truncated), (HEADER_CAP + 1, Cap)] {
        let mut bytes = bytes[..64].to_vec();
        put(&mut bytes, 0, &(len as u64).to_le_bytes());
        read(Kind::Module, bytes, Err(code), "header");
    }
}

#[test]
fn names_and_sizes_of_a_payload_have_caps() {
    for (n, want) in [(128, Ok(())), (129, Err(Text))] {
        let mut w = TensorsWriter::new();
        w.add_u8(&"n".repeat(n), &[1], &[0]).unwrap();
        read(Kind::Module, w.finish().unwrap(), want, "name");
    }
    for (n, want) in [(4, Ok(())), (5, Err(Shape))] {
        let mut w = TensorsWriter::new();
        w.add_u8("a", &vec![1; n], &[0]).unwrap();
        read(Kind::Module, w.finish().unwrap(), want, "dimensions");
    }
}

#[test]
fn a_gguf_has_caps() {
    let file = |keys: usize, tensors: usize| {
        let mut r = Raw::new(3, tensors as u64, keys as u64);
        for i in 0..keys {
            r = r.key(format!("{i:x}").as_bytes(), 7);
            r = r.byte(1);
        }
        for i in 0..tensors {
            r = r.tensor(format!("{i:x}").as_bytes(), &[8], 0, i as u64 * 32);
        }
        r.data(tensors * 32)
    };
    for (n, want) in [(65_536, Ok(())), (65_537, Err(Cap))] {
        let bytes = file(n, 0);
        let most = 4 * bytes.len() + (1 << 20);
        let peak = read(Kind::Gguf, bytes, want, "keys");
        assert!(peak <= most, "{n} keys take {peak} bytes");
        let bytes = file(0, n);
        let most = 4 * bytes.len() + (1 << 20);
        let peak = read(Kind::Gguf, bytes, want, "tensors");
        assert!(peak <= most, "{n} tensors take {peak} bytes");
    }
    for (n, want) in [(16 << 20, Ok(())), ((16 << 20) + 1, Err(Cap))] {
        let bytes = Raw::new(3, 0, 1).key(b"a", 8).str(&vec![b'x'; n]).data(0);
        assert!(read(Kind::Gguf, bytes, want, "a string") < 1 << 20);
    }
    for (n, want) in [(4 << 20, Ok(())), ((4 << 20) + 1, Err(Cap))] {
        let bytes = Raw::new(3, 0, 1).key(b"a", 9).u32(0).u64(n as u64);
        let bytes = [bytes.zeros(n), vec![0; 32]].concat();
        assert!(read(Kind::Gguf, bytes, want, "an array") < 1 << 20, "no copy of it");
    }
    for (n, want) in [(255, Ok(())), (256, Err(Text))] {
        read(Kind::Gguf, Raw::new(3, 0, 1).key(&vec![b'k'; n], 7).byte(1).data(0), want, "a key's name");
        read(Kind::Gguf, Raw::new(3, 1, 0).tensor(&vec![b't'; n], &[8], 0, 0).data(32), want, "a tensor's name");
    }
    for (n, want) in [(TRAILING_CAP as usize, Ok(())), (TRAILING_CAP as usize + 1, Err(Layout))] {
        read(Kind::Gguf, Raw::new(3, 1, 0).tensor(b"t", &[8], 0, 0).data(32 + n), want, "zeros behind the last tensor");
    }
    for (n, want) in [(1u64 << 46, Code::Truncated), ((1 << 46) + 1, Shape)] {
        read(Kind::Gguf, Raw::new(3, 1, 0).tensor(b"t", &[n], 0, 0).data(32), Err(want), "numbers of a tensor");
    }
}

#[test]
fn every_name_of_many_is_found() {
    let n = 4096;
    let mut r = Raw::new(3, n, 0);
    for i in 0..n {
        r = r.tensor(format!("t{i}").as_bytes(), &[8], 0, i * 32);
    }
    let bytes = r.data(n as usize * 32);
    let g = Gguf::parse(&bytes).unwrap();
    for i in 0..n {
        let t = g.tensor(&format!("t{i}")).unwrap();
        assert_eq!(t.offset, g.data_offset() as u64 + i * 32);
    }
    assert!(g.tensor("t").is_none() && g.tensor(&format!("t{n}")).is_none() && g.get("t0").is_none());
}

/// An update is mapped, not loaded: what applying it takes does not grow with it.
#[test]
fn an_update_takes_no_memory_of_its_size() {
    use conpet_formats::bundle::update::{ApplyOptions, Delta, apply, write_delta};
    use conpet_formats::bundle::{Bundle, Draft};
    use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
    use conpet_formats::tiny;
    let peaks = [1, 40].map(|mib: usize| {
        let dir = tempfile::tempdir().unwrap();
        let [old, new, delta] = ["old.cpb", "new.cpb", "d"].map(|n| dir.path().join(n));
        let feature = || FeatureSpec::single(1, Pool::Mean, StateNorm::Output);
        let task =
            |d, name, n: usize| tiny::with_task(d, name, &["a", "b"], feature(), &vec![0.5; n], &[0.0; 2]).unwrap();
        task(Draft::new(tiny::no_base(), "dynamic", 1), "small", 64).create(&old).unwrap();
        std::fs::copy(&old, &new).unwrap();
        task(Draft::from_bundle(&Bundle::open(&new).unwrap()), "large", mib << 18).append(&new).unwrap();
        write_delta(&old, &new, &delta).unwrap();
        let trial = ApplyOptions { trial: true, trust: None };
        let (applied, cost) = cost(|| apply(&old, &Delta::open(&delta).unwrap(), trial));
        assert!(applied.unwrap().written > (mib as u64) << 20);
        cost.peak
    });
    println!("heap of updates of 1 and 40 MiB: {peaks:?} bytes");
    assert!(peaks[1] < 4 << 20 && peaks[1] < peaks[0] + (64 << 10), "{peaks:?} bytes");
}
