//! Memory of this process and what it may still take, as Linux reports it.
//!
//! Bytes throughout. Where the system does not say (another system, a hidden `/proc`), memory in use is 0 and the limit
//! is unbounded: a plan then never refuses what might work.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Memory that is mapped and never touched, which limits of the process count and resident memory does not: threads'
/// stacks, the ends of allocators' regions.
const UNTOUCHED: u64 = 48 << 20;

/// What limits a run's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitedBy {
    /// The caller's own limit.
    Request,
    /// Free memory of the machine.
    Machine,
    /// The process's control group (a container's limit).
    ControlGroup,
    /// `ulimit -v`. ONNX Runtime maps weights privately and writable, which counts here and for `ulimit -d`.
    AddressSpace,
    /// `ulimit -d`.
    DataSize,
}

impl LimitedBy {
    /// What a user can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Request => "raise --max-memory",
            Self::Machine => "free some memory",
            Self::ControlGroup => "raise that limit, or free some memory in the group",
            Self::AddressSpace => "raise `ulimit -v`",
            Self::DataSize => "raise `ulimit -d`",
        }
    }
}

impl LimitedBy {
    /// The limit in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "--max-memory",
            Self::Machine => "free memory of this machine",
            Self::ControlGroup => "memory limit of the control group or container",
            Self::AddressSpace => "ulimit -v",
            Self::DataSize => "ulimit -d",
        }
    }
}

impl fmt::Display for LimitedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Resident memory of this process; 0 where the system does not say.
pub(crate) fn resident() -> u64 {
    status("VmRSS:").unwrap_or(0)
}

/// Peak resident memory since the process began, where the system says.
pub(crate) fn peak() -> Option<u64> {
    status("VmHWM:")
}

/// What the process can take without pushing others out, and what limits it: the smallest of what is left of the
/// machine, of the control group and of the process's own limits.
pub(crate) fn available() -> (u64, LimitedBy) {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| kilobytes(&text, "MemAvailable:"));
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok();
    let cgroup = groups.and_then(|groups| cgroup_left(Path::new("/sys/fs/cgroup"), &groups));
    let left = [
        (machine, LimitedBy::Machine),
        (cgroup, LimitedBy::ControlGroup),
        (rlimit_left("Max address space", "VmSize:"), LimitedBy::AddressSpace),
        (rlimit_left("Max data size", "VmData:"), LimitedBy::DataSize),
    ];
    let known = left.into_iter().filter_map(|(bytes, limited_by)| Some((bytes?, limited_by)));
    known.min_by_key(|(bytes, _)| *bytes).unwrap_or((u64::MAX, LimitedBy::Machine))
}

/// What is left of one of the process's resource limits: `limit` as in `/proc/self/limits`, `used` as in
/// `/proc/self/status`.
fn rlimit_left(limit: &str, used: &str) -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(status(used)?).saturating_sub(UNTOUCHED))
}

/// The files of a version of control groups.
struct GroupFiles {
    /// Limits, each of which binds; one that is missing or no number (`max`) is none.
    limits: &'static [&'static str],
    used: &'static str,
    /// The line of `memory.stat` with the file pages that can be dropped.
    droppable: &'static str,
}

const V1: GroupFiles =
    GroupFiles { limits: &["memory.limit_in_bytes"], used: "memory.usage_in_bytes", droppable: "total_inactive_file " };

/// Above `memory.high` nothing is killed, and everything is slowed down until it is below.
const V2: GroupFiles =
    GroupFiles { limits: &["memory.max", "memory.high"], used: "memory.current", droppable: "inactive_file " };

/// What is left of the limits of the process's control group and of all groups above it, the smallest. `groups` is the
/// text of `/proc/self/cgroup`; the hierarchies of both versions lie below `root` (`/sys/fs/cgroup`).
fn cgroup_left(root: &Path, groups: &str) -> Option<u64> {
    let of = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, name) = rest.split_once(':')?;
        let (files, top) = match controllers {
            "" => (&V2, root.to_path_buf()),
            _ if controllers.split(',').any(|name| name == "memory") => (&V1, root.join("memory")),
            _ => return None,
        };
        // A container may see the group's name and not its folder: the top is then the container's own group.
        let inside: PathBuf = Path::new(name).components().filter(|c| matches!(c, Component::Normal(_))).collect();
        let all = inside.ancestors().map(|group| top.join(group)).collect::<Vec<_>>();
        all.iter().filter_map(|folder| files.left(folder)).min()
    };
    groups.lines().filter_map(of).min()
}

impl GroupFiles {
    /// What is left of one group's limit. File pages that can be dropped count as free.
    fn left(&self, folder: &Path) -> Option<u64> {
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        let limit = self.limits.iter().filter_map(|file| number(file)).min()?;
        let stat = read("memory.stat").unwrap_or_default();
        let droppable = stat.lines().find_map(|line| line.strip_prefix(self.droppable)?.trim().parse::<u64>().ok());
        Some(limit.saturating_sub(number(self.used)?.saturating_sub(droppable.unwrap_or(0))))
    }
}

/// A field of `/proc/self/status`.
fn status(field: &str) -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, field)
}

/// `NAME   123 kB` in bytes.
fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both versions; a limit above the process's own group binds too; `max` and v1's huge number do not.
    #[test]
    fn the_smallest_group_binds() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |group: &str, files: &[(&str, &str)]| {
            let folder = root.join(group);
            std::fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
        };
        assert_eq!(cgroup_left(root, "0::/a/b\n"), None);
        write("a/b", &[("memory.max", "max\n"), ("memory.current", "100\n")]);
        assert_eq!(cgroup_left(root, "0::/a/b\n"), None, "no limit");
        let stat = "anon 5\nfile 9\ninactive_file 250\n";
        write("a", &[("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", stat)]);
        assert_eq!(cgroup_left(root, "0::/a/b\n"), Some(550), "the parent's");
        write("a/b", &[("memory.max", "400\n")]);
        assert_eq!(cgroup_left(root, "0::/a/b\n"), Some(300), "its own");
        write("a/b", &[("memory.high", "150\n")]);
        assert_eq!(cgroup_left(root, "0::/a/b\n"), Some(50));
        // Version 1, whose group's folder a container does not see; next to a version 2 without the controller.
        let one = [
            ("memory.limit_in_bytes", "5000"),
            ("memory.usage_in_bytes", "4000"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 200\n"),
        ];
        write("memory", &one);
        assert_eq!(cgroup_left(root, "4:cpu,cpuacct:/x\n3:memory:/docker/1\n0::/y\n"), Some(1200));
        write("memory", &[("memory.limit_in_bytes", "9223372036854771712")]);
        assert!(cgroup_left(root, "3:hugetlb,memory:/docker/../1\n").unwrap() > 1 << 60);
        assert_eq!(cgroup_left(root, "0::/../../etc\nnonsense\n"), None);
    }

    #[test]
    fn kilobytes_are_read_in_bytes() {
        let text = "VmHWM:\t  1024 kB\nVmRSS:\t     3 kB\nVmData:\t 18446744073709551615 kB\n";
        assert_eq!(kilobytes(text, "VmRSS:"), Some(3072));
        assert_eq!(kilobytes(text, "VmData:"), None, "an overflow is no number");
        assert_eq!(kilobytes(text, "VmSwap:"), None);
    }
}
