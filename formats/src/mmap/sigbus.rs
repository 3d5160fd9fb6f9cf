//! SIGBUS, the signal that the system sends when a mapped page has no file behind it any more.
//!
//! A file that is cut short under a running process, or a disk that cannot read a page, would end the
//! process at its next look at that page. One handler for the process knows the mapped ranges; it puts
//! zeros where the page was, marks the range as lost, and lets the reader go on. What is computed from
//! such zeros is wrong, so whoever gives an answer asks [`super::Mapped::check`] before.

use crate::{Code, Error, Result};
use libc::{c_int, c_void, siginfo_t};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// Files that can be mapped at a time. A signal handler can neither lock nor allocate, hence a table.
const RANGES: usize = 4096;

/// Values of a place's `start` that are no addresses.
const FREE: usize = 0;
const CLAIMED: usize = 1;

/// A place in the table, for one mapped range.
struct Place {
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

static TABLE: [Place; RANGES] =
    [const { Place { start: AtomicUsize::new(FREE), len: AtomicUsize::new(0), lost: AtomicBool::new(false) } }; RANGES];

/// A mapped range that the handler knows, until this is dropped. Drop it before the map: the address
/// may be given to another file at once.
pub(super) struct Guard(&'static Place);

impl Guard {
    /// Guards the bytes of a map.
    ///
    /// # Errors
    /// If the handler cannot be installed, or too many files are mapped.
    pub(super) fn new(map: &[u8]) -> Result<Self> {
        install()?;
        let free = |p: &&Place| p.start.compare_exchange(FREE, CLAIMED, SeqCst, SeqCst).is_ok();
        let Some(place) = TABLE.iter().find(free) else {
            return Err(Error::new(Code::Cap, format!("more than {RANGES} files are mapped at once"))
                .hint("close some of the bases and bundles that are open"));
        };
        place.lost.store(false, SeqCst);
        place.len.store(map.len(), SeqCst);
        place.start.store(map.as_ptr().addr(), SeqCst);
        Ok(Self(place))
    }

    /// True if a page of the range could not be read, and zeros were given in its place.
    pub(super) fn lost(&self) -> bool {
        self.0.lost.load(SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.start.store(FREE, SeqCst);
    }
}

impl Place {
    /// Where the range ends, if the address lies in it.
    fn end_of(&self, address: usize) -> Option<usize> {
        let (start, len) = (self.start.load(SeqCst), self.len.load(SeqCst));
        // If the place was given to another range meanwhile, the two numbers may not belong together.
        let same = self.start.load(SeqCst) == start;
        (same && start > CLAIMED && (start..start + len).contains(&address)).then_some(start + len)
    }
}

/// The action for SIGBUS that was in place before ours, and the size of a page.
static BEFORE: OnceLock<(libc::sigaction, usize)> = OnceLock::new();

fn install() -> Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // SAFETY: `sigaction` is plain data, for which zeros are valid; both calls get pointers to it
        // that live through the call. The handler does only what a handler may: it reads atomics,
        // calls mmap, and returns or hands on.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) != 0 {
                return Err(*libc::__errno_location());
            }
            // Before the handler is in place, or it might look for this in vain.
            BEFORE.get_or_init(|| (before, libc::sysconf(libc::_SC_PAGESIZE) as usize));
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_sigbus as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) != 0 {
                return Err(*libc::__errno_location());
            }
        }
        Ok(())
    });
    done.map_err(|e| Error::io("prepare for files that vanish", std::io::Error::from_raw_os_error(e)))
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some((before, page)) = BEFORE.get() else { return };
    // SAFETY: the system gives a handler with SA_SIGINFO a valid `siginfo_t`.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // A code above 0 comes from the processor's fault, with an address; others from kill(2).
    let place = TABLE.iter().filter(|_| code > 0).find_map(|p| Some((p, p.end_of(address)?)));
    if let Some((place, end)) = place {
        place.lost.store(true, SeqCst);
        let first = address - address % page;
        // SAFETY: errno is this thread's own, and kept as the interrupted code had it. The new pages
        // take the place of pages of a live map (whoever faulted holds it) from the faulting one to the
        // map's end and no further, and are readable like those; nobody writes to either. All of the
        // rest is replaced at once, so that a file cut short costs one fault and not one for each page.
        let zeros = unsafe {
            let errno = *libc::__errno_location();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            let at = std::ptr::without_provenance_mut(first);
            let zeros = libc::mmap(at, end - first, libc::PROT_READ, flags, -1, 0);
            *libc::__errno_location() = errno;
            zeros
        };
        if zeros != libc::MAP_FAILED {
            return;
        }
    }
    hand_on(before, signal, info, context);
}

/// Hands the signal to the action that was in place before ours.
fn hand_on(before: &libc::sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the address and the flags are as an earlier sigaction(2) accepted them, so the address is
    // that of a function of the type that the flags tell. Setting the default action and raising
    // the signal ends the process as soon as this handler returns.
    unsafe {
        match before.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
            f if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let f: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = std::mem::transmute(f);
                f(signal, info, context);
            }
            f => {
                let f: extern "C" fn(c_int) = std::mem::transmute(f);
                f(signal);
            }
        }
    }
}
