//! Return of freed memory from the allocator to the operating system.

/// Returns freed memory to the operating system. The GNU allocator otherwise keeps freed memory
/// that is below used memory. Does nothing for other allocators.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` has no preconditions; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
