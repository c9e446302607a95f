//! Files that are cut short while they are mapped: no death by SIGBUS.
//!
//! Reading a mapped page behind the end of its file raises SIGBUS, and so does a page that the disk
//! cannot give. Only a signal handler can answer that. Ours, put in place with the first map of a
//! file, looks whether the address lies in a map of ours. If so, it lays a page of zeros over the
//! place, marks the map as cut, and the read goes on: zeros have no valid checksum, so it ends as
//! damage with a place and a name. Whatever else raises SIGBUS is passed on to the handler that was
//! there before, or ends the process as it would have.
//!
//! A handler that somebody installs later and that passes nothing on takes this protection away,
//! and nothing else. The handler itself takes no lock and no memory: the maps are in slots of
//! static blocks, which are only ever added.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Slots added at a time: few databases have more maps than that.
const BLOCK_SLOTS: usize = 64;

/// `start` of a slot that is being filled; no map begins there.
const FILLING: usize = 1;

/// One map, or free (`start` 0).
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
        // SAFETY: null, or from `Box::leak` in `grown`: valid and shared for good.
        unsafe { next.as_ref() }
    }

    /// The next block, added if there is none.
    fn grown(&self) -> &'static Self {
        if let Some(next) = self.next() {
            return next;
        }
        let new = Box::into_raw(Box::new(Self::new()));
        match self
            .next
            .compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire)
        {
            // SAFETY: from `Box::into_raw` just now, and never given back: in the list for good.
            Ok(_) => unsafe { &*new },
            Err(other) => {
                // SAFETY: `new` was not shared, and `other` is in the list for good.
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
/// The handler that was there before ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Whether any map of this process was ever cut: asked first, since it is nearly always no.
#[inline(always)]
pub(crate) fn any_cut() -> bool {
    ANY_CUT.load(Ordering::Relaxed)
}

/// A map that is watched as long as this lives.
pub(super) struct Watch(&'static Slot);

impl Watch {
    /// Watches `len` bytes at `start`. To be dropped before they are unmapped.
    pub(super) fn new(start: *const u8, len: usize) -> Self {
        install();
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

    /// Whether a read met the end of the file.
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

fn install() {
    BEFORE.get_or_init(|| {
        // SAFETY: plain calls of the C library. A zeroed `sigaction` is a valid one; the mask is
        // emptied; the handler has the signature that SA_SIGINFO asks for and does only what a
        // signal handler may. SA_ONSTACK: threads with an alternative stack expect handlers there.
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
            // If it fails, maps are as unprotected as they would be without us.
            let _ = libc::sigaction(libc::SIGBUS, &raw const ours, &raw mut before);
            before
        }
    });
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid `siginfo_t` to a handler installed with SA_SIGINFO, and
    // SIGBUS has an address in it, unless somebody sent it: then what stands there means something
    // else, and is not used.
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

/// Lays a page of zeros over the page of `address`, which lies in a map of ours. Whether that went
/// well.
fn lay_zeros(address: usize) -> bool {
    let page = PAGE_BYTES.load(Ordering::Relaxed);
    let start = address & !(page - 1);
    // SAFETY: the page lies in a map of ours, which the reader that faulted keeps alive; so
    // replacing it touches nobody else's memory. Read-only as the map was; `mmap` is a system call
    // without locks of the library's, and `errno` is put back.
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

/// Does what would have been done without us. `is_fault`: an instruction of this thread raised the
/// signal; otherwise somebody sent it.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, is_fault: bool) {
    let handler = BEFORE.get().map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    if handler == libc::SIG_IGN && !is_fault {
        return;
    }
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: puts the default back; the faulting instruction runs again and ends the process
        // as if there had been no handler. A signal that was sent is raised anew, and comes when
        // this handler has returned.
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
    // SAFETY: the address of a handler that was installed for this signal, called with the
    // signature that its flags say it has.
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
        assert_eq!(map.get(5000, 3), Some(&[7, 7, 7][..]), "what is left of the file");
        assert_eq!(other.get(40, 3), Some(&[7, 7, 7][..]));
    }

    #[test]
    fn more_maps_than_a_block_has_slots_are_watched() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let maps: Vec<Map> = (0..300).map(|_| Map::of_file(&file, 8192).unwrap()).collect();
        file.set_len(0).unwrap();
        for map in maps {
            assert_eq!(map.get(8000, 1), Some(&[0][..]));
            assert!(map.is_cut());
        }
    }

    /// Which handler the other process has before ours, and what raises the signal there.
    const PART: &str = "MICRODB_SIGBUS_PART";
    /// How the former handlers end their process.
    const BY_HANDLER: i32 = 42;
    const BY_HANDLER_WITH_INFO: i32 = 43;

    extern "C" fn former(_: libc::c_int) {
        // SAFETY: ends the process, with nothing run on the way.
        unsafe { libc::_exit(BY_HANDLER) }
    }

    extern "C" fn former_with_info(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: as above; the information is the kernel's, handed on.
        unsafe {
            let told = (*info).si_signo == libc::SIGBUS;
            libc::_exit(if told { BY_HANDLER_WITH_INFO } else { 1 })
        }
    }

    /// Not a test by itself: the process that gets a SIGBUS which is none of ours.
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
        // SAFETY: the handlers have the signatures that the flags say; the map is private,
        // read-only, and lives on.
        let foreign = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (handler, flags);
            assert_eq!(
                libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()),
                0
            );
            memmap2::MmapOptions::new().len(8192).map(&file).unwrap()
        };
        let ours = Map::of_file(&file, 8192).unwrap();
        file.set_len(0).unwrap();
        // Ours is mended, whatever handler was there before, and the process lives on.
        assert_eq!(ours.get(5000, 1), Some(&[0][..]));
        if raised == "fault" {
            std::hint::black_box(foreign[5000]);
        } else {
            // SAFETY: a plain call. The signal comes to this thread before it returns.
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
        // What nobody sent cannot be ignored.
        assert_eq!(ended("ignored fault").signal(), Some(libc::SIGBUS));
        assert_eq!(ended("ignored sent").code(), Some(0));
    }
}
