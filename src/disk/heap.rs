//! The process's heap, as the system's allocator keeps it.

/// Gives memory back to the system that was freed and is kept for later. It takes milliseconds when there is much, in
/// which no thread can allocate, so it is called rarely.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function has no preconditions (malloc_trim(3)); the allocator takes its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
