//! Fetching from a hub on the loopback interface: whole, cut, wrong, refused, shared and offline.

mod server;

use conpet_fetch::{Event, Hub, Name};
use conpet_formats::gguf::Shards;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_formats::{Code, Result};
use server::{COMMIT, Fault, Served, TOKEN, World};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const FILE: &str = "m-Q4_K_M.gguf";

/// Bytes that no shift or cut leaves the same.
fn content() -> Vec<u8> {
    (0..700_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

struct Place {
    world: World,
    cache: TempDir,
}

impl Place {
    fn new() -> Self {
        Self::of(vec![Served::small("README.md", b"hello"), Served::large(FILE, &content())])
    }

    fn of(files: Vec<Served>) -> Self {
        Self { world: World::new(files), cache: tempfile::tempdir().unwrap() }
    }

    fn hub(&self) -> Hub {
        let hub = Hub::new(&self.world.endpoint, self.cache.path()).unwrap().with_token(TOKEN).unwrap();
        hub.with_waits(Duration::from_millis(1), Duration::from_millis(300))
    }

    fn base(&self) -> Result<PathBuf> {
        self.named("o/n")
    }

    fn named(&self, name: &str) -> Result<PathBuf> {
        self.hub().base(&name.parse().unwrap(), None, &mut |_| ())
    }

    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--o--n")
    }

    fn incomplete(&self) -> PathBuf {
        self.repo().join("blobs").join(format!("{}.incomplete", Served::large(FILE, &content()).etag))
    }

    /// The names of all blobs.
    fn blobs(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.repo().join("blobs")).into_iter().flatten().flatten();
        names.map(|e| e.file_name().into_string().unwrap()).collect()
    }

    /// The ranges that were asked for, 0 for none.
    fn ranges(&self) -> Vec<u64> {
        let from = |v: Option<&String>| v.map_or(0, |v| v[6..v.len() - 1].parse().unwrap());
        self.world.storage.requests().iter().map(|r| from(r.headers.get("range"))).collect()
    }
}

fn is_right(path: &Path) {
    assert!(std::fs::read(path).unwrap() == content(), "{}", path.display());
}

#[test]
fn a_base_is_fetched_into_the_shared_layout_once() {
    let p = Place::new();
    let path = p.base().unwrap();
    is_right(&path);
    let etag = Served::large(FILE, &content()).etag;
    assert_eq!(path, p.repo().join("snapshots").join(COMMIT).join(FILE));
    assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("../../blobs").join(&etag));
    assert_eq!(std::fs::read_to_string(p.repo().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(p.blobs(), [etag]);
    assert_eq!(p.base().unwrap(), path);
    assert_eq!(p.world.storage.requests().len(), 1, "what is here is not fetched again");
    // Of a repository that was renamed, and of a small file, which has git's checksum.
    let small = p.hub().base(&"o/old".parse().unwrap(), Some(FILE), &mut |_| ()).unwrap();
    is_right(&small);
    let p = Place::of(vec![Served::small("deep/er/m b.gguf", b"GGUF")]);
    let path = p.base().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"GGUF");
    assert!(path.ends_with("deep/er/m b.gguf"));
}

#[test]
fn only_the_hub_sees_the_token() {
    let p = Place::new();
    p.base().unwrap();
    let bearer = format!("Bearer {TOKEN}");
    assert!(p.world.hub.requests().iter().all(|r| r.headers.get("authorization") == Some(&bearer)));
    let storage = p.world.storage.requests();
    assert!(!storage.is_empty() && storage.iter().all(|r| !r.headers.contains_key("authorization")));
    assert!(!format!("{:?}", p.hub()).contains(TOKEN));
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_ended() {
    let p = Place::new();
    p.world.storage.will(&[Fault::Cut(300_000), Fault::Status(503, ""), Fault::Cut(1), Fault::Cut(0)]);
    let (mut again, mut received) = (0, Vec::new());
    let mut tell = |e: Event<'_>| match e {
        Event::Again { .. } => again += 1,
        Event::Received(n) => received.push(n),
        _ => {}
    };
    let path = p.hub().base(&"o/n".parse().unwrap(), None, &mut tell).unwrap();
    is_right(&path);
    assert_eq!(p.ranges(), [0, 300_000, 300_000, 300_001, 300_001]);
    assert_eq!(*p.world.storage.sent.lock().unwrap(), content().len(), "no byte comes twice");
    assert!(again == 4 && received.is_sorted() && received.last() == Some(&(content().len() as u64)));
}

