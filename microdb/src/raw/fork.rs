//! Detection of forked child processes.
//!
//! - A forked child has a copy of all memory, including handles, locks and caches that its parent
//!   is using.
//! - A word in a page that the kernel wipes on fork (`MADV_WIPEONFORK`, Linux 4.14) distinguishes
//!   the two for the price of one load. Without such pages, each check compares the process id.
//! - Each process takes a number that none of its ancestors had. The counter is in ordinary memory,
//!   so a child continues from the value of its parent.
//!
//! Deliberately absent: handlers that run at a fork.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Number of this process, in a page that is wiped on fork. 0 before the first use.
static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// Last number taken by this process or an ancestor.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Identity of the process in which a value was created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth {
    /// `None` if the process id is compared.
    word: Option<&'static AtomicU64>,
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

    /// Returns `true` if the current process is this one and not a child forked since.
    #[inline(always)]
    pub(crate) fn is_here(&self) -> bool {
        match self.word {
            Some(word) => word.load(Ordering::Relaxed) == self.number,
            None => u64::from(std::process::id()) == self.number,
        }
    }
}

/// Returns the word, in a page mapped by the first call. Takes no lock, since a fork could leave a
/// lock locked forever.
fn word() -> Option<&'static AtomicU64> {
    let mut known = WORD.load(Ordering::Acquire);
    if known.is_null() {
        let made = wiped_page()?.cast();
        let set = WORD.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire);
        // The page of the slower thread stays unused, once in the life of a process.
        known = set.map_or_else(|other| other, |_| made);
    }
    // SAFETY: the start of a page that is never unmapped: always valid, aligned, initially zero,
    // and accessed only as an atomic word. The kernel wipes it before a child runs.
    Some(unsafe { &*known })
}

/// Returns a page of zeros that is zeroed again in a forked child. Returns `None` if the kernel has
/// no such pages.
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
    // SAFETY: the page was mapped above. If it cannot be wiped, it is unmapped unused.
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
/// Values are never dropped. There is one for each process that uses the cell.
pub(crate) struct PerProcess<T: 'static>(AtomicPtr<(Birth, T)>);

impl<T: Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Returns the value of this process, created by the first call.
    pub(crate) fn get(&self, make: impl FnOnce() -> T) -> &'static T {
        let known = self.0.load(Ordering::Acquire);
        // SAFETY: null, or from `Box::into_raw` below and never freed.
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
            // SAFETY: from `Box::into_raw` above, and never freed.
            Ok(_) => unsafe { &(*made).1 },
            // SAFETY: `made` was not shared. `other` was stored by a thread of this process, since
            // all other threads of the parent ended with the fork. It is never freed.
            Err(other) => unsafe {
                drop(Box::from_raw(made));
                &(*other).1
            },
        }
    }
}

/// Runs `child` in a forked child that exits with its result. Returns the process id of the child.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fork(child: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child runs in a copy of this process with only this thread. The allocator handles
    // forks itself. The child exits without the handlers and destructors of its parent.
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

/// Waits for a forked child. Returns `true` if its result was `true`. Kills a child that hangs.
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
            // SAFETY: the child has not been waited for, so the id still belongs to it.
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
