//! Anonymous memory for what is read as a stream (weights, merged models, keys and values), how
//! much there is, and what is given back.

mod cgroup;

use std::{fs, io, path::Path};

use memmap2::MmapMut;

/// `bytes` zeroed bytes (at least one) in huge pages where the system gives them. Pages are
/// committed when they are first written to.
pub fn huge(bytes: usize) -> io::Result<MmapMut> {
    // A map of no bytes is refused by the system.
    let memory = MmapMut::map_anon(bytes.max(1))?;
    // Advice: small pages are slower, not wrong.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

/// Lets all threads allocate from one arena. By default glibc gives almost each thread one of its own,
/// and of all but the first it never gives the upper end back. For the start of a process that has one
/// thread.
pub fn use_one_arena() {
    // SAFETY: the function has no preconditions but that nobody allocates at the same time.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that nobody uses back to the system, where the allocator keeps it.
pub fn give_back() {
    // SAFETY: the function has no preconditions; it only frees what nobody uses.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The bytes that the process's control group may have; `None` where nothing limits them.
pub fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    cgroup::limit(Path::new("/sys/fs/cgroup"), &groups)
}
