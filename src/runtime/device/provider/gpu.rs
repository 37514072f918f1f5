//! Requirements that all of NVIDIA's providers share, in the order in which a person would meet them: the driver, the
//! GPU, the build of ONNX Runtime, its libraries. Checks that cost nothing come first.

use std::path::{Path, PathBuf};

use super::super::gpu_libraries::{CAPABILITY, CUDA_VERSION, DRIVER};
use crate::runtime::{Gpu, Machine, ort_library};

/// What the providers share.
const SHARED: &str = "libonnxruntime_providers_shared.so";

/// The GPU that is used, if the driver supports CUDA 13.
///
/// # Errors
/// Why there is none.
pub(super) fn gpu(machine: &Machine) -> Result<&Gpu, String> {
    if !cfg!(target_os = "linux") {
        return Err("GPUs are supported on Linux only".to_owned());
    }
    let nvidia = machine.nvidia.as_ref().map_err(Clone::clone)?;
    if nvidia.cuda < CUDA_VERSION {
        let (major, minor) = nvidia.cuda;
        return Err(format!(
            "NVIDIA's driver {} is too old: it supports CUDA {major}.{minor}, and 13.0 is needed; install the driver \
             {DRIVER} or later",
            nvidia.driver
        ));
    }
    machine.gpu().ok_or_else(|| format!("NVIDIA's driver {} finds no GPU", nvidia.driver))
}

/// As [`gpu`], if CUDA 13 supports the GPU's compute capability.
///
/// # Errors
/// Why there is none.
pub(super) fn capable(machine: &Machine) -> Result<&Gpu, String> {
    let gpu = gpu(machine)?;
    if gpu.capability < CAPABILITY {
        let ((major, minor), (least, least_minor)) = (gpu.capability, CAPABILITY);
        return Err(format!(
            "the GPU is too old: {} has compute capability {major}.{minor}, and CUDA 13 supports {least}.{least_minor} \
             or later",
            gpu.name
        ));
    }
    Ok(gpu)
}

/// The folder of the build of ONNX Runtime that has the provider's library next to it.
///
/// # Errors
/// Why there is none, and how to get it.
pub(super) fn build(machine: &Machine, provider: &str) -> Result<PathBuf, String> {
    let provider_folder = |library: &Path| {
        // Also the folder that a link points to: the library may be unpacked there.
        let real = library.canonicalize().unwrap_or_else(|_| library.to_path_buf());
        [Some(library), Some(&real)].into_iter().flatten().find_map(|path| {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            folder.join(provider).is_file().then(|| folder.to_path_buf())
        })
    };
    if let Some(loaded) = &machine.loaded {
        return provider_folder(loaded).ok_or_else(|| {
            format!(
                "this process has loaded another build of ONNX Runtime already, {}, which has no {provider} next to \
                 it; a process has one",
                loaded.display()
            )
        });
    }
    if let Some(named) = &machine.library {
        return provider_folder(named).ok_or_else(|| {
            format!(
                "{} is not the GPU's build of ONNX Runtime: there is no {provider} next to it; name the library of the \
                 GPU's build (`make gpu` installs it as .ort/gpu in the program's source folder)",
                named.display()
            )
        });
    }
    let complete = |folder: &&PathBuf| folder.join(provider).is_file() && ort_library::in_folder(folder).is_some();
    machine.folders.iter().find(complete).cloned().ok_or_else(|| {
        format!(
            "there is no GPU's build of ONNX Runtime {} ({provider}) next to the program or in a folder gpu there: \
             install it (from the program's source folder: `make gpu`), or name its library with --ort-lib",
            ort_library::PINNED_VERSION
        )
    })
}

/// The providers' libraries of the build that [`build`] finds, and the one that they share.
pub(super) fn files(machine: &Machine, providers: &[&str]) -> Vec<PathBuf> {
    let Some(folder) = providers.first().and_then(|first| build(machine, first).ok()) else { return Vec::new() };
    let all = providers.iter().chain(&[SHARED]).map(|name| folder.join(name));
    all.filter(|path| path.is_file()).collect()
}

/// The library of the build that [`build`] finds, unless one is loaded or named already.
pub(super) fn library_of(machine: &Machine, provider: &str) -> Option<PathBuf> {
    let named = machine.loaded.clone().or_else(|| machine.library.clone());
    named.or_else(|| ort_library::in_folder(&build(machine, provider).ok()?))
}
