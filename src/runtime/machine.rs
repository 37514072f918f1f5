//! What a machine has to compute on beside its processor.
//!
//! The driver and its GPUs are asked through NVML, the library that comes with NVIDIA's driver; nothing of CUDA is loaded for
//! that, so a machine without a GPU pays one failed lookup. A [`Machine`] is plain data: whoever decides by it can be tested on
//! machines that are not there.

use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::{Serialize, Serializer};

use super::visible_devices::{Enumeration, visible};
use super::{Device, PassedOver, ort_library};

/// One GPU, as the driver tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// The card's name.
    pub name: String,
    /// Its compute capability, (major, minor).
    #[serde(rename = "compute_capability", serialize_with = "dotted")]
    pub capability: (u32, u32),
    /// Bytes of its memory.
    #[serde(rename = "memory_bytes")]
    pub memory: u64,
    /// Bytes that were free when it was asked.
    #[serde(rename = "free_bytes")]
    pub free: u64,
    /// The driver's name of this very card, `GPU-…`.
    #[serde(skip)]
    pub uuid: String,
}

fn dotted<S: Serializer>((major, minor): &(u32, u32), serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{major}.{minor}"))
}

/// NVIDIA's driver and the GPUs that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvidia {
    /// The driver's version, such as `580.65.06`.
    pub driver: String,
    /// The newest CUDA that it supports, (major, minor).
    pub cuda: (u32, u32),
    /// The GPUs that CUDA sees, in CUDA's order.
    pub gpus: Vec<Gpu>,
}

/// What there is to compute on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The driver and its GPUs, or why there are none.
    pub nvidia: Result<Nvidia, String>,
    /// ONNX Runtime's library, where it was named and is not to be searched for.
    pub library: Option<PathBuf>,
    /// ONNX Runtime's library that this process has loaded already. A process has one.
    pub loaded: Option<PathBuf>,
    /// Folders in which builds of ONNX Runtime and the GPU's libraries may lie, in the order in which they are looked at.
    pub folders: Vec<PathBuf>,
    /// Whether the system's loader is asked for libraries that lie in no folder.
    pub system_loader: bool,
    /// Whether NVIDIA's driver is installed, also where it does not answer.
    pub installed: bool,
    /// Devices that ONNX Runtime was asked for and did not take.
    pub refused: Vec<PassedOver>,
    /// What cannot be told for certain, a line each.
    pub notes: Vec<String>,
}

impl Machine {
    /// Looks at this machine, as far as the device asked for needs it. `library` is ONNX Runtime's library, where it is not to
    /// be searched for.
    pub fn look(device: Device, library: Option<&Path>) -> Self {
        let (mut notes, mut installed) = (Vec::new(), false);
        let nvidia = match device {
            Device::Cpu => Err("it was not looked for GPUs".to_owned()),
            _ => Nvml::init().map_err(|e| no_driver(&e, &mut installed)).and_then(|nvml| {
                installed = true;
                ask(&nvml, &Enumeration::of_this_process(), &mut notes)
            }),
        };
        Self {
            nvidia,
            installed,
            library: library.map(Path::to_path_buf).or_else(ort_library::named),
            loaded: super::Runtime::loaded().map(|runtime| runtime.library.clone()),
            folders: ort_library::folders(),
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

fn ask(nvml: &Nvml, enumeration: &Enumeration, notes: &mut Vec<String>) -> Result<Nvidia, String> {
    let told = |what: &'static str| move |e: NvmlError| format!("NVIDIA's driver does not tell {what}: {e}");
    let driver = nvml.sys_driver_version().map_err(told("its version"))?;
    let cuda = nvml.sys_cuda_driver_version().map_err(told("which CUDA it supports"))?;
    let part = |number: i32| u32::try_from(number).unwrap_or(0);
    let cuda = (part(cuda / 1000), part(cuda % 1000 / 10));
    if cuda < super::gpu_libraries::CUDA_VERSION {
        // Too old to be used, and maybe to be asked more.
        return Ok(Nvidia { driver, cuda, gpus: Vec::new() });
    }
    let count = nvml.device_count().map_err(told("its GPUs"))?;
    let all = (0..count).map(|index| gpu(nvml, index)).collect::<Result<Vec<_>, _>>().map_err(told("its GPUs"))?;
    if all.is_empty() {
        return Err(format!("NVIDIA's driver {driver} is there and finds no GPU"));
    }
    let seen = visible(&all, enumeration)?;
    notes.extend(seen.note);
    Ok(Nvidia { driver, cuda, gpus: seen.indices.into_iter().map(|i| all[i].clone()).collect() })
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

/// Why NVML does not answer, and what to do; and whether it is there.
fn no_driver(error: &NvmlError, installed: &mut bool) -> String {
    let install = format!("install the driver {} or later", super::gpu_libraries::DRIVER);
    *installed = true;
    match error {
        NvmlError::LibloadingError(e) => {
            let reason = e.to_string();
            *installed = !reason.contains("No such file");
            if !*installed {
                return format!("there is no NVIDIA driver (libnvidia-ml.so.1 is missing): {install}");
            }
            format!("NVIDIA's driver cannot be asked (libnvidia-ml.so.1: {reason}): {install}")
        }
        NvmlError::DriverNotLoaded => {
            "NVIDIA's driver is installed and not loaded: load its kernel module, or restart the machine".to_owned()
        }
        NvmlError::LibRmVersionMismatch => {
            "NVIDIA's driver was updated while it runs (library and kernel module differ): restart the machine"
                .to_owned()
        }
        other => format!("NVIDIA's driver does not answer: {other}"),
    }
}
