//! What all of NVIDIA's providers ask of a machine, in the order in which a person would put it right: the driver, the GPU, the
//! build of ONNX Runtime, its libraries. What costs nothing comes first.

use std::path::{Path, PathBuf};

use crate::runtime::gpu_libraries::{CAPABILITY, CUDA_VERSION, DRIVER};
use crate::runtime::{Gpu, Machine, ort_library};

/// The GPU that is used, where the driver serves CUDA 13.
///
/// # Errors
/// Why there is none.
pub(super) fn gpu(machine: &Machine) -> Result<&Gpu, String> {
    if !cfg!(target_os = "linux") {
        return Err("GPUs are used on Linux alone so far".to_owned());
    }
    let nvidia = machine.nvidia.as_ref().map_err(Clone::clone)?;
    if nvidia.cuda < CUDA_VERSION {
        let (major, minor) = nvidia.cuda;
        return Err(format!(
            "NVIDIA's driver {} is too old: it serves CUDA {major}.{minor}, and 13.0 is needed; install the driver {DRIVER} or \
             later",
            nvidia.driver
        ));
    }
    machine.gpu().ok_or_else(|| format!("NVIDIA's driver {} finds no GPU", nvidia.driver))
}

/// As [`gpu`], where the GPU's compute capability is one that CUDA 13 serves.
///
/// # Errors
/// Why there is none.
pub(super) fn capable(machine: &Machine) -> Result<&Gpu, String> {
    let gpu = gpu(machine)?;
    if gpu.capability < CAPABILITY {
        let ((major, minor), (least, least_minor)) = (gpu.capability, CAPABILITY);
        return Err(format!(
            "the GPU is too old: {} has compute capability {major}.{minor}, and CUDA 13 serves {least}.{least_minor} or later",
            gpu.name
        ));
    }
    Ok(gpu)
}

/// The folder of the build of ONNX Runtime that has a provider's library beside it.
///
/// # Errors
/// Why there is none, and how to get it.
pub(super) fn build(machine: &Machine, provider: &str) -> Result<PathBuf, String> {
    let beside = |library: &Path| {
        // What was unpacked elsewhere and linked to is looked for there.
        let real = library.canonicalize().unwrap_or_else(|_| library.to_path_buf());
        [Some(library), Some(&real)].into_iter().flatten().find_map(|path| {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            folder.join(provider).is_file().then(|| folder.to_path_buf())
        })
    };
    if let Some(loaded) = &machine.loaded {
        return beside(loaded).ok_or_else(|| {
            format!(
                "this process has loaded another build of ONNX Runtime already, {}, beside which there is no {provider}; a \
                 process has one",
                loaded.display()
            )
        });
    }
    if let Some(named) = &machine.library {
        return beside(named).ok_or_else(|| {
            format!(
                "{} is not the GPU's build of ONNX Runtime: there is no {provider} beside it; name the library that `make gpu` \
                 puts into .ort/gpu",
                named.display()
            )
        });
    }
    let whole = |folder: &&PathBuf| folder.join(provider).is_file() && ort_library::in_folder(folder).is_some();
    machine.folders.iter().find(whole).cloned().ok_or_else(|| {
        format!(
            "there is no GPU's build of ONNX Runtime {} ({provider}) beside the program or in a folder .ort/gpu here or above: \
             run `make gpu`",
            ort_library::PINNED_VERSION
        )
    })
}

/// The library to load for a build that [`build`] found, unless the process has one already.
pub(super) fn library_of(machine: &Machine, provider: &str) -> Option<PathBuf> {
    let named = machine.loaded.clone().or_else(|| machine.library.clone());
    named.or_else(|| ort_library::in_folder(&build(machine, provider).ok()?))
}
