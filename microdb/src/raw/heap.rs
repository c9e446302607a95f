//! The allocator's free memory.

/// Gives memory that was freed back to the system. The GNU allocator keeps it otherwise wherever
/// anything above it is in use. Other allocators have their own ways; nothing is done then.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: has no preconditions; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
