//! Bases in several files: read as one, or refused with the file and the fault.

use super::*;
use crate::bundle::manifest::BaseRef;
use crate::fingerprint::base_ref;
use crate::gguf::Whole;
use crate::tiny::{self, TinyConfig};
use tempfile::TempDir;

const COUNTED: usize = 3;

fn base() -> Vec<u8> {
    tiny::base(&TinyConfig::default()).unwrap()
}

/// A folder with the shards of a base.
fn folder(base: &[u8]) -> (TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let write = |(name, bytes): (String, Vec<u8>)| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let paths = tiny::split(base, "tiny", COUNTED).unwrap().into_iter().map(write).collect();
    (dir, paths)
}

fn fingerprint(path: &Path) -> BaseRef {
    base_ref(&Shards::open(path).unwrap().gguf().unwrap()).unwrap()
}

/// The error of opening a base by its first shard.
fn refused(path: &Path) -> Error {
    let e = Shards::open(path).and_then(|s| s.gguf().map(drop)).unwrap_err();
    assert!(e.file().is_some() && e.remedy() != "", "{e}");
    e
}

/// Replaces bytes behind the first `what` of a file.
fn edit(path: &Path, what: &str, skip: usize, to: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(what.len()).position(|w| w == what.as_bytes()).unwrap() + what.len() + skip;
    bytes[at..at + to.len()].copy_from_slice(to);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn any_shard_names_the_base_and_all_are_read_as_one() {
    let whole = base();
    let one = Gguf::parse(&whole).unwrap();
    let (_dir, paths) = folder(&whole);
    for path in &paths {
        let files = Shards::open(path).unwrap();
        assert_eq!((files.len(), files.path()), (COUNTED, paths[0].as_path()));
        let gguf = files.gguf().unwrap();
        assert_eq!(gguf.tensors().len(), one.tensors().len());
        for t in one.tensors() {
            let here = gguf.tensor(t.name).unwrap();
            assert!((here.ty, here.ne) == (t.ty, t.ne) && gguf.data(here) == one.data(t), "{}", t.name);
            let (map, range) = files.locate(gguf.data(here));
            assert_eq!(&map[range.clone()], one.data(t));
            assert_eq!((map.as_ptr(), range.start as u64), (files.map(here.file).as_ptr(), here.offset));
        }
        assert!(one.metadata().all(|(key, value)| gguf.get(key) == Some(value)));
        assert_eq!(files.whole_path(), path.with_file_name("tiny.gguf"));
    }
}

#[test]
fn a_split_base_is_the_base_that_was_split() {
    let whole = base();
    let (dir, paths) = folder(&whole);
    let file = dir.path().join("whole.gguf");
    std::fs::write(&file, &whole).unwrap();
    let want = fingerprint(&file);
    let files = Shards::open(&paths[1]).unwrap();
    let pieces = Whole::of(&files.gguf().unwrap()).pieces().collect::<Vec<_>>().concat();
    assert!(pieces == whole, "the file in one piece is the file before it was split");
    assert_eq!(fingerprint(&paths[0]), want);
    // Joined again by llama.cpp, it keeps the keys, with a count of 0.
    let (name, joined) = tiny::split(&whole, "joined", 1).unwrap().remove(0);
    let joined_path = dir.path().join(name);
    std::fs::write(&joined_path, joined).unwrap();
    edit(&joined_path, COUNT, 4, &[0, 0]);
    assert_ne!(std::fs::read(&joined_path).unwrap().len(), whole.len());
    assert_eq!(fingerprint(&joined_path), want);
    // Each byte counts, in whichever shard it lies.
    for path in &paths {
        let good = std::fs::read(path).unwrap();
        let gguf = Gguf::parse(&good).unwrap();
        let at = gguf.tensors().last().unwrap().offset as usize;
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(path, bad).unwrap();
        assert_ne!(fingerprint(&paths[0]).file_blake3, want.file_blake3, "{}", path.display());
        std::fs::write(path, good).unwrap();
    }
}

#[test]
fn what_is_not_all_shards_of_one_base_is_refused_by_file_and_fault() {
    let case = |spoil: &dyn Fn(&[PathBuf]), code: Code, shard: usize, fault: &str| {
        let (_dir, paths) = folder(&base());
        spoil(&paths);
        let e = refused(&paths[0]);
        let file = e.file().unwrap();
        assert!(e.code() == code && e.brief().contains(fault), "{fault}: {e}");
        assert_eq!(file, paths[shard].display().to_string(), "{e}");
    };
    case(&|p| std::fs::remove_file(&p[2]).unwrap(), Code::Missing, 2, "shard 3 of 3 is missing");
    case(&|p| std::fs::write(&p[1], b"").unwrap(), Code::Truncated, 1, "empty");
    case(
        &|p| {
            let bytes = std::fs::read(&p[2]).unwrap();
            std::fs::write(&p[2], &bytes[..bytes.len() - 64]).unwrap();
        },
        Code::Truncated,
        2,
        "beyond the file's",
    );
    case(
        &|p| assert!(std::fs::copy(&p[1], &p[2]).is_ok()),
        Code::Value,
        2,
        "split.no: 1, but by the file's name it is 2",
    );
    case(&|p| edit(&p[1], COUNT, 4, &[4, 0]), Code::Value, 1, "split.count: 4, but by the file's name it is 3");
    case(&|p| edit(&p[1], TENSORS, 4, &[99]), Code::Value, 1, "split.tensors.count: the first shard says otherwise");
    case(
        &|p| p.iter().for_each(|p| edit(p, TENSORS, 4, &[99])),
        Code::Value,
        0,
        "99, but the 3 shards hold 38 tensors",
    );
    // The same shard twice, under another number.
    case(
        &|p| {
            std::fs::copy(&p[1], &p[2]).unwrap();
            edit(&p[2], NO, 4, &[2, 0]);
            let tensors = |p: &PathBuf| Gguf::parse(&std::fs::read(p).unwrap()).unwrap().tensors().len();
            let n = p.iter().map(tensors).sum::<usize>() as u32;
            p.iter().for_each(|p| edit(p, TENSORS, 4, &n.to_le_bytes()));
        },
        Code::Duplicate,
        2,
        "an earlier shard has this tensor too",
    );
    // A shard of another model, whose splitter repeated the name of its family.
    case(
        &|p| {
            let bytes = std::fs::read(&p[1]).unwrap();
            let gguf = Gguf::parse(&bytes).unwrap();
            let mut named = crate::gguf::Writer::new();
            named.str("general.architecture", "gemma3");
            let mut header = Vec::new();
            named.finish(&mut header, |_| Ok([])).unwrap();
            let named = Gguf::parse(&header).unwrap();
            let entries: Vec<_> = (0..3).map(|i| gguf.raw_entry(i)).chain([named.raw_entry(0)]).collect();
            let other = Whole::build(&gguf, &entries, 0..gguf.tensors().len());
            std::fs::write(&p[1], other.pieces().collect::<Vec<_>>().concat()).unwrap();
        },
        Code::Value,
        1,
        "key general.architecture: the first shard says otherwise",
    );
}

#[test]
fn a_shard_under_another_name_is_refused_and_a_whole_file_may_have_any_name() {
    let whole = base();
    let (dir, paths) = folder(&whole);
    let alone = dir.path().join("model.gguf");
    std::fs::copy(&paths[1], &alone).unwrap();
    let e = refused(&alone);
    assert!(e.message().contains("shard 2 of 3, but its file is not named so"), "{e}");
    assert!(e.remedy().contains("NAME-00001-of-00002.gguf"), "{e}");
    let odd = dir.path().join("notes-00001-of-00007.gguf");
    std::fs::write(&odd, &whole).unwrap();
    assert_eq!(fingerprint(&odd), base_ref(&Gguf::parse(&whole).unwrap()).unwrap());
    for (name, parts) in [
        ("a-00002-of-00003.gguf", Some(("a", 2, 3))),
        ("a-b-00001-of-00001.gguf", Some(("a-b", 1, 1))),
        ("a-00000-of-00003.gguf", None),
        ("a-00004-of-00003.gguf", None),
        ("a-0001-of-00003.gguf", None),
        ("a-00001-of-00003.bin", None),
        ("a-+0001-of-00003.gguf", None),
        ("00001-of-00003.gguf", None),
    ] {
        let got = ShardName::of(Path::new(name));
        assert_eq!(got.as_ref().map(|n| (n.stem.to_str().unwrap(), n.no, n.count)), parts, "{name}");
    }
}
