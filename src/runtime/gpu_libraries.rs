//! The GPU's libraries: what each provider needs, in which version, where it is found, and how its absence is told.
//!
//! What a provider's library is linked with is what `readelf -d` says of the one in the wheel of ONNX Runtime 1.31.1 (the
//! plugin: 0.5.0); what it opens later is what its strings and its own messages name. cuFFT is not in the tables: the CUDA
//! provider opens it for Fourier transforms alone, of which the model has none. cuDNN it opens for convolutions.
//!
//! Libraries beside ONNX Runtime's GPU build are loaded by path before ONNX Runtime asks for them by name, each after those
//! that it needs: so no variable such as `LD_LIBRARY_PATH` has to be set, and what `make gpu` fetched is what is used.

use std::path::Path;

use super::ort_library::loader_reason;

/// The oldest driver that serves CUDA 13.
pub(super) const DRIVER: u32 = 580;
/// The CUDA whose libraries are used, (major, minor).
pub(super) const CUDA_VERSION: (u32, u32) = (13, 0);
/// The oldest compute capability that CUDA 13 serves.
pub(super) const CAPABILITY: (u32, u32) = (7, 5);

/// The file of ONNX Runtime's CUDA provider.
pub(super) const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";
/// The file of ONNX Runtime's TensorRT provider.
pub(super) const TENSORRT_PROVIDER: &str = "libonnxruntime_providers_tensorrt.so";
/// The file of the plugin for TensorRT for RTX.
pub(super) const RTX_PROVIDER: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";

/// A library that a provider needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    /// The name by which it is asked for.
    pub file: &'static str,
    /// What it is, with its version.
    what: &'static str,
    /// Where it comes from.
    from: From,
}

/// Where a library comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// NVIDIA's driver.
    Driver,
    /// `make gpu`; with the name of the package on PyPI.
    PyPi(&'static str),
    /// NVIDIA's TensorRT, which is not on PyPI.
    TensorRt,
}

const DRIVERS: Needed = Needed { file: "libcuda.so.1", what: "the driver's CUDA", from: From::Driver };
const RUNTIME: Needed =
    Needed { file: "libcudart.so.13", what: "CUDA runtime 13", from: From::PyPi("nvidia-cuda-runtime") };
const CUBLAS_LT: Needed = Needed { file: "libcublasLt.so.13", what: "cuBLAS 13", from: From::PyPi("nvidia-cublas") };
const CUBLAS: Needed = Needed { file: "libcublas.so.13", what: "cuBLAS 13", from: From::PyPi("nvidia-cublas") };
const CURAND: Needed = Needed { file: "libcurand.so.10", what: "cuRAND 10", from: From::PyPi("nvidia-curand") };
const NVRTC: Needed =
    Needed { file: "libnvrtc.so.13", what: "CUDA's compiler 13", from: From::PyPi("nvidia-cuda-nvrtc") };
const fn cudnn(file: &'static str) -> Needed {
    Needed { file, what: "cuDNN 9", from: From::PyPi("nvidia-cudnn-cu13") }
}

/// What the CUDA provider needs, each after those that it needs itself.
pub(super) const CUDA: &[Needed] = &[
    DRIVERS,
    RUNTIME,
    CUBLAS_LT,
    CUBLAS,
    CURAND,
    NVRTC,
    cudnn("libcudnn.so.9"),
    // These cuDNN opens by itself, when the first convolution is set up.
    cudnn("libcudnn_graph.so.9"),
    cudnn("libcudnn_ops.so.9"),
    cudnn("libcudnn_cnn.so.9"),
    cudnn("libcudnn_heuristic.so.9"),
    cudnn("libcudnn_engines_precompiled.so.9"),
    cudnn("libcudnn_engines_runtime_compiled.so.9"),
];

/// What the TensorRT provider needs beside [`CUDA`], whose provider computes what it leaves.
pub(super) const TENSORRT: &[Needed] = &[
    Needed { file: "libnvinfer.so.10", what: "TensorRT 10", from: From::TensorRt },
    Needed { file: "libnvonnxparser.so.10", what: "TensorRT 10's ONNX parser", from: From::TensorRt },
];

