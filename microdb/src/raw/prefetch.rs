//! Prefetch: loads a cache line in the background.
//!
//! A missing line costs 100 to 300 ns. Work that knows its addresses early overlaps these waits. A
//! prefetch never reads, so any address is permitted. Does nothing on processors without a
//! supported instruction.

/// Prefetches the cache line of `address`. Never faults, for any address.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint. It accesses no memory in the sense of the language and raises
    // no fault for any address.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
