//! C16 and U30: signatures that are missing, false, of another file, or by nobody known.

use super::{base, with_task};
use crate::bundle::update::{ApplyOptions, Delta, State, apply, start, write_delta};
use crate::bundle::*;
use crate::{Code, Result};
use minisign::KeyPair;
use std::path::PathBuf;

/// Two signers, `ours` in the trust file `trust`, and a bundle `b.cpb` of two tasks whose stage 3 is signed by us.
struct Place {
    dir: tempfile::TempDir,
    ours: KeyPair,
    theirs: KeyPair,
}

fn minisig(key: &KeyPair, text: &str) -> String {
    minisign::sign(None, &key.sk, text.as_bytes(), Some("made by a test"), None).unwrap().into_string()
}

impl Place {
    fn new() -> Self {
        let key = || KeyPair::generate_unencrypted_keypair().unwrap();
        let p = Self { dir: tempfile::tempdir().unwrap(), ours: key(), theirs: key() };
        let public = |k: &KeyPair| k.pk.to_box().unwrap().into_string();
        // As `cat alice.pub bob.pub > trust` gives it, with a remark.
        std::fs::write(p.at("trust"), format!("# fleet keys\n\n{}\n", public(&p.ours))).unwrap();
        std::fs::write(p.at("their trust"), public(&p.theirs)).unwrap();
        super::two_stages(&p.at("b.cpb"));
        std::fs::copy(p.at("b.cpb"), p.at("unsigned.cpb")).unwrap();
        p.sign("b.cpb").unwrap();
        p
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn trust(&self) -> Trust {
        Trust::open(&self.at("trust")).unwrap()
    }
    fn grow(&self, name: &str, task: &str) {
        let path = self.at(name);
        with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), task).append(&path).unwrap();
    }
    fn sign(&self, name: &str) -> Result<u64> {
        let text = signing_text(&self.at(name))?;
        self.sign_with(name, &minisig(&self.ours, &text))
    }
    fn sign_with(&self, name: &str, signature: &str) -> Result<u64> {
        std::fs::write(self.at("sig"), signature).unwrap();
        sign(&self.at(name), &self.at("sig"), &self.trust()).map(|(stage, _)| stage)
    }
    fn check(&self, name: &str) -> Result<String, Code> {
        let bundle = Bundle::open(&self.at(name)).unwrap();
        self.trust().check(&bundle).map(str::to_owned).map_err(|e| e.code())
    }
    /// Grows `new.cpb` from `b.cpb` by `how`, and applies the delta to a copy of `b.cpb`.
    fn update(&self, trust: Option<&Trust>, how: impl FnOnce(&Self)) -> Result<u64, Code> {
        for (from, to) in [("b.cpb", "new.cpb"), ("b.cpb", "box.cpb")] {
            std::fs::copy(self.at(from), self.at(to)).unwrap();
        }
        how(self);
        let _ = std::fs::remove_file(self.at("d"));
        write_delta(&self.at("b.cpb"), &self.at("new.cpb"), &self.at("d")).unwrap();
        let before = std::fs::read(self.at("box.cpb")).unwrap();
        let delta = Delta::open(&self.at("d")).unwrap();
        let done = apply(&self.at("box.cpb"), &delta, ApplyOptions { trial: true, trust });
        if done.is_err() {
            assert_eq!(std::fs::read(self.at("box.cpb")).unwrap(), before, "refused, and yet changed");
            assert!(!State::path(&self.at("box.cpb")).exists());
        }
        let _ = std::fs::remove_file(State::path(&self.at("box.cpb")));
        done.map(|d| d.now).map_err(|e| e.code())
    }
}

