//! Memory of this process and what it may still take, as Linux reports it.
//!
//! Bytes throughout. Where the system does not say (another system, a hidden `/proc`), memory in use is 0 and the limit
//! is unbounded: a plan then never refuses what might work.

use std::fmt;
use std::path::Path;

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

impl fmt::Display for LimitedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "--max-memory",
            Self::Machine => "free memory of this machine",
            Self::ControlGroup => "memory limit of the container",
            Self::AddressSpace => "ulimit -v",
            Self::DataSize => "ulimit -d",
        })
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
    let left = [
        (machine, LimitedBy::Machine),
        (cgroup_left(), LimitedBy::ControlGroup),
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
    Some(limit.saturating_sub(status(used)?))
}

/// What is left of the control group's limit (version 2). File pages that can be dropped count as free.
fn cgroup_left() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let name = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = Path::new("/sys/fs/cgroup").join(name.trim_start_matches('/'));
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    let stat = read("memory.stat")?;
    let droppable = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(droppable.unwrap_or(0))))
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

    #[test]
    fn kilobytes_are_read_in_bytes() {
        let text = "VmHWM:\t  1024 kB\nVmRSS:\t     3 kB\nVmData:\t 18446744073709551615 kB\n";
        assert_eq!(kilobytes(text, "VmRSS:"), Some(3072));
        assert_eq!(kilobytes(text, "VmData:"), None, "an overflow is no number");
        assert_eq!(kilobytes(text, "VmSwap:"), None);
    }
}
