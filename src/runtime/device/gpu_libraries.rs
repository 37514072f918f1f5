//! The GPU's libraries: which ones each provider needs, in which version, where they are searched for, and what a
//! person reads when one is missing.
//!
//! Link-time dependencies are those that `readelf -d` lists for the provider's library in the wheel of ONNX Runtime
//! 1.31.1 (the plugin: 0.5.0); libraries opened later are those that its strings and its own messages name. cuFFT is
//! not in the tables: the CUDA provider opens it only for Fourier transforms, of which the model has none. It opens
//! cuDNN for convolutions.
//!
//! Libraries next to ONNX Runtime's GPU build, then the system's, are loaded by absolute path before ONNX Runtime asks
//! for them by name, each after its own dependencies: no variable such as `LD_LIBRARY_PATH` has to be set, and the
//! libraries that `make gpu` fetched are the ones in use.

use std::path::{Path, PathBuf};

use super::system_libraries;
use crate::runtime::ort_library::loader_reason;

/// The oldest driver that supports CUDA 13.
pub(super) const DRIVER: u32 = 580;
/// The CUDA version whose libraries are used, (major, minor).
pub(super) const CUDA_VERSION: (u32, u32) = (13, 0);
/// The lowest compute capability that CUDA 13 supports.
pub(super) const CAPABILITY: (u32, u32) = (7, 5);

/// The file of ONNX Runtime's CUDA provider.
pub(super) const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";
/// The file of ONNX Runtime's TensorRT provider.
pub(super) const TENSORRT_PROVIDER: &str = "libonnxruntime_providers_tensorrt.so";
/// The file of the plugin for TensorRT for RTX.
pub(super) const RTX_PROVIDER: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";

/// A library that a provider needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Library {
    /// The file name that the dynamic loader is asked for.
    pub file: &'static str,
    /// The product and its version.
    product: &'static str,
    /// Who ships it.
    origin: Origin,
}

/// Who ships a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// NVIDIA's driver.
    Driver,
    /// A package on PyPI of this name, which `make gpu` fetches.
    PyPi(&'static str),
    /// NVIDIA's TensorRT, which is not on PyPI.
    TensorRt,
}

const DRIVERS: Library = Library { file: "libcuda.so.1", product: "the driver's CUDA", origin: Origin::Driver };
const RUNTIME: Library =
    Library { file: "libcudart.so.13", product: "CUDA runtime 13", origin: Origin::PyPi("nvidia-cuda-runtime") };
const CUBLAS_LT: Library =
    Library { file: "libcublasLt.so.13", product: "cuBLAS 13", origin: Origin::PyPi("nvidia-cublas") };
const CUBLAS: Library =
    Library { file: "libcublas.so.13", product: "cuBLAS 13", origin: Origin::PyPi("nvidia-cublas") };
const CURAND: Library =
    Library { file: "libcurand.so.10", product: "cuRAND 10", origin: Origin::PyPi("nvidia-curand") };
const NVRTC: Library =
    Library { file: "libnvrtc.so.13", product: "CUDA's compiler 13", origin: Origin::PyPi("nvidia-cuda-nvrtc") };
const fn cudnn(file: &'static str) -> Library {
    Library { file, product: "cuDNN 9", origin: Origin::PyPi("nvidia-cudnn-cu13") }
}

/// Libraries of the CUDA provider, each after its own dependencies.
pub(super) const CUDA: &[Library] = &[
    DRIVERS,
    RUNTIME,
    CUBLAS_LT,
    CUBLAS,
    CURAND,
    NVRTC,
    cudnn("libcudnn.so.9"),
    // cuDNN opens these by itself when the first convolution is set up.
    cudnn("libcudnn_graph.so.9"),
    cudnn("libcudnn_ops.so.9"),
    cudnn("libcudnn_cnn.so.9"),
    cudnn("libcudnn_heuristic.so.9"),
    cudnn("libcudnn_engines_precompiled.so.9"),
    cudnn("libcudnn_engines_runtime_compiled.so.9"),
];

/// Libraries of the TensorRT provider in addition to [`CUDA`], whose provider computes its fallback nodes.
pub(super) const TENSORRT: &[Library] = &[
    Library { file: "libnvinfer.so.10", product: "TensorRT 10", origin: Origin::TensorRt },
    Library { file: "libnvonnxparser.so.10", product: "TensorRT 10's ONNX parser", origin: Origin::TensorRt },
];

