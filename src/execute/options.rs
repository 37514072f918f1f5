//! What a run is asked to do: device, threads, memory, caches.

use std::path::PathBuf;

use super::memory_plan::Mode;
use crate::model::Part;
use crate::progress::Shared;
use crate::runtime::Device;
use crate::volume::AxisCodes;

/// From this many reports a process on, prepacking the language model's weights pays: measured, 7B in int8 takes 5 s
/// for it and saves 0.5 s a report of 256 tokens.
const MANY_REPORTS: usize = 10;

/// From this many scans on, the other graphs stay loaded.
const MANY_SCANS: usize = 2;

/// How to run a bundle.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to run.
    pub device: Device,
    /// Whether nodes that fall back from the device to the CPU are an error, unless they compute shapes only.
    pub strict_device: bool,
    /// Whether the placement of nodes is recorded: which provider computes which.
    pub placement: bool,
    /// Threads within an operator, by default one a core. With one, no hashing, reading or loading runs in the
    /// background.
    pub threads: Option<usize>,
    /// ONNX Runtime's library; by default it is searched for.
    pub library: Option<PathBuf>,
    /// The volume of a 4-D scan, from 0.
    pub volume: Option<usize>,
    /// The orientation of scans whose files hold none.
    pub orientation: Option<AxisCodes>,
    /// Whether a scan or report that carries a quality warning is refused, with the warning's code
    /// ([`WarningCode::QUALITY`](crate::WarningCode::QUALITY)).
    pub strict_quality: bool,
    /// How many scans and reports are expected, from which the [`Mode`] of each graph follows. Without reports no
    /// memory is planned for the language model.
    pub expected: Expected,
    /// Tokens of the longest report that will be read, which memory is planned for; by default (and at most) the
    /// bundle's maximum.
    pub report_tokens: Option<usize>,
    /// How graphs are kept; by default it follows from what is expected.
    pub mode: Option<Mode>,
    /// Limit of the process's resident memory, in bytes; by default what the machine (and its control group) has left.
    pub max_memory: Option<u64>,
    /// A folder for features of scans and reports, TensorRT engines and a record of verified files; by default nothing
    /// is kept.
    pub cache: Option<PathBuf>,
    /// Whether prepacked weights are kept in the cache too: about twice their size on disk, full speed, and file-backed
    /// memory.
    pub prepacked: bool,
    /// Whether weights are read into memory instead of being mapped from their files. A program that reads a mapped
    /// file which is truncated meanwhile is ended by a bus error (SIGBUS), unless it handles that: the commands do, the
    /// library does not. What was read cannot change any more. It costs private memory of the size of a graph's weights
    /// for as long as the graph is loaded, which the system cannot drop; a graph then has to run as a whole.
    pub read_weights: bool,
    /// Whether a scan's own intensities are kept (to be saved), also when its features are in the cache.
    pub voxels: bool,
    /// Whether predictions carry every stage's tensor. The cache is then not read.
    pub keep_tensors: bool,
    /// Whether, on a GPU, each graph is run once when it is loaded, so that the first scan's timing compares with later
    /// ones; its time is recorded as `warm_up`.
    pub warm_up: bool,
    /// Uses the code paths of a GPU on whatever device there is: bound values, warm-up, image and report concurrently.
    /// For tests on machines without a GPU.
    pub as_on_gpu: bool,
    /// Receives notes on long work: engines that are built, another process that is waited for.
    pub progress: Shared,
}

/// How many inputs a run will see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Scans.
    pub scans: usize,
    /// Different reports.
    pub reports: usize,
}

impl Default for Options {
    /// One scan and one report, on the best device.
    fn default() -> Self {
        Self {
            device: Device::Auto,
            strict_device: false,
            placement: false,
            threads: None,
            library: None,
            volume: None,
            orientation: None,
            strict_quality: false,
            expected: Expected { scans: 1, reports: 1 },
            report_tokens: None,
            mode: None,
            max_memory: None,
            cache: None,
            prepacked: false,
            read_weights: false,
            voxels: false,
            keep_tensors: false,
            warm_up: true,
            as_on_gpu: false,
            progress: Shared::default(),
        }
    }
}

impl Options {
    /// Whether hashing, reading and loading may run on threads of their own.
    pub(crate) fn in_background(&self) -> bool {
        self.threads != Some(1)
    }

    /// The preferred mode of a graph. On a GPU released weights would have to be uploaded again: what runs twice stays.
    pub(super) fn mode_of(&self, part: Part, on_gpu: bool) -> Mode {
        let Expected { scans, reports } = self.expected;
        let many_reports = if on_gpu { 2 } else { MANY_REPORTS };
        let many = if part == Part::Text { reports >= many_reports } else { scans >= MANY_SCANS };
        self.mode.unwrap_or(if many { Mode::Resident } else { Mode::OneShot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a GPU what runs twice stays: its weights would have to be uploaded again.
    #[test]
    fn modes_follow_what_is_expected() {
        let mode = |scans, reports, part: Part, on_gpu| {
            Options { expected: Expected { scans, reports }, ..Options::default() }.mode_of(part, on_gpu)
        };
        for on_gpu in [false, true] {
            assert_eq!(mode(1, 1, Part::Text, on_gpu), Mode::OneShot);
            assert_eq!(mode(1, 1, Part::Vision, on_gpu), Mode::OneShot);
            assert_eq!(mode(2, 1, Part::Vision, on_gpu), Mode::Resident);
            assert_eq!(mode(2, 1, Part::Text, on_gpu), Mode::OneShot);
            assert_eq!(mode(20, 20, Part::Text, on_gpu), Mode::Resident);
        }
        assert_eq!((mode(2, 2, Part::Text, false), mode(2, 2, Part::Text, true)), (Mode::OneShot, Mode::Resident));
        let asked = Options { mode: Some(Mode::OneShot), ..Options::default() };
        assert_eq!(asked.mode_of(Part::Vision, true), Mode::OneShot);
    }
}
