//! What a run is asked to do: device, threads, memory, caches.

use std::path::PathBuf;

use super::memory_plan::Mode;
use crate::model::Part;
use crate::progress::Tell;
use crate::runtime::Device;

/// From so many reports a process on, laying the language model's weights out anew pays: measured, 7B in int8 takes 5 s for it
/// and saves 0.5 s a report of 256 tokens.
const MANY_REPORTS: usize = 10;

/// From so many scans on, the other graphs stay loaded.
const MANY_SCANS: usize = 2;

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to run.
    pub device: Device,
    /// Whether it is an error that the device leaves nodes to the processor, unless they handle extents alone.
    pub strict_device: bool,
    /// Whether predictions say which provider computed which nodes.
    pub placement: bool,
    /// Threads within an operator, by default one a core. With one, no hashing, reading or loading runs beside either.
    pub threads: Option<usize>,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<PathBuf>,
    /// The volume of a 4-D scan, from 0.
    pub volume: Option<usize>,
    /// How many scans and reports are expected: what is run often is loaded differently ([`Mode`]). Without reports no
    /// memory is planned for the language model.
    pub expected: Expected,
    /// How graphs are kept, where it is not to be chosen by what is expected.
    pub mode: Option<Mode>,
    /// Most resident memory of the process, in bytes; by default what the machine (and its control group) has left.
    pub max_memory: Option<u64>,
    /// A folder for features of scans and reports, and for what was verified; by default nothing is kept.
    pub cache: Option<PathBuf>,
    /// Whether weights laid out for this machine are kept in the cache too: about twice their size on disk, full speed, and
    /// file-backed memory.
    pub prepacked: bool,
    /// Whether a scan's own intensities are kept (to be saved), also when its features are in the cache.
    pub voxels: bool,
    /// Whether predictions carry every stage's tensor. Then nothing is taken from the cache.
    pub keep_tensors: bool,
    /// Whether, on a GPU, each graph is run once when it is loaded, so that the first answer's stages take as long as the others';
    /// what that takes is told as `warm_up`.
    pub warm_up: bool,
    /// Goes the ways of a GPU on whatever device there is: values bound, graphs warmed up, image and report at once. For tests
    /// on machines that have none.
    pub as_on_gpu: bool,
    /// Who is told what takes long: engines that are made, another process that is waited for.
    pub tell: Tell,
}

/// How many inputs a predictor will see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Scans.
    pub scans: usize,
    /// Different reports.
    pub reports: usize,
}

impl Default for Options {
    /// One scan, one report.
    fn default() -> Self {
        Self {
            device: Device::Auto,
            strict_device: false,
            placement: false,
            threads: None,
            library: None,
            volume: None,
            expected: Expected { scans: 1, reports: 1 },
            mode: None,
            max_memory: None,
            cache: None,
            prepacked: false,
            voxels: false,
            keep_tensors: false,
            warm_up: true,
            as_on_gpu: false,
            tell: Tell::default(),
        }
    }
}

impl Options {
    /// The mode that suits a graph. On a GPU weights that were let go would have to be brought there again: what runs twice stays.
    pub(crate) fn mode_of(&self, part: Part, on_gpu: bool) -> Mode {
        let Expected { scans, reports } = self.expected;
        let many_reports = if on_gpu { 2 } else { MANY_REPORTS };
        let many = if part == Part::Text { reports >= many_reports } else { scans >= MANY_SCANS };
        self.mode.unwrap_or(if many { Mode::Resident } else { Mode::OneShot })
    }
}
