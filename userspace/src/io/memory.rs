//! Memory of this process that is not needed goes back to the kernel. A daemon that has done something for thousands of
//! addresses has for most of its life nothing to do.

pub use arpwarden_engine::close_ranks;

/// Freed memory is kept for the next request up to this size in bytes, and larger pieces are asked of the kernel one by
/// one: both are what glibc begins with, but by itself it raises them to twice the largest piece that was ever freed.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 128 * 1024;

/// Has the allocator keep little, from now on and in all threads. To be called before there are any.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    // A thread that allocates now and then needs no region of its own.
    for (what, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, KEPT)]
    {
        // SAFETY: it reads its arguments and changes nothing but how the allocator works from now on; a parameter that
        // it does not know is refused.
        unsafe { libc::mallopt(what, value) };
    }
}

/// Gives pages back to the kernel on which nothing is left.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's locks as any allocation does, and touches only what is free.
    unsafe {
        libc::malloc_trim(0)
    };
}