#[test]
fn a_signed_stage_is_the_same_stage_with_a_name_under_it() {
    let p = Place::new();
    let (signed, plain) = (Bundle::open(&p.at("b.cpb")).unwrap(), Bundle::open_stage(&p.at("b.cpb"), 2).unwrap());
    assert_eq!((signed.stage(), signed.section_records()), (3, plain.section_records()));
    assert_eq!(p.check("b.cpb"), Ok(p.ours.pk.to_base64()));
    assert_eq!(verify(&p.at("b.cpb"), true).unwrap(), []);
    let h = signed.history().unwrap();
    assert_eq!(h.iter().map(|s| s.signed).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(start(&p.at("b.cpb"), None, Some(&p.trust())).unwrap().stage(), 3);
    // A later stage can be signed too, and by several hands one after the other.
    p.grow("b.cpb", "three");
    assert_eq!(p.check("b.cpb"), Err(Code::Signature));
    assert_eq!(p.sign("b.cpb").unwrap(), 5);
    assert_eq!(p.sign("b.cpb").unwrap(), 6);
    assert!(p.check("b.cpb").is_ok());
}

#[test]
fn only_a_signature_of_this_text_by_a_trusted_key_is_kept() {
    let p = Place::new();
    let name = "unsigned.cpb";
    let before = std::fs::read(p.at(name)).unwrap();
    let text = signing_text(&p.at(name)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[2], lines.len()), ("conpet stage 1", "stage 3", 4));
    let good = minisig(&p.ours, &text);
    let cases = [
        ("by nobody known", minisig(&p.theirs, &text)),
        ("another text", minisig(&p.ours, &text.replace("stage 3", "stage 4"))),
        ("another file", minisig(&p.ours, &text.replace("file ", "file 0"))),
        ("cut short", good[..good.len() - 20].to_owned()),
        ("the first two lines only", good.lines().take(2).collect::<Vec<_>>().join("\n")),
        ("another trusted comment", good.replace("made by a test", "made by a pest")),
        ("empty", String::new()),
        ("text", "hello\n".into()),
    ];
    for (what, signature) in cases {
        assert_eq!(p.sign_with(name, &signature).unwrap_err().code(), Code::Signature, "{what}");
    }
    let long = minisign::sign(None, &p.ours.sk, text.as_bytes(), Some(&"x".repeat(2000)), None).unwrap();
    assert_eq!(p.sign_with(name, &long.into_string()).unwrap_err().code(), Code::Cap);
    assert_eq!(std::fs::read(p.at(name)).unwrap(), before);
    assert_eq!(p.sign_with(name, &good).unwrap(), 3);
    // The text is of a moment: the same signature does not fit what comes later.
    assert_eq!(p.sign_with(name, &good).unwrap_err().code(), Code::Signature);
}

/// A commit with another signature in it, everything else made right again.
fn with_signature(p: &Place, from: &str, to: &str, signature: &[u8]) {
    let bytes = std::fs::read(p.at(from)).unwrap();
    let (slot, _) = reader::current(&bytes).unwrap();
    let at = slot.commit_off as usize;
    let mut commit = commit::Commit::decode(&bytes[at..at + slot.commit_len as usize], slot.commit_off).unwrap();
    commit.signature = signature.to_vec();
    let encoded = commit.encode();
    let mut out = bytes[..at].to_vec();
    out.extend(&encoded);
    out.resize(out.len().next_multiple_of(PAGE as usize), 0);
    let new = superblock::Superblock {
        commit_len: encoded.len() as u32,
        commit_hash: *blake3::hash(&encoded).as_bytes(),
        end: out.len() as u64,
        ..slot
    };
    [0, PAGE as usize].into_iter().for_each(|i| out[i..i + PAGE as usize].copy_from_slice(&new.encode()));
    std::fs::write(p.at(to), out).unwrap();
}

/// C16: in the file itself, however well it is forged.
#[test]
fn c16_a_false_signature_is_refused_on_opening() {
    let p = Place::new();
    let good = Bundle::open(&p.at("b.cpb")).unwrap().signature().unwrap().to_vec();
    with_signature(&p, "b.cpb", "x.cpb", &good);
    assert!(p.check("x.cpb").is_ok(), "the helper itself is sound");
    // The signature of another bundle's stage of the same number.
    with_task(Draft::new(base(), "other", 1), "one").create(&p.at("other.cpb")).unwrap();
    p.grow("other.cpb", "two");
    p.sign("other.cpb").unwrap();
    let other = Bundle::open(&p.at("other.cpb")).unwrap().signature().unwrap().to_vec();
    let theirs = minisig(&p.theirs, "whatever").into_bytes();
    let cases: [(&str, &[u8]); 6] = [
        ("of another file", &other),
        ("truncated", &good[..good.len() - 9]),
        ("by an untrusted key", &theirs),
        ("taken away", b""),
        ("not text", &[0xff; 100]),
        ("one bit changed", &good.iter().enumerate().map(|(i, b)| b ^ u8::from(i == 90)).collect::<Vec<_>>()),
    ];
    for (what, signature) in cases {
        with_signature(&p, "b.cpb", "x.cpb", signature);
        assert_eq!(p.check("x.cpb"), Err(Code::Signature), "{what}");
        let e = start(&p.at("x.cpb"), None, Some(&p.trust())).unwrap_err();
        assert_eq!(e.code(), Code::Signature, "{what}");
    }
    with_signature(&p, "b.cpb", "x.cpb", &[b'x'; 1025]);
    assert_eq!(Bundle::open(&p.at("x.cpb")).unwrap_err().code(), Code::Cap, "longer than a signature may be");
    // A stage that is signed, with something else in it.
    let mut bytes = std::fs::read(p.at("b.cpb")).unwrap();
    let (slot, _) = reader::current(&bytes).unwrap();
    bytes[slot.commit_off as usize + 700] ^= 1;
    std::fs::write(p.at("x.cpb"), bytes).unwrap();
    assert_eq!(Bundle::open(&p.at("x.cpb")).unwrap_err().code(), Code::Digest);
}

