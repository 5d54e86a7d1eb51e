//! The memory that the system lets the process's control group have, in both versions of them.

use std::{fs, path::Path};

/// Version 1 writes "no limit" as a number near 2⁶³.
const NONE: u64 = 1 << 62;

/// The least limit of the groups in `cgroup` (the text of `/proc/self/cgroup`) and of those above
/// them, as far as they are seen under `root`; `None` where nothing is limited.
pub fn limit(root: &Path, cgroup: &str) -> Option<u64> {
    cgroup.lines().filter_map(|line| of_line(root, line)).min()
}

/// A line is `ID:CONTROLLERS:PATH`.
fn of_line(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (root, file) = match controllers {
        "" => (root.to_owned(), "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            (root.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    // A container may see its own group at the root, under a path that it cannot see.
    let group = root.join(path.trim_start_matches('/'));
    let groups = group.ancestors().take_while(|group| group.starts_with(&root));
    let read = |group: &Path| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok();
    groups.filter_map(read).filter(|limit| *limit < NONE).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_least_limit_on_the_way_up_holds() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(limit(root, "0::/a/b\n"), None);
        write(root, "a/b/memory.max", "max\n");
        assert_eq!(limit(root, "0::/a/b\n"), None);
        write(root, "a/memory.max", "1073741824\n");
        assert_eq!(limit(root, "0::/a/b\n"), Some(1 << 30));
        write(root, "a/b/memory.max", "536870912\n");
        assert_eq!(limit(root, "0::/a/b\n"), Some(1 << 29));
        assert_eq!(limit(root, "0::/a\n"), Some(1 << 30));
        assert_eq!(limit(root, "0::/elsewhere\n"), None);
        write(root, "memory.max", "77\n");
        assert_eq!(limit(root, "0::/elsewhere\n"), Some(77));
    }

    #[test]
    fn version_1_is_read_at_its_memory_controller() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let lines = "5:cpu,cpuacct:/c\n4:memory:/docker/0abc\n0::/x\n";
        write(root, "memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit(root, lines), None);
        // The container's own group, at the root.
        write(root, "memory/memory.limit_in_bytes", "2147483648\n");
        assert_eq!(limit(root, lines), Some(2 << 30));
        write(root, "memory/docker/0abc/memory.limit_in_bytes", "1000000\n");
        assert_eq!(limit(root, lines), Some(1_000_000));
    }
}
