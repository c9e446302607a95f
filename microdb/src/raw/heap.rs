//! Return of freed memory from the allocator to the operating system.

/// Returns freed memory to the operating system. Without this call, the GNU allocator keeps freed
/// memory at lower addresses than memory in use. Does nothing without the GNU C library.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` has no preconditions; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
