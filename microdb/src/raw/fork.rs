//! Detection of forked child processes.
//!
//! - A forked child has a copy of all memory of its parent, including handles, locks and caches
//!   that are in use.
//! - One word of memory distinguishes the two processes at the price of one load. The word is in a
//!   page that the kernel sets to zero in the child (`MADV_WIPEONFORK`, Linux 4.14). On a kernel
//!   without such pages, each check compares the process id.
//! - Each process takes a number that none of its ancestors had. The counter is in ordinary memory,
//!   so a child continues counting from the value of its parent.
//!
//! Deliberately absent: handlers that run at a fork.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Points to the number of this process, in a page that is wiped on fork. The pointer is null
/// before the first use. The number is 0 until the process takes one.
static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// The highest process number that a thread of this process or of an ancestor has drawn.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Identity of the process in which a value was created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth {
    /// Word that holds the process number. `None` if process ids are compared instead.
    word: Option<&'static AtomicU64>,
    /// Process number, or the process id if `word` is `None`.
    number: u64,
}

impl Birth {
    /// Returns the identity of the current process.
    pub(crate) fn now() -> Self {
        let Some(word) = word() else {
            return Self {
                word: None,
                number: std::process::id().into(),
            };
        };
        let mut number = word.load(Ordering::Acquire);
        if number == 0 {
            let next = LAST.fetch_add(1, Ordering::AcqRel) + 1;
            let set = word.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire);
            number = set.map_or_else(|other| other, |_| next);
        }
        Self {
            word: Some(word),
            number,
        }
    }

    /// Returns `true` if the current process created this identity, `false` in a child forked
    /// since.
    #[inline(always)]
    pub(crate) fn is_here(&self) -> bool {
        match self.word {
            Some(word) => word.load(Ordering::Relaxed) == self.number,
            None => u64::from(std::process::id()) == self.number,
        }
    }
}

/// Returns the word with the number of the process, or `None` if process ids must be compared
/// instead. The first call maps the page of the word. Takes no lock, because a lock that is held
/// during a fork stays locked in the child forever.
fn word() -> Option<&'static AtomicU64> {
    let mut known = WORD.load(Ordering::Acquire);
    if known.is_null() {
        let made = wiped_page()?.cast();
        let set = WORD.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire);
        // If several threads map a page at once, the first page is used, and the others stay mapped
        // and unused.
        known = set.map_or_else(|other| other, |_| made);
    }
    // SAFETY: the pointer is the start of a page that is never unmapped, so it is valid and
    // aligned. The page is initially zero and only accessed as an atomic word. The kernel wipes it
    // before a child runs.
    Some(unsafe { &*known })
}

/// Returns a page of zeros that the kernel zeroes again in a forked child. Returns `None` if the
/// page cannot be mapped or the kernel does not support `MADV_WIPEONFORK`.
fn wiped_page() -> Option<*mut libc::c_void> {
    let (bytes, null) = (size_of::<AtomicU64>(), std::ptr::null_mut());
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new anonymous map overlaps no other memory, and only this function has its address.
    let page = unsafe { libc::mmap(null, bytes, access, kind, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the page was mapped above. If the kernel refuses the advice, the unused page is
    // unmapped.
    unsafe {
        if libc::madvise(page, bytes, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, bytes);
            return None;
        }
    }
    Some(page)
}

/// A value that each process creates for itself, so that a forked child does not use the value of
/// its parent.
///
/// A stored value is never dropped, so each process that uses the cell leaks one value.
pub(crate) struct PerProcess<T: 'static>(AtomicPtr<(Birth, T)>);

impl<T: Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Returns the value of this process, created by the first call. If several threads make the
    /// first call at once, each calls `make`, and one of the created values is kept.
    pub(crate) fn get(&self, make: impl FnOnce() -> T) -> &'static T {
        let known = self.0.load(Ordering::Acquire);
        // SAFETY: the pointer is null, or comes from `Box::into_raw` below and is never freed.
        if let Some((birth, value)) = unsafe { known.as_ref() }
            && birth.is_here()
        {
            return value;
        }
        let made = Box::into_raw(Box::new((Birth::now(), make())));
        match self
            .0
            .compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire)
        {
            // SAFETY: `made` comes from `Box::into_raw` above and is never freed once it is stored.
            Ok(_) => unsafe { &(*made).1 },
            // SAFETY: no other thread has seen `made`. `other` was stored by a thread of this
            // process, because a fork copies only the forking thread. `other` is never freed.
            Err(other) => unsafe {
                drop(Box::from_raw(made));
                &(*other).1
            },
        }
    }
}

/// Runs `child` in a forked process that exits with success if `child` returns `true`. Returns the
/// process id of the child, or -1 if the fork failed.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fork(child: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child runs in a copy of this process with only this thread. The allocator
    // supports forks. `_exit` ends the child without the exit handlers and destructors of its
    // parent.
    unsafe {
        match libc::fork() {
            0 => {
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
                libc::_exit(i32::from(!matches!(done, Ok(true))));
            }
            child => child,
        }
    }
}

/// Waits for a forked child. Returns `true` if it exited with success. Kills the child if it still
/// runs two minutes after this call.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn wait(child: i32) -> bool {
    let begun = std::time::Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let ended = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if ended != 0 {
            return ended == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        }
        if begun.elapsed() > std::time::Duration::from_secs(120) {
            // SAFETY: `waitpid` has not reported the end of the child, so the process id still
            // belongs to it.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_of_forked_processes_has_its_own_number() {
        let parent = Birth::now();
        assert!(parent.is_here() && Birth::now().is_here());
        assert!(parent.word.is_some(), "this kernel wipes pages on fork");
        let child = fork(|| {
            let child = Birth::now();
            let grandchild = fork(|| !parent.is_here() && !child.is_here() && Birth::now().is_here());
            !parent.is_here() && child.is_here() && wait(grandchild)
        });
        assert!(wait(child));
        assert!(parent.is_here());
    }
}
