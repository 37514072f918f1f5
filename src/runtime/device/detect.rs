//! Detects the machine's GPUs and the libraries for them.
//!
//! NVIDIA's driver is asked through NVML, the library that comes with it; nothing of CUDA is loaded for that, so a
//! machine without a GPU pays one failed lookup. A [`Machine`] is plain data: device selection is tested with machines
//! that do not exist.

use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::gpu_libraries::{CUDA_VERSION, DRIVER};
use super::system_libraries;
use super::visible::{Enumeration, visible_gpus};
use super::{Device, Gpu, PassedOver};
use crate::runtime::{Runtime, ort_library};

/// NVIDIA's driver and the GPUs that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvidia {
    /// The driver's version, such as `580.65.06`.
    pub driver: String,
    /// The newest CUDA version that the driver supports, (major, minor).
    pub cuda: (u32, u32),
    /// The GPUs that CUDA sees, in CUDA's order.
    pub gpus: Vec<Gpu>,
}

/// What there is to compute on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The driver and its GPUs, or why there are none.
    pub nvidia: Result<Nvidia, String>,
    /// The ONNX Runtime library that the caller or the environment names; none where it is to be searched for.
    pub library: Option<PathBuf>,
    /// The ONNX Runtime library that this process has loaded already. A process has one.
    pub loaded: Option<PathBuf>,
    /// Folders that are searched for builds of ONNX Runtime and the GPU's libraries, in this order.
    pub folders: Vec<PathBuf>,
    /// Whether the system's dynamic loader is asked for libraries that lie in none of the folders.
    pub system_loader: bool,
    /// Whether NVIDIA's driver is installed, also where it does not answer.
    pub driver_installed: bool,
    /// Devices that ONNX Runtime refused when it was probed with them.
    pub refused: Vec<PassedOver>,
    /// What is uncertain about the GPUs, one line each.
    pub notes: Vec<String>,
}

impl Machine {
    /// Detects this machine's devices, as far as the requested one needs it: for the CPU no driver is asked. `library`
    /// is ONNX Runtime's library, where it is not to be searched for.
    pub fn detect(device: Device, library: Option<&Path>) -> Self {
        let (mut notes, mut driver_installed) = (Vec::new(), false);
        let nvidia = match device {
            Device::Cpu => Err("GPUs were not searched for".to_owned()),
            _ => nvml().map_err(|e| no_driver(&e, &mut driver_installed)).and_then(|nvml| {
                driver_installed = true;
                query(&nvml, &Enumeration::of_this_process(), &mut notes)
            }),
        };
        Self {
            nvidia,
            driver_installed,
            // A variable that is refused is an error when the library is loaded.
            library: ort_library::named(library).ok().flatten(),
            loaded: Runtime::loaded().map(|runtime| runtime.library.clone()),
            folders: ort_library::gpu_folders(),
            system_loader: true,
            refused: Vec::new(),
            notes,
        }
    }

    /// The GPU that is used: CUDA's first.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.nvidia.as_ref().ok()?.gpus.first()
    }
}

/// The file of NVIDIA's management library.
const NVML: &str = "libnvidia-ml.so.1";

/// NVIDIA's management library, by an absolute path: a bare name could be found in the current folder.
fn nvml() -> Result<Nvml, NvmlError> {
    match system_libraries::find(NVML) {
        Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
        None => Err(NvmlError::LibraryNotFound),
    }
}

fn query(nvml: &Nvml, enumeration: &Enumeration, notes: &mut Vec<String>) -> Result<Nvidia, String> {
    let failed = |what: &'static str| move |e: NvmlError| format!("NVIDIA's driver does not report {what}: {e}");
    let driver = nvml.sys_driver_version().map_err(failed("its version"))?;
    let cuda = nvml.sys_cuda_driver_version().map_err(failed("which CUDA version it supports"))?;
    let part = |number: i32| u32::try_from(number).unwrap_or(0);
    let cuda = (part(cuda / 1000), part(cuda % 1000 / 10));
    if cuda < CUDA_VERSION {
        // Too old to be used, and perhaps too old for the queries below.
        return Ok(Nvidia { driver, cuda, gpus: Vec::new() });
    }
    let count = nvml.device_count().map_err(failed("its GPUs"))?;
    let all = (0..count).map(|index| gpu(nvml, index)).collect::<Result<Vec<_>, _>>().map_err(failed("its GPUs"))?;
    if all.is_empty() {
        return Err(format!("NVIDIA's driver {driver} is installed and finds no GPU"));
    }
    let visible = visible_gpus(&all, enumeration)?;
    notes.extend(visible.note);
    Ok(Nvidia { driver, cuda, gpus: visible.indices.into_iter().map(|i| all[i].clone()).collect() })
}

fn gpu(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let (capability, memory) = (device.cuda_compute_capability()?, device.memory_info()?);
    let part = |number: i32| u32::try_from(number).unwrap_or(0);
    Ok(Gpu {
        name: device.name()?,
        capability: (part(capability.major), part(capability.minor)),
        memory: memory.total,
        free: memory.free,
        uuid: device.uuid()?,
    })
}

/// Why NVML does not answer, and what to do. Sets whether the driver is installed.
fn no_driver(error: &NvmlError, installed: &mut bool) -> String {
    let install = format!("install the driver {DRIVER} or later");
    *installed = !matches!(error, NvmlError::LibraryNotFound);
    match error {
        NvmlError::LibraryNotFound => format!("there is no NVIDIA driver ({NVML} is missing): {install}"),
        NvmlError::LibloadingError(e) => {
            let reason = e.to_string();
            format!("NVIDIA's driver cannot be queried ({NVML}: {reason}): {install}")
        }
        NvmlError::DriverNotLoaded => {
            "NVIDIA's driver is installed and not loaded: load its kernel module, or restart the machine".to_owned()
        }
        NvmlError::LibRmVersionMismatch => {
            "NVIDIA's driver was updated while it was running (library and kernel module differ): restart the machine"
                .to_owned()
        }
        other => format!("NVIDIA's driver does not answer: {other}"),
    }
}
