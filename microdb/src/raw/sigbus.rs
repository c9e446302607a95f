//! Truncated mapped files: a read is reported as damage, while SIGBUS would otherwise end the
//! process.
//!
//! - A read of a mapped page beyond the end of its file raises SIGBUS, and so does a read of a page
//!   that the disk cannot deliver. Only a signal handler can respond.
//! - The first database that maps a file and does not refuse the handler by its options installs
//!   the handler. For an address in a map of this crate, the handler maps a page of zeros there and
//!   marks the map as *cut*. The read continues, and its checksum fails: zeros match a checksum
//!   only with probability 2^-32. So the read ends as an error that names a file and an offset. A
//!   look-up that finds no record checks [`any_cut`].
//! - Every other SIGBUS is treated as without this module. It goes to the handler that was
//!   installed before. Without an earlier handler, it ends the process, or is ignored if the
//!   process ignores SIGBUS and no instruction raised the signal.
//! - Another library may install a handler later that does not call this one. Then this protection
//!   is lost, and nothing else changes.
//! - The handler takes no lock and allocates no memory. Maps are listed in blocks of slots, and
//!   blocks are never removed.
//!
//! Deliberately absent: other signals.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Number of slots in a block. Few processes have more maps at once.
const BLOCK_SLOTS: usize = 64;

/// Value of `start` for a slot that is being filled. No map begins at this address.
const FILLING: usize = 1;

/// The addresses of one map. The slot is free if `start` is 0.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    cut: AtomicBool,
}

struct Block {
    slots: [Slot; BLOCK_SLOTS],
    next: AtomicPtr<Block>,
}

impl Block {
    const fn new() -> Self {
        Self {
            slots: [const {
                Slot {
                    start: AtomicUsize::new(0),
                    end: AtomicUsize::new(0),
                    cut: AtomicBool::new(false),
                }
            }; BLOCK_SLOTS],
            next: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Self> {
        let next = self.next.load(Ordering::Acquire);
        // SAFETY: the pointer is null, or comes from `Box::into_raw` in `grown` and is never freed.
        unsafe { next.as_ref() }
    }

    /// Returns the next block. Adds a block if this is the last.
    fn grown(&self) -> &'static Self {
        if let Some(next) = self.next() {
            return next;
        }
        let new = Box::into_raw(Box::new(Self::new()));
        match self
            .next
            .compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire)
        {
            // SAFETY: `new` comes from `Box::into_raw` above and is never freed once it is in the
            // list.
            Ok(_) => unsafe { &*new },
            Err(other) => {
                // SAFETY: no other thread has seen `new`, and `other` stays in the list forever.
                unsafe {
                    drop(Box::from_raw(new));
                    &*other
                }
            }
        }
    }
}

static BLOCKS: Block = Block::new();
static ANY_CUT: AtomicBool = AtomicBool::new(false);
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);
/// The SIGBUS handler that was installed before the handler of this module.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Returns `true` if any map of this process was ever cut. Callers check this cheap flag first,
/// since it is nearly always `false`.
#[inline(always)]
pub(crate) fn any_cut() -> bool {
    ANY_CUT.load(Ordering::Relaxed)
}

/// Registration of a map with the handler. The registration ends when this value is dropped.
pub(super) struct Watch(&'static Slot);

impl Watch {
    /// Watches `len` bytes at `start`. The watch must be dropped before the bytes are unmapped.
    pub(super) fn new(start: *const u8, len: usize) -> Self {
        let mut block = &BLOCKS;
        loop {
            for slot in &block.slots {
                let free = slot
                    .start
                    .compare_exchange(0, FILLING, Ordering::AcqRel, Ordering::Relaxed);
                if free.is_ok() {
                    slot.cut.store(false, Ordering::Relaxed);
                    slot.end.store(start.addr() + len, Ordering::Release);
                    slot.start.store(start.addr(), Ordering::Release);
                    return Self(slot);
                }
            }
            block = block.grown();
        }
    }

    /// Returns `true` if the handler has replaced a page of the map by zeros.
    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
    }
}

