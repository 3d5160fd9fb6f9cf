//! A folder with a base and a bundle that a real `conpet-train` taught three tasks, and programs run on them.

use conpet_formats::tiny::{self, TinyConfig};
use conpet_tests::{program, tiny_base, tiny_stream};
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long a program may take; a loaded machine needs seconds, a hang lasts forever.
const PATIENCE: Duration = Duration::from_secs(120);

/// The result of a program's run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The lines of its output as JSON.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let parse = |l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        self.stdout.lines().map(parse).collect()
    }
}

/// The folder.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// The folder that the tests of this file share.
    pub(crate) fn get() -> &'static Self {
        static PLACE: OnceLock<Place> = OnceLock::new();
        PLACE.get_or_init(|| {
            let p = Self { dir: tempfile::tempdir().unwrap() };
            tiny_base(p.dir.path(), 1);
            tiny_stream(p.dir.path());
            let o = finish(p.train("t.cpb", "6"), b"");
            assert_eq!(o.code, Some(0), "{o:?}");
            p
        })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// The base that the bundle belongs to.
    pub(crate) fn base(&self) -> String {
        self.path("tiny-1.gguf")
    }

    /// The bundle.
    pub(crate) fn bundle(&self) -> String {
        self.path("t.cpb")
    }

    /// Writes a file; returns its path.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// The base with a blank chat template.
    pub(crate) fn base_with_an_empty_template(&self) -> String {
        let mut bytes = std::fs::read(self.base()).unwrap();
        let gguf = conpet_formats::gguf::Gguf::parse(&bytes).unwrap();
        let template = gguf.str("tokenizer.chat_template").unwrap().unwrap().to_owned().into_bytes();
        let at = bytes.windows(template.len()).position(|w| w == template).unwrap();
        bytes[at..at + template.len()].fill(b' ');
        self.write("empty-template.gguf", &bytes)
    }

    /// A base with a context too long to fill.
    pub(crate) fn base_with_a_long_context(&self) -> String {
        let config = TinyConfig { context: 1 << 20, ..TinyConfig::default() };
        self.write("long.gguf", &tiny::base(&config).unwrap())
    }

    fn train(&self, bundle: &str, epochs: &str) -> Command {
        let mut c = Command::new(program("conpet-train"));
        c.args(["stream", &self.path("stream"), "-m", &self.base(), "-b", &self.path(bundle), "--epochs", epochs]);
        c.args(["--trunk", "1", "--batch", "8", "--lr", "5e-3", "--threads", "2", "--checkpoint-every", "2"]);
        c
    }

    /// Starts a training that takes minutes.
    pub(crate) fn start_training(&self) -> Running {
        let running = Running::start(self.train("long.cpb", "4000"));
        let begun = Instant::now();
        let checkpoint = || std::fs::read_dir(self.path("long.work")).is_ok_and(|d| d.count() > 1);
        while !checkpoint() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn command(&self, base: &str, args: &[&str]) -> Command {
        let mut c = Command::new(program("conpet-run"));
        c.args(args).args(["-m", base]);
        c
    }

    fn with_bundle(&self, args: &[&str]) -> Command {
        let mut c = self.command(&self.base(), args);
        c.args(["-b", &self.bundle()]);
        c
    }

    /// `conpet-run` with the bundle.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.fed(args, b"")
    }

    /// The same, fed with this input.
    pub(crate) fn fed(&self, args: &[&str], input: &[u8]) -> Ran {
        finish(self.with_bundle(args), input)
    }

    /// `conpet-run` on the bare base.
    pub(crate) fn bare(&self, args: &[&str]) -> Ran {
        self.bare_under(&[], args)
    }

    /// The same, with these variables in its environment.
    pub(crate) fn bare_under(&self, variables: &[(&str, &str)], args: &[&str]) -> Ran {
        let mut c = self.command(&self.base(), args);
        c.envs(variables.iter().copied());
        finish(c, b"")
    }

    /// The same, fed with this input.
    pub(crate) fn fed_bare(&self, args: &[&str], input: &[u8]) -> Ran {
        self.with(&self.base(), args, input)
    }

    /// `conpet-run` on another base, without a bundle.
    pub(crate) fn with(&self, base: &str, args: &[&str], input: &[u8]) -> Ran {
        finish(self.command(base, args), input)
    }

    /// `conpet-run` with the bundle, its output going elsewhere.
    pub(crate) fn fed_into(&self, args: &[&str], input: &[u8], stdout: Stdio) -> Ran {
        finish_into(self.with_bundle(args), input, stdout)
    }

    /// Any program, its output going elsewhere.
    pub(crate) fn program(&self, name: &str, args: &[&str], stdout: Stdio) -> Ran {
        let mut c = Command::new(program(name));
        c.args(args);
        finish_into(c, b"", stdout)
    }

    /// `conpet-run` with the bundle, as another program's coprocess.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        Running::start(self.with_bundle(args))
    }

    /// The same on the bare base.
    pub(crate) fn start_bare(&self, args: &[&str]) -> Running {
        self.start_with(&self.base(), args)
    }

    /// The same on another base.
    pub(crate) fn start_with(&self, base: &str, args: &[&str]) -> Running {
        Running::start(self.command(base, args))
    }
}

fn finish(c: Command, input: &[u8]) -> Ran {
    finish_into(c, input, Stdio::piped())
}

/// Runs a program to its end.
fn finish_into(mut c: Command, input: &[u8], stdout: Stdio) -> Ran {
    let mut child = c.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    // A program may end without reading all of its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    ended(child)
}

/// Waits for the program to end, which it must.
fn ended(mut child: Child) -> Ran {
    let read = |from: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.map(|mut f| f.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|s| Box::new(s) as _));
    let stderr = read(child.stderr.take().map(|s| Box::new(s) as _));
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            let code = child.wait().unwrap();
            panic!("it does not end: {code} {} {}", stdout.join().unwrap(), stderr.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ran { code: child.wait().unwrap().code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// A running program.
pub(crate) struct Running {
    child: Child,
    bytes: Option<Receiver<u8>>,
}

impl Running {
    fn start(mut c: Command) -> Self {
        let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let bytes = Some(receive(child.stdout.take().unwrap()));
        Self { child, bytes }
    }

    /// Writes to its input.
    pub(crate) fn write(&mut self, text: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).unwrap();
    }

    fn byte(&mut self) -> u8 {
        self.bytes.as_ref().unwrap().recv_timeout(PATIENCE).expect("it answers")
    }

    /// Its next `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }

    /// Its next line.
    pub(crate) fn line(&mut self) -> String {
        let line = std::iter::repeat_with(|| self.byte()).take_while(|b| *b != b'\n').collect();
        String::from_utf8(line).unwrap()
    }

    /// Closes its output, as a reader that goes away.
    pub(crate) fn close(&mut self) {
        self.bytes = None;
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Closes its input and waits for its end.
    pub(crate) fn end(mut self) -> Ran {
        self.child.stdin = None;
        self.wait()
    }

    /// Waits for its end; its input stays open.
    pub(crate) fn wait(mut self) -> Ran {
        let input = self.child.stdin.take();
        let ran = ended(self.child);
        drop(input);
        ran
    }
}

/// Receives bytes as they come; dropping the receiver closes the pipe.
fn receive(mut from: ChildStdout) -> Receiver<u8> {
    let (send, bytes) = channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        while from.read_exact(&mut byte).is_ok() && send.send(byte[0]).is_ok() {}
    });
    bytes
}