/// What the plugin for TensorRT for RTX needs.
pub(super) const RTX: &[Needed] = &[
    DRIVERS,
    Needed { file: "libnvidia-ml.so.1", what: "the driver's NVML", from: From::Driver },
    RUNTIME,
    Needed {
        file: "libtensorrt_rtx.so.1",
        what: "TensorRT for RTX 1",
        from: From::PyPi("onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    },
    Needed {
        file: "libtensorrt_onnxparser_rtx.so.1",
        what: "TensorRT for RTX 1's ONNX parser",
        from: From::PyPi("onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    },
];

/// Loads `needed`: from `folder`, else from where the system's loader finds it, if it is to be asked.
///
/// # Errors
/// One line: every library that is missing, with its version and what to install; or the first that is there and does not load,
/// with the loader's reason. Nothing of `folder` is loaded before all is there.
pub(super) fn load<'a>(
    needed: impl Iterator<Item = &'a Needed> + Clone,
    folder: &Path,
    system: bool,
) -> Result<(), String> {
    let (mut missing, mut later) = (Vec::new(), Vec::new());
    for library in needed.clone().filter(|library| !folder.join(library.file).exists()) {
        match system.then(|| ort::util::preload_dylib(library.file)) {
            Some(Ok(())) => {}
            // It may want one of `folder`.
            Some(Err(e)) if !absent(&loader_reason(&e), library.file) => later.push(library.file),
            _ => missing.push(library),
        }
    }
    if !missing.is_empty() {
        return Err(tell_missing(&missing, folder));
    }
    for library in needed {
        let path = folder.join(library.file);
        if path.exists() {
            ort::util::preload_dylib(&path).map_err(|e| broken(library, &path.display().to_string(), &e))?;
        } else if later.contains(&library.file) {
            ort::util::preload_dylib(library.file).map_err(|e| broken(library, library.file, &e))?;
        }
    }
    Ok(())
}

/// Whether the loader says that it found no such file; otherwise it found one that does not load.
fn absent(reason: &str, file: &str) -> bool {
    reason.contains(&format!("{file}: cannot open shared object file: No such file"))
}

fn broken(library: &Needed, place: &str, error: &dyn std::error::Error) -> String {
    format!("{place} ({}) does not load: {}; fetch or install it again", library.what, loader_reason(error))
}

fn tell_missing(missing: &[&Needed], folder: &Path) -> String {
    let names: Vec<String> = missing.iter().map(|library| library.named()).collect();
    let place = format!("{} {} missing", names.join(", "), if missing.len() == 1 { "is" } else { "are" });
    let mut advice = Vec::new();
    if missing.iter().any(|library| library.from == From::Driver) {
        advice.push(format!(
            "install all of NVIDIA's driver, {DRIVER} or later (a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        ));
    }
    if missing.iter().any(|library| matches!(library.from, From::PyPi(_))) {
        advice.push(format!("run `make gpu`, or put them into {}", folder.display()));
    }
    if missing.iter().any(|library| library.from == From::TensorRt) {
        advice.push(format!(
            "install TensorRT 10 for CUDA 13 from NVIDIA (it is not on PyPI), or put its libraries into {}",
            folder.display()
        ));
    }
    format!("{place}: {}", advice.join("; "))
}

impl Needed {
    /// File, version and package.
    fn named(&self) -> String {
        match self.from {
            From::PyPi(package) => format!("{} ({}; on PyPI {package})", self.file, self.what),
            From::Driver | From::TensorRt => format!("{} ({})", self.file, self.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a message says that `make gpu` fetches, it fetches, from that package.
    #[test]
    fn make_gpu_fetches_what_is_asked_for() {
        let list = include_str!("../../scripts/gpu-libraries.txt");
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
            if let From::PyPi(package) = needed.from {
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
