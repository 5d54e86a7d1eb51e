//! Anonymous memory for what is read as a stream (weights, merged models, keys and values), and how
//! much there is.

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

/// The bytes that the process's control group may have; `None` where nothing limits them.
pub fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    cgroup::limit(Path::new("/sys/fs/cgroup"), &groups)
}