#[test]
fn a_process_that_died_left_what_it_had() {
    let p = Place::new();
    std::fs::create_dir_all(p.repo().join("blobs")).unwrap();
    std::fs::write(p.incomplete(), &content()[..123_456]).unwrap();
    is_right(&p.base().unwrap());
    assert_eq!(p.ranges(), [123_456]);
    // What it left is not what it should be: wrong, or too long.
    for left in [vec![7; 1000], vec![7; 900_000]] {
        let p = Place::new();
        std::fs::create_dir_all(p.repo().join("blobs")).unwrap();
        std::fs::write(p.incomplete(), left).unwrap();
        is_right(&p.base().unwrap());
        assert_eq!(p.ranges().last(), Some(&0));
    }
    // A server without ranges begins again.
    let p = Place::new();
    p.world.storage.will(&[Fault::Cut(400_000), Fault::NoRange]);
    is_right(&p.base().unwrap());
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    let p = Place::new();
    p.world.storage.will(&[Fault::Flip]);
    let e = p.base().unwrap_err();
    assert!(e.code() == Code::Digest && e.message().contains("SHA-256"), "{e}");
    assert_eq!(p.blobs(), [""; 0]);
    assert!(!p.repo().join("snapshots").exists() && !p.repo().join("refs").exists());
    is_right(&p.base().unwrap());
    // Fewer bytes than the hub says, and more.
    for size in [700_010, 699_990] {
        let p = Place::of(vec![Served { size, ..Served::large(FILE, &content()) }]);
        let e = p.base().unwrap_err();
        assert!(matches!(e.code(), Code::Io | Code::Digest), "{e}");
        assert!(!p.repo().join("snapshots").exists(), "{size}");
    }
}

#[test]
fn a_server_that_sends_nothing_is_left() {
    let p = Place::new();
    p.world.storage.will(&[Fault::Stall(200_000, Duration::from_secs(20))]);
    let begin = Instant::now();
    is_right(&p.base().unwrap());
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(p.ranges(), [0, 200_000]);
}

#[test]
fn what_the_hub_refuses_says_what_to_do() {
    let refused = |fault: Fault, token: bool| {
        let p = Place::new();
        p.world.hub.will(&[fault]);
        let hub = Hub::new(&p.world.endpoint, p.cache.path()).unwrap();
        let hub = if token { hub.with_token(TOKEN).unwrap() } else { hub };
        let e = hub.base(&"o/n".parse().unwrap(), None, &mut |_| ()).unwrap_err();
        assert_eq!(p.world.hub.requests().len(), 1, "it is not asked again");
        assert!(e.file().is_some_and(|f| f.contains("/o/n/")) && !e.to_string().contains(TOKEN), "{e}");
        e
    };
    let gone = refused(Fault::Status(404, "X-Error-Code: RepoNotFound"), false);
    assert!(gone.code() == Code::Missing && gone.message().contains("no such repository"), "{gone}");
    let hidden = refused(Fault::Status(401, "X-Error-Message: Invalid username or password."), false);
    assert!(hidden.message().contains("private or gated") && hidden.remedy().contains("HF_TOKEN"), "{hidden}");
    assert!(hidden.message().contains("Invalid username"), "{hidden}");
    let gated = refused(Fault::Status(401, "X-Error-Code: GatedRepo"), false);
    assert!(gated.message().contains("gated") && gated.remedy().contains("terms"), "{gated}");
    let not_yours = refused(Fault::Status(403, "X-Error-Code: GatedRepo"), true);
    assert!(not_yours.message().contains("this token"), "{not_yours}");
    let text = refused(Fault::Body("<html>captive portal</html>"), false);
    assert!(text.code() == Code::Value && text.remedy().contains("HF_ENDPOINT"), "{text}");
    let commit = refused(Fault::Body(r#"{"sha":"../../x","siblings":[]}"#), false);
    assert!(commit.message().contains("../../x"), "{commit}");
    let away = refused(Fault::Status(302, "Location: file:///etc/passwd"), false);
    assert!(away.message().contains("file:///etc/passwd"), "{away}");
}

#[test]
fn a_hub_in_trouble_is_asked_again_as_often_as_it_wants() {
    let p = Place::new();
    p.world.hub.will(&[Fault::Status(429, "Retry-After: 1"), Fault::Status(500, ""), Fault::Status(502, "")]);
    let begin = Instant::now();
    is_right(&p.base().unwrap());
    assert!(begin.elapsed() >= Duration::from_secs(1), "it asked for a second");
    let p = Place::new();
    p.world.hub.will(&[const { Fault::Status(500, "") }; 20]);
    let e = p.base().unwrap_err();
    assert!(e.code() == Code::Io && e.message().contains("HTTP 500"), "{e}");
    assert_eq!(p.world.hub.requests().len(), 5);
    let p = Place::new();
    p.world.storage.will(&[const { Fault::Cut(0) }; 20]);
    let e = p.base().unwrap_err();
    assert!(e.message().contains("cut after 0 of 700001 bytes") && e.remedy().contains("again"), "{e}");
    assert_eq!(p.world.storage.requests().len(), 5);
}

#[test]
fn two_at_once_fetch_it_once() {
    let p = Place::new();
    p.world.storage.will(&[Fault::Stall(100, Duration::from_millis(200))]);
    let waited = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let mut tell = |e: Event<'_>| {
                    if matches!(e, Event::Waiting { .. }) {
                        waited.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                };
                is_right(&p.hub().base(&"o/n".parse().unwrap(), None, &mut tell).unwrap());
            });
        }
    });
    assert_eq!(*p.world.storage.sent.lock().unwrap(), content().len());
    assert_eq!((p.blobs().len(), waited.into_inner()), (1, 3));
}

