//! What a machine has to compute on beside its processor.
//!
//! The driver and its GPUs are asked through NVML, the library that comes with NVIDIA's driver; nothing of CUDA is loaded for
//! that, so a machine without a GPU pays one failed lookup.

use std::path::{Path, PathBuf};

use super::Device;

/// One GPU, as the driver tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The card's name.
    pub name: String,
    /// Its compute capability, (major, minor).
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes that are free now.
    pub free: u64,
}

/// NVIDIA's driver and the GPUs that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvidia {
    /// The driver's version, such as `580.65.06`.
    pub driver: String,
    /// The newest CUDA that it supports, (major, minor).
    pub cuda: (u32, u32),
    /// The GPUs, in the driver's order.
    pub gpus: Vec<Gpu>,
}

/// What there is to compute on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The driver and its GPUs, or why there are none.
    pub nvidia: Result<Nvidia, String>,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<PathBuf>,
}

impl Machine {
    /// Looks at this machine, as far as the device asked for needs it. `library` is ONNX Runtime's library, where it is not to
    /// be searched for.
    pub fn look(_: Device, library: Option<&Path>) -> Self {
        Self { nvidia: Err("looking for GPUs is not built yet".to_owned()), library: library.map(Path::to_path_buf) }
    }

    /// The GPU that is used.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.nvidia.as_ref().ok()?.gpus.first()
    }

    /// Why there is no GPU, if there is none.
    pub(super) fn no_gpu(&self) -> Option<String> {
        self.nvidia.as_ref().err().cloned()
    }
}
