//! Signals that ask the program to stop: SIGINT (Ctrl-C), SIGTERM, and SIGHUP when the terminal closes.
//!
//! By default the first one ends the process at once: it opens files or waits for input, and nothing is
//! lost. While an answer or a training step is under way ([`Stop::at_work`]) the first one only asks
//! ([`Stop::asked`]), so that the work can come to a good end, and a second one ends the process at once.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Whether the program was asked to stop.
#[derive(Debug, Default)]
pub struct Stop {
    asked: AtomicBool,
    /// The first signal; 0 before there is one.
    signal: AtomicI32,
    at_work: AtomicBool,
}

/// Work that the first signal does not cut short, until this is dropped.
#[derive(Debug)]
#[must_use = "the work ends when this is dropped"]
pub struct AtWork<'a>(&'a Stop);

impl Stop {
    /// Nothing has asked it to stop, and no signal will: for tests and for programs with signals of their own.
    pub const fn new() -> Self {
        Self { asked: AtomicBool::new(false), signal: AtomicI32::new(0), at_work: AtomicBool::new(false) }
    }

    /// True once a signal has come. Ask after each step of the work, and after the work.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// The same as a flag, for libraries that know no signals.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// From now on the first signal waits for the work to look at [`Stop::asked`].
    pub fn at_work(&self) -> AtWork<'_> {
        self.at_work.store(true, Ordering::SeqCst);
        AtWork(self)
    }

    /// The signal that came first.
    pub(crate) fn signal(&self) -> Option<u8> {
        u8::try_from(self.signal.load(Ordering::SeqCst)).ok().filter(|s| *s > 0)
    }

    /// Takes a signal; true if the process must end at once.
    fn take(&self, signal: i32) -> bool {
        let first = self.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        // Before `at_work` is read: whoever ends the work now looks at `asked` afterwards and sees it.
        self.asked.store(true, Ordering::SeqCst);
        !(first && self.at_work.load(Ordering::SeqCst))
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.at_work.store(false, Ordering::SeqCst);
    }
}

static STOP: Stop = Stop::new();

/// Begins to listen. Where the system refuses that, signals do what they do without it: they end the process.
pub(crate) fn listen() -> &'static Stop {
    let mut wanted = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    if let Ok(mut signals) = Signals::new(wanted) {
        let listen = move || {
            for signal in signals.forever() {
                if STOP.take(signal) {
                    low_level::exit(128 + signal);
                }
            }
        };
        let _ = std::thread::Builder::new().name("signals".into()).spawn(listen);
    }
    &STOP
}

/// Ends the process if a signal came, also where the first one waits for work.
#[cfg(feature = "fetch")]
pub(crate) fn end_if_asked() {
    if let Some(signal) = STOP.signal() {
        low_level::exit(128 + i32::from(signal));
    }
}

/// True if this process was started with the signal ignored, as `nohup` does with SIGHUP.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|m| m >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_waits_for_work_and_the_second_for_nothing() {
        let stop = Stop::new();
        {
            let _work = stop.at_work();
            assert!(!stop.asked() && !stop.take(SIGTERM), "work may come to its end");
            assert!(stop.asked() && stop.take(SIGINT), "a second signal ends it");
        }
        assert_eq!(stop.signal(), Some(15), "the first signal gives the exit code");
        let stop = Stop::new();
        drop(stop.at_work());
        assert!(stop.take(SIGINT), "nothing is under way any more");
    }
}
