//! A folder with good files to spoil, and the checks on a program that reads a bad one.

use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::fingerprint::{base_ref, file_digest};
use conpet_formats::gguf::Gguf;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_tests::program;
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long a program may take to reject a file; a loaded machine needs seconds, a hang lasts forever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Spoils the folder for a case.
pub(crate) type Spoil = std::rc::Rc<dyn Fn(&Place)>;

/// One hostile input.
#[derive(Clone)]
pub(crate) struct Case {
    /// What is wrong.
    pub(crate) name: String,
    pub(crate) spoil: Spoil,
    /// The command line; `@` stands for the folder.
    pub(crate) command: String,
    /// What the message must name: the file, the place, the value. Any `|` separates alternatives.
    pub(crate) says: Vec<&'static str>,
    /// The exit code, where the program documents one for this.
    pub(crate) code: Option<i32>,
}

/// A case whose folder `spoil` prepares.
pub(crate) fn case(
    name: impl Into<String>,
    command: impl Into<String>,
    says: &[&'static str],
    spoil: impl Fn(&Place) + 'static,
) -> Case {
    Case { name: name.into(), spoil: std::rc::Rc::new(spoil), command: command.into(), says: says.to_vec(), code: None }
}

impl Case {
    pub(crate) fn code(self, code: i32) -> Self {
        Self { code: Some(code), ..self }
    }
}

/// A folder holding `base.gguf`, `b.cpb` (two stages on it) and `stream/` (two tasks).
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

/// The bytes every case begins with, made once.
struct Good {
    base: Vec<u8>,
    bundle: Vec<u8>,
}

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let base = tiny::base(&TinyConfig::default()).unwrap();
        let reference = base_ref(&Gguf::parse(&base).unwrap()).unwrap();
        let path = dir.path().join("b.cpb");
        with_task(Draft::new(reference, "dynamic", 1), "one").create(&path).unwrap();
        with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), "two").append(&path).unwrap();
        Good { base, bundle: std::fs::read(path).unwrap() }
    })
}

/// A stage with one more task, which has a head on the bare base.
fn with_task(d: Draft, name: &str) -> Draft {
    let feature = FeatureSpec::single(4, Pool::Mean, StateNorm::Output);
    let weights = vec![0.5; 2 * TinyConfig::default().hidden];
    tiny::with_task(d, name, &["no", "yes"], feature, &weights, &[0.0, 1.0]).unwrap()
}

const ROWS: &str = "{\"text\":\"open the file\",\"label\":\"a\"}\n{\"text\":\"close the list\",\"label\":\"b\"}\n";

impl Place {
    fn new() -> Self {
        let p = Self { dir: tempfile::tempdir().unwrap() };
        p.write("base.gguf", &good().base);
        p.write("b.cpb", &good().bundle);
        for task in ["red", "blue"] {
            for split in ["train", "valid", "test"] {
                p.write(&format!("stream/{task}/{split}.jsonl"), ROWS.as_bytes());
            }
        }
        p
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Writes `to` as a changed copy of `from`.
    pub(crate) fn change(&self, from: &str, to: &str, f: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.read(from);
        f(&mut bytes);
        self.write(to, &bytes);
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// A pipe that nobody writes to: a program that opens it for reading waits forever.
    pub(crate) fn pipe(&self, name: &str) {
        let made = Command::new("mkfifo").arg(self.path(name)).status().unwrap();
        assert!(made.success());
    }

    /// Digest of every file, by path; `special` for what is not a regular file.
    fn digests(&self) -> BTreeMap<PathBuf, String> {
        let mut out = BTreeMap::new();
        let mut todo = vec![self.dir.path().to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let kind = path.symlink_metadata().unwrap().file_type();
                if kind.is_dir() {
                    todo.push(path);
                } else {
                    let special = kind.is_fifo() || kind.is_symlink();
                    let digest = if special { "special".into() } else { file_digest(&std::fs::read(&path).unwrap()) };
                    out.insert(path, digest);
                }
            }
        }
        out
    }
}

/// Runs every case and reports all that fail, so that one run shows the whole picture.
pub(crate) fn check_all(cases: &[Case]) {
    let failed: Vec<String> = cases.iter().filter_map(|c| check(c).err().map(|e| format!("{}\n{e}", c.name))).collect();
    assert!(failed.is_empty(), "{} of {} cases failed:\n\n{}", failed.len(), cases.len(), failed.join("\n\n"));
}

fn check(c: &Case) -> Result<(), String> {
    let place = Place::new();
    (c.spoil)(&place);
    let before = place.digests();
    let here = place.dir.path().to_str().unwrap();
    let mut words = c.command.split(' ').map(|w| w.replace('@', here));
    let name = words.next().unwrap();
    let (code, stdout, stderr) = run(&program(&name), &words.collect::<Vec<_>>(), place.dir.path())?;
    let told = format!("$ {}\nexit code {code:?}\n{stdout}--- stderr\n{stderr}", c.command);
    let demand = |ok: bool, what: &str| if ok { Ok(()) } else { Err(format!("{what}\n{told}")) };
    demand(!stderr.contains("panicked") && !stdout.contains("panicked"), "it panicked")?;
    demand(code.is_some(), "it was killed by a signal")?;
    demand(code != Some(0), "it succeeded")?;
    demand(c.code.is_none_or(|want| code == Some(want)), "another exit code than documented")?;
    let clap = stderr.contains("Usage: ");
    demand(stderr.contains("error: ") || clap, "no line begins with error:")?;
    // clap has its own words for the arguments that it rejects.
    let remedy = ["hint: ", "try '--help'", "Usage: "].iter().any(|s| stderr.contains(s));
    demand(remedy, "no remedy")?;
    for say in &c.says {
        demand(say.split('|').any(|s| stderr.contains(s)), &format!("the message does not say {say:?}"))?;
    }
    let after = place.digests();
    for (path, digest) in &before {
        demand(after.get(path) == Some(digest), &format!("{} was changed or removed", path.display()))?;
    }
    demand(!after.keys().any(|p| p.ends_with("out.cpb")), "it left a bundle behind")
}

/// Exit code, stdout, stderr; an error if the program does not end.
fn run(program: &Path, args: &[String], dir: &Path) -> Result<(Option<i32>, String, String), String> {
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("{} {args:?} does not end", program.display()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let out = child.wait_with_output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Ok((out.status.code(), text(out.stdout), text(out.stderr)))
}