#[test]
fn offline_the_cache_is_enough_or_said_not_to_be() {
    let p = Place::new();
    let offline = || p.hub().with_offline(true).base(&"o/n".parse().unwrap(), None, &mut |_| ());
    let e = offline().unwrap_err();
    assert!(e.code() == Code::Missing && e.message().contains("not in the cache"), "{e}");
    let path = p.base().unwrap();
    let asked = p.world.hub.requests().len();
    assert_eq!(offline().unwrap(), path);
    let other: Name = "o/n:Q8_0".parse().unwrap();
    let e = p.hub().with_offline(true).base(&other, None, &mut |_| ()).unwrap_err();
    assert!(e.message().contains("Q8_0") && e.remedy().contains(FILE), "{e}");
    assert_eq!(p.world.hub.requests().len(), asked, "offline is offline");
    // A hub that is out of reach.
    let gone = Hub::new("http://127.0.0.1:9", p.cache.path()).unwrap();
    let gone = gone.with_waits(Duration::from_millis(1), Duration::from_secs(1));
    let mut said = Vec::new();
    let mut tell = |e: Event<'_>| match e {
        Event::Cached { why } | Event::Again { why, .. } => said.push(why.to_string()),
        _ => {}
    };
    assert_eq!(gone.base(&"o/n".parse().unwrap(), None, &mut tell).unwrap(), path);
    // It is asked once: a box without a network must start at once.
    assert!(said.len() == 1 && said[0].contains("no answer"), "{said:?}");
    let e = gone.base(&"o/other".parse().unwrap(), None, &mut |_| ()).unwrap_err();
    assert!(e.code() == Code::Io && e.remedy().contains("connection"), "{e}");
}

#[test]
fn all_shards_of_a_split_base_are_fetched() {
    let whole = tiny::base(&TinyConfig::default()).unwrap();
    let shards = tiny::split(&whole, "Q8_0/m-Q8_0", 3).unwrap();
    let mut served = vec![Served::large(FILE, &content())];
    served.extend(shards.iter().map(|(name, bytes)| Served::large(name, bytes)));
    let p = Place::of(served.clone());
    let path = p.named("o/n:q8_0").unwrap();
    let files = Shards::open(&path).unwrap();
    assert_eq!((files.len(), files.gguf().unwrap().tensors().len()), (3, 38));
    assert_eq!(p.hub().with_offline(true).base(&"o/n:Q8_0".parse().unwrap(), None, &mut |_| ()).unwrap(), path);
    served.pop();
    let e = Place::of(served).named("o/n:Q8_0").unwrap_err();
    assert!(e.code() == Code::Missing && e.message().contains("m-Q8_0-00003-of-00003.gguf"), "{e}");
}

#[test]
fn a_file_that_does_not_fit_the_disk_is_refused_before_it_comes() {
    let p = Place::of(vec![Served { size: 1 << 60, ..Served::large(FILE, &content()) }]);
    let e = p.base().unwrap_err();
    assert!(e.code() == Code::Space && e.exit_code() == 4, "{e}");
    assert!(p.world.storage.requests().is_empty() && p.blobs().is_empty());
    let p = Place::of(vec![Served { etag: "../../../x".into(), ..Served::large(FILE, &content()) }]);
    let e = p.base().unwrap_err();
    assert!(e.code() == Code::Digest && e.message().contains("../../../x"), "{e}");
}
