//! Free memory of the allocator.

/// Returns freed memory to the system. The GNU allocator otherwise keeps it while any memory above
/// is in use. Does nothing for other allocators.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: has no preconditions; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