/// Libraries of the plugin for TensorRT for RTX.
pub(super) const RTX: &[Library] = &[
    DRIVERS,
    Library { file: "libnvidia-ml.so.1", product: "the driver's NVML", origin: Origin::Driver },
    RUNTIME,
    Library {
        file: "libtensorrt_rtx.so.1",
        product: "TensorRT for RTX 1",
        origin: Origin::PyPi("onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    },
    Library {
        file: "libtensorrt_onnxparser_rtx.so.1",
        product: "TensorRT for RTX 1's ONNX parser",
        origin: Origin::PyPi("onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    },
];

/// Loads all of `needed`: from `folder`, else the system's if `system` allows it. Nothing is loaded before all of them
/// have been found.
///
/// # Errors
/// One line: every missing library with its version and what to install; or the first library that exists and does not
/// load, with the loader's reason.
pub(super) fn load<'a>(needed: impl Iterator<Item = &'a Library>, folder: &Path, system: bool) -> Result<(), String> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for library in needed {
        match find(library, folder, system) {
            Some(path) => found.push((library, path)),
            None => missing.push(library),
        }
    }
    if !missing.is_empty() {
        return Err(describe_missing(&missing, folder));
    }
    let load = |(library, path): (&Library, PathBuf)| {
        ort::util::preload_dylib(&path).map_err(|e| load_failure(library, &path.display().to_string(), &e))
    };
    found.into_iter().try_for_each(load)
}

/// A library in `folder`, else the system's if `system` allows it; an absolute path.
fn find(library: &Library, folder: &Path, system: bool) -> Option<PathBuf> {
    let near = std::path::absolute(folder.join(library.file)).ok().filter(|path| path.exists());
    near.or_else(|| system.then(|| system_libraries::find(library.file)).flatten())
}

fn load_failure(library: &Library, place: &str, error: &dyn std::error::Error) -> String {
    format!("{place} ({}) does not load: {}; install it again", library.product, loader_reason(error))
}

fn describe_missing(missing: &[&Library], folder: &Path) -> String {
    let names: Vec<String> = missing.iter().map(|library| library.describe()).collect();
    let place = format!("{} {} missing", names.join(", "), if missing.len() == 1 { "is" } else { "are" });
    let mut advice = Vec::new();
    if missing.iter().any(|library| library.origin == Origin::Driver) {
        advice.push(format!(
            "install all of NVIDIA's driver, {DRIVER} or later (a container needs \
             NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        ));
    }
    if missing.iter().any(|library| matches!(library.origin, Origin::PyPi(_))) {
        advice.push(format!("install them into {} (from the program's source folder: `make gpu`)", folder.display()));
    }
    if missing.iter().any(|library| library.origin == Origin::TensorRt) {
        advice.push(format!(
            "install TensorRT 10 for CUDA 13 from NVIDIA (it is not on PyPI), or copy its libraries into {}",
            folder.display()
        ));
    }
    format!("{place}: {}", advice.join("; "))
}

impl Library {
    /// File name, product with version, and package.
    fn describe(&self) -> String {
        match self.origin {
            Origin::PyPi(package) => format!("{} ({}; on PyPI {package})", self.file, self.product),
            Origin::Driver | Origin::TensorRt => format!("{} ({})", self.file, self.product),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `make gpu` fetches every library that a message attributes to it, from the package that the message names.
    #[test]
    fn make_gpu_fetches_what_is_asked_for() {
        let list = include_str!("../../../scripts/gpu-libraries.txt");
        let mut fetched: Vec<(&str, &str)> = Vec::new();
        let mut package = "";
        for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix("    ") {
                Some(files) => fetched.push((package, files.split(' ').next_back().unwrap())),
                None => package = line.split("==").next().unwrap(),
            }
        }
        let matches = |pattern: &str, file: &str| match pattern.split_once('*') {
            Some((begin, end)) => file.starts_with(begin) && file.ends_with(end),
            None => pattern == file,
        };
        let has =
            |package: &str, file: &str| fetched.iter().any(|(p, pattern)| *p == package && matches(pattern, file));
        for needed in CUDA.iter().chain(TENSORRT).chain(RTX) {
            if let Origin::PyPi(package) = needed.origin {
                assert!(has(package, needed.file), "{} of {package}", needed.file);
            }
        }
        for provider in [CUDA_PROVIDER, TENSORRT_PROVIDER] {
            assert!(has("onnxruntime-gpu", provider), "{provider}");
        }
        assert!(has("onnxruntime-ep-nv-tensorrt-rtx-cu13", RTX_PROVIDER));
        assert!(!has("nvidia-cublas", "libcudart.so.13"));
    }
}