/// U30: what comes over a network must be signed by the right key; refused, the old stage stays.
#[test]
fn u30_updates_that_are_not_vouched_for_are_refused() {
    let p = Place::new();
    let trust = p.trust();
    let signed = |p: &Place| {
        p.grow("new.cpb", "three");
        p.sign("new.cpb").unwrap();
    };
    assert_eq!(p.update(Some(&trust), signed), Ok(5));
    assert_eq!(p.update(None, signed), Ok(5));
    let unsigned = |p: &Place| p.grow("new.cpb", "three");
    assert_eq!(p.update(Some(&trust), unsigned), Err(Code::Signature));
    assert_eq!(p.update(None, unsigned), Err(Code::Signature), "unsigned after signed, even without a trust file");
    let other = Trust::open(&p.at("their trust")).unwrap();
    assert_eq!(p.update(Some(&other), signed), Err(Code::Signature), "by a key that is not trusted");
    // Signed, then grown further without a signature: the last stage counts.
    let grown = |p: &Place| {
        signed(p);
        p.grow("new.cpb", "four");
    };
    assert_eq!(p.update(Some(&trust), grown), Err(Code::Signature));
}

/// Without a trust file: signed once, always signed; unless someone names the stage.
#[test]
fn a_bundle_is_not_downgraded_in_silence() {
    let p = Place::new();
    let path = p.at("b.cpb");
    p.grow("b.cpb", "three");
    assert_eq!(start(&path, None, None).unwrap_err().code(), Code::Signature);
    assert_eq!(start(&path, Some(4), None).unwrap().stage(), 4);
    assert_eq!(start(&path, Some(4), Some(&p.trust())).unwrap_err().code(), Code::Signature);
    assert_eq!(start(&p.at("unsigned.cpb"), None, None).unwrap().stage(), 2, "never signed");
    assert_eq!(start(&p.at("unsigned.cpb"), None, Some(&p.trust())).unwrap_err().code(), Code::Signature);
    rollback(&path, 3).unwrap();
    assert_eq!(start(&path, None, None).unwrap().stage(), 3);
    // Damage in an old commit is for `verify` to report; it does not keep a box from answering.
    let mut bytes = std::fs::read(p.at("unsigned.cpb")).unwrap();
    let first = Bundle::open_stage(&p.at("unsigned.cpb"), 1).unwrap();
    bytes[first.commit_off as usize + 100] ^= 1;
    std::fs::write(p.at("x.cpb"), bytes).unwrap();
    assert_eq!(start(&p.at("x.cpb"), None, None).unwrap().stage(), 2);
    // Compaction cannot carry the signature over: it asks first.
    let options = CompactOptions::default();
    assert_eq!(compact(&path, options).unwrap_err().code(), Code::Signature);
    compact(&path, CompactOptions { drop_signature: true, ..options }).unwrap();
    assert_eq!(p.check("b.cpb"), Err(Code::Signature));
    p.sign("b.cpb").unwrap();
    assert!(p.check("b.cpb").is_ok());
}

#[test]
fn trust_files() {
    let p = Place::new();
    let open = |text: &[u8]| {
        std::fs::write(p.at("t"), text).unwrap();
        Trust::open(&p.at("t")).map(drop).map_err(|e| e.code())
    };
    let key = p.ours.pk.to_base64();
    assert_eq!(open(format!("{key}\r\n").as_bytes()), Ok(()));
    assert_eq!(open(b""), Err(Code::Signature));
    assert_eq!(open(b"# nobody yet\n"), Err(Code::Signature));
    assert_eq!(open(&key.as_bytes()[..50]), Err(Code::Signature));
    assert_eq!(open(b"\xff\xfe"), Err(Code::Text));
    assert_eq!(open(&vec![b'#'; 70_000]), Err(Code::Cap));
    assert_eq!(Trust::open(&p.at("absent")).unwrap_err().code(), Code::Io);
    assert!(Trust::find(Some(&p.at("trust"))).unwrap().is_some());
}