fn find(address: usize) -> Option<&'static Slot> {
    let mut block = Some(&BLOCKS);
    while let Some(slots) = block {
        let holds = |slot: &&Slot| {
            let start = slot.start.load(Ordering::Acquire);
            start > FILLING && (start..slot.end.load(Ordering::Acquire)).contains(&address)
        };
        if let Some(slot) = slots.slots.iter().find(holds) {
            return Some(slot);
        }
        block = slots.next();
    }
    None
}

/// Installs the handler on the first call in a process.
pub(crate) fn install() {
    BEFORE.get_or_init(|| {
        // SAFETY: plain calls of the C library. A zeroed `sigaction` is valid, and its mask is
        // emptied. The handler has the signature that SA_SIGINFO requires and does only things
        // permitted in a signal handler. SA_ONSTACK runs it on the alternative stack of threads
        // that have one.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE);
            if let Ok(page) = usize::try_from(page) {
                PAGE_BYTES.store(page, Ordering::Relaxed);
            }
            let mut ours: libc::sigaction = std::mem::zeroed();
            let mut before: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_sigbus as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut ours.sa_mask);
            // If the call fails, maps are as unprotected as without this module.
            let _ = libc::sigaction(libc::SIGBUS, &raw const ours, &raw mut before);
            before
        }
    });
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler installed with SA_SIGINFO. SIGBUS
    // carries an address unless a process sent the signal. In that case the field has another
    // meaning and is not used.
    let (address, is_fault) = unsafe { ((*info).si_addr().addr(), (*info).si_code > 0) };
    if is_fault
        && let Some(slot) = find(address)
        && lay_zeros(address)
    {
        slot.cut.store(true, Ordering::Release);
        ANY_CUT.store(true, Ordering::Release);
        return;
    }
    pass_on(signal, info, context, is_fault);
}

/// Maps a page of zeros over the page that contains `address`, which is in a map of this crate.
/// Returns `true` on success.
fn lay_zeros(address: usize) -> bool {
    let page = PAGE_BYTES.load(Ordering::Relaxed);
    let start = address & !(page - 1);
    // SAFETY: the page is in a map of this crate, which the faulting reader keeps alive, so no
    // other memory is replaced. The page is read-only like the map. `mmap` is a system call without
    // locks of the C library, and `errno` is restored.
    unsafe {
        let errno = *libc::__errno_location();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let mapped = libc::mmap(
            std::ptr::without_provenance_mut(start),
            page,
            libc::PROT_READ,
            flags,
            -1,
            0,
        );
        *libc::__errno_location() = errno;
        mapped != libc::MAP_FAILED
    }
}

