//! A hub and its storage on the loopback interface, with faults on demand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const TOKEN: &str = "hf_secret";

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Another status, and more headers.
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing more comes after so many bytes of the body, for this time.
    Stall(usize, Duration),
    /// One bit of the body is wrong.
    Flip,
    /// The whole file, whatever range was asked for.
    NoRange,
    /// Another body.
    Body(&'static str),
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// One of the two servers.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) requests: Mutex<Vec<Request>>,
    pub(crate) faults: Mutex<VecDeque<Fault>>,
    /// Bytes of bodies that were sent.
    pub(crate) sent: Mutex<usize>,
}

impl Log {
    pub(crate) fn will(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults.iter().cloned());
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// A file of the repository.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// The checksum that the hub gives.
    pub(crate) etag: String,
    /// The size that the hub gives.
    pub(crate) size: u64,
    /// Whether it lies in the storage; small files are at the hub itself.
    pub(crate) large: bool,
}

impl Served {
    pub(crate) fn large(name: &str, bytes: &[u8]) -> Self {
        use sha2::{Digest, Sha256};
        let etag = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        Self { name: name.into(), bytes: bytes.to_vec(), etag, size: bytes.len() as u64, large: true }
    }

    pub(crate) fn small(name: &str, bytes: &[u8]) -> Self {
        use sha1::{Digest, Sha1};
        let mut h = Sha1::new();
        h.update(format!("blob {}\0", bytes.len()));
        h.update(bytes);
        let etag = h.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Self { name: name.into(), bytes: bytes.to_vec(), etag, size: bytes.len() as u64, large: false }
    }
}

/// The hub and its storage.
pub(crate) struct World {
    pub(crate) endpoint: String,
    pub(crate) hub: Arc<Log>,
    pub(crate) storage: Arc<Log>,
}

impl World {
    /// Serves the repository `o/n`, which was called `o/old` before.
    pub(crate) fn new(files: Vec<Served>) -> Self {
        let files = Arc::new(files);
        let of = files.clone();
        let (storage_address, storage) = serve(move |r| {
            let name = r.path.split('?').next().unwrap().trim_start_matches("/store/");
            match of.iter().find(|f| f.name == name) {
                Some(f) => Reply::file(r, f),
                None => Reply::status(404),
            }
        });
        let (endpoint, hub) = serve(move |r| {
            let path = r.path.as_str();
            if let Some(rest) = path.strip_prefix("/api/models/o/old/") {
                return Reply::status(307).with("Location", &format!("/api/models/o/n/{rest}"));
            }
            if let Some(rest) = path.strip_prefix("/o/old/") {
                return Reply::status(307).with("Location", &format!("/o/n/{rest}"));
            }
            if path == "/api/models/o/n/revision/main" {
                let siblings: Vec<_> = files.iter().map(|f| serde_json::json!({"rfilename": f.name})).collect();
                let body = serde_json::json!({"id": "o/n", "sha": COMMIT, "siblings": siblings, "private": false});
                return Reply { body: body.to_string().into_bytes(), ..Reply::status(200) };
            }
            let name = path.strip_prefix(&format!("/o/n/resolve/{COMMIT}/")).unwrap_or_default();
            match files.iter().find(|f| f.name == name) {
                Some(f) if f.large => Reply::status(302)
                    .with("X-Repo-Commit", COMMIT)
                    .with("X-Linked-Etag", &format!("\"{}\"", f.etag))
                    .with("X-Linked-Size", &f.size.to_string())
                    .with("Location", &format!("{storage_address}/store/{name}?signature=abc")),
                Some(f) => Reply::file(r, f).with("ETag", &format!("\"{}\"", f.etag)),
                None => Reply::status(404).with("X-Error-Code", "EntryNotFound"),
            }
        });
        Self { endpoint, hub, storage }
    }
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn file(r: &Request, f: &Served) -> Self {
        let range = r.headers.get("range").and_then(|v| v.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match range {
            None => Self { body: f.bytes.clone(), ..Self::status(200) },
            Some(from) if from < f.bytes.len() => {
                let range = format!("bytes {from}-{}/{}", f.bytes.len() - 1, f.bytes.len());
                Self { body: f.bytes[from..].to_vec(), ..Self::status(206) }.with("Content-Range", &range)
            }
            Some(_) => Self::status(416),
        }
    }
}

/// Serves requests, each on a thread and a connection of its own, until the test ends.
fn serve(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (String, Arc<Log>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Log::default());
    let (answer, of) = (Arc::new(answer), log.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, log) = (answer.clone(), of.clone());
            // A client that goes away breaks the connection, which is none of the test's business.
            std::thread::spawn(move || talk(stream, &*answer, &log));
        }
    });
    (address, log)
}

fn talk(mut stream: TcpStream, answer: &dyn Fn(&Request) -> Reply, log: &Log) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?.replace("%20", " "));
    let mut headers = BTreeMap::new();
    for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut request = Request { method, path, headers };
    log.requests.lock().unwrap().push(request.clone());
    let fault = log.faults.lock().unwrap().pop_front();
    if matches!(fault, Some(Fault::NoRange)) {
        request.headers.remove("range");
    }
    let mut reply = answer(&request);
    let (mut sends, mut stall) = (usize::MAX, Duration::ZERO);
    match fault {
        Some(Fault::Status(status, more)) => {
            reply = Reply::status(status);
            for (name, value) in more.split("; ").filter_map(|h| h.split_once(": ")) {
                reply = reply.with(name, value);
            }
        }
        Some(Fault::Cut(n)) => sends = n,
        Some(Fault::Stall(n, time)) => (sends, stall) = (n, time),
        Some(Fault::Flip) => {
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
        }
        Some(Fault::Body(text)) => reply.body = text.into(),
        Some(Fault::NoRange) | None => {}
    }
    let mut head =
        format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes()).ok()?;
    if request.method != "HEAD" {
        let body = &reply.body[..sends.min(reply.body.len())];
        *log.sent.lock().unwrap() += body.len();
        stream.write_all(body).ok()?;
        std::thread::sleep(stall);
    }
    Some(())
}