/// Treats the signal as the process would without this module. `is_fault` is `true` if an
/// instruction of this thread raised the signal, and `false` if a process sent it.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, is_fault: bool) {
    let handler = BEFORE.get().map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    if handler == libc::SIG_IGN && !is_fault {
        return;
    }
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: restores the default action. A faulting instruction runs again and ends the
        // process. A signal that a process sent is raised again, and is delivered after this
        // handler has returned.
        unsafe {
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
            if !is_fault {
                libc::raise(signal);
            }
        }
        return;
    }
    let with_info = BEFORE
        .get()
        .is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: `handler` is the address of a handler that was installed for this signal. Its flags
    // give the signature with which it is called.
    unsafe {
        if with_info {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(handler);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::Map;
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    #[test]
    fn a_file_cut_short_reads_as_zeros_and_is_marked() {
        super::install();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        let (map, other) = (
            Map::of_file(&file, 100_000).unwrap(),
            Map::of_file(&file, 50).unwrap(),
        );
        assert_eq!(map.get(99_000, 3), Some(&[7, 7, 7][..]));
        file.set_len(10_000).unwrap();
        assert!(!map.is_cut());
        assert_eq!(map.get(60_000, 3), Some(&[0, 0, 0][..]));
        assert!(map.is_cut() && super::any_cut() && !other.is_cut());
        assert_eq!(map.get(5000, 3), Some(&[7, 7, 7][..]), "the rest of the file");
        assert_eq!(other.get(40, 3), Some(&[7, 7, 7][..]));
    }

    #[test]
    fn more_maps_than_a_block_has_slots_are_watched() {
        super::install();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let maps: Vec<Map> = (0..300).map(|_| Map::of_file(&file, 8192).unwrap()).collect();
        file.set_len(0).unwrap();
        for map in maps {
            assert_eq!(map.get(8000, 1), Some(&[0][..]));
            assert!(map.is_cut());
        }
    }

    /// Environment variable for the child process. Its value has two words: the handler that the
    /// process installs before ours, and the cause of the signal.
    const PART: &str = "MICRODB_SIGBUS_PART";
    /// Exit codes of child processes that end in an earlier handler, without and with signal
    /// information.
    const BY_HANDLER: i32 = 42;
    const BY_HANDLER_WITH_INFO: i32 = 43;

    extern "C" fn former(_: libc::c_int) {
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(BY_HANDLER) }
    }

    extern "C" fn former_with_info(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel passed a valid `info`. `_exit` ends the process without running
        // anything else.
        unsafe {
            let told = (*info).si_signo == libc::SIGBUS;
            libc::_exit(if told { BY_HANDLER_WITH_INFO } else { 1 })
        }
    }

    /// The child process of the test below. Reads a missing page of our map, then receives a SIGBUS
    /// that does not come from our maps. Does nothing without the environment variable.
    #[test]
    fn the_other_process() {
        let Ok(part) = std::env::var(PART) else { return };
        let (before, raised) = part.split_once(' ').unwrap();
        let (handler, flags) = match before {
            "handler" => (former as *const () as usize, 0),
            "handler-with-info" => (former_with_info as *const () as usize, libc::SA_SIGINFO),
            "ignored" => (libc::SIG_IGN, 0),
            _ => (libc::SIG_DFL, 0),
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        // SAFETY: the handlers have the signatures given by their flags. The map is read-only, and
        // nobody writes to the file while bytes of it are referenced.
        let foreign = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (handler, flags);
            assert_eq!(
                libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()),
                0
            );
            memmap2::MmapOptions::new().len(8192).map(&file).unwrap()
        };
        super::install();
        let ours = Map::of_file(&file, 8192).unwrap();
        file.set_len(0).unwrap();
        // The handler maps zeros into our own map, independent of the earlier handler, and the
        // process continues.
        assert_eq!(ours.get(5000, 1), Some(&[0][..]));
        if raised == "fault" {
            std::hint::black_box(foreign[5000]);
        } else {
            // SAFETY: a plain call. The signal is delivered to this thread before the call returns.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        println!("lived on");
        std::process::exit(0);
    }

    fn ended(part: &str) -> ExitStatus {
        let mut other = Command::new(std::env::current_exe().unwrap());
        let name = concat!(module_path!(), "::the_other_process");
        let name = name.split_once("::").unwrap().1;
        other.args(["--exact", name, "--nocapture"]).env(PART, part);
        other.output().unwrap().status
    }

    #[test]
    fn a_sigbus_that_is_not_ours_does_what_it_would_have_done_without_us() {
        for raised in ["fault", "sent"] {
            assert_eq!(ended(&format!("handler {raised}")).code(), Some(BY_HANDLER));
            let status = ended(&format!("handler-with-info {raised}"));
            assert_eq!(status.code(), Some(BY_HANDLER_WITH_INFO));
            assert_eq!(ended(&format!("none {raised}")).signal(), Some(libc::SIGBUS));
        }
        // The kernel does not let a process ignore a SIGBUS that an instruction raised.
        assert_eq!(ended("ignored fault").signal(), Some(libc::SIGBUS));
        assert_eq!(ended("ignored sent").code(), Some(0));
    }
}
