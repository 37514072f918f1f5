//! A driver and GPU libraries that are not real: made by the C compiler that Rust links with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the CUDA provider needs, with the words by which a person knows it.
pub const CUDA: [(&str, &str); 13] = [
    ("libcuda.so.1", "driver"),
    ("libcudart.so.13", "nvidia-cuda-runtime"),
    ("libcublasLt.so.13", "nvidia-cublas"),
    ("libcublas.so.13", "nvidia-cublas"),
    ("libcurand.so.10", "nvidia-curand"),
    ("libnvrtc.so.13", "nvidia-cuda-nvrtc"),
    ("libcudnn.so.9", "nvidia-cudnn-cu13"),
    ("libcudnn_graph.so.9", "cuDNN 9"),
    ("libcudnn_ops.so.9", "cuDNN 9"),
    ("libcudnn_cnn.so.9", "cuDNN 9"),
    ("libcudnn_heuristic.so.9", "cuDNN 9"),
    ("libcudnn_engines_precompiled.so.9", "cuDNN 9"),
    ("libcudnn_engines_runtime_compiled.so.9", "cuDNN 9"),
];

/// What TensorRT needs in addition.
pub const TENSORRT: [(&str, &str); 2] = [("libnvinfer.so.10", "TensorRT 10"), ("libnvonnxparser.so.10", "TensorRT 10")];

/// What TensorRT for RTX needs.
pub const RTX: [(&str, &str); 5] = [
    ("libcuda.so.1", "driver"),
    ("libnvidia-ml.so.1", "driver"),
    ("libcudart.so.13", "nvidia-cuda-runtime"),
    ("libtensorrt_rtx.so.1", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    ("libtensorrt_onnxparser_rtx.so.1", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
];

pub const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";
pub const TENSORRT_PROVIDER: &str = "libonnxruntime_providers_tensorrt.so";
pub const RTX_PROVIDER: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";

/// NVML as far as it is asked, with answers from the environment: `FAKE_INIT` (what `nvmlInit` returns), `FAKE_DRIVER`,
/// `FAKE_CUDA` (13000), `FAKE_GPUS` (`name/major/minor;…`).
const NVML: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static const char *say(const char *name, const char *otherwise) { const char *s = getenv(name); return s ? s : otherwise; }
static int gpu(long i, char *name, int *major, int *minor) {
    char all[1000], *rest = all, *one = 0;
    snprintf(all, sizeof all, "%s", say("FAKE_GPUS", ""));
    for (long k = 0; k <= i; k++) if (!(one = strtok_r(rest, ";", &rest))) return 0;
    return sscanf(one, "%60[^/]/%d/%d", name, major, minor) == 3;
}
int nvmlInit_v2(void) { return atoi(say("FAKE_INIT", "0")); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { (void)e; return "an error"; }
int nvmlSystemGetDriverVersion(char *v, unsigned n) { snprintf(v, n, "%s", say("FAKE_DRIVER", "580.65.06")); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = atoi(say("FAKE_CUDA", "13000")); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) {
    char name[64]; int a, b;
    for (*n = 0; gpu(*n, name, &a, &b); ++*n) {}
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { *device = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *d, char *name, unsigned n) {
    char own[64]; int a, b;
    gpu((long)d - 1, own, &a, &b);
    snprintf(name, n, "%s", own);
    return 0;
}
int nvmlDeviceGetUUID(void *d, char *uuid, unsigned n) { snprintf(uuid, n, "GPU-%ld0000000-fake", (long)d - 1); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
    char name[64];
    return gpu((long)d - 1, name, major, minor) ? 0 : 2;
}
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(void *d, struct memory *m) {
    m->total = 16ull << 30; m->reserved = 0; m->free = 15ull << 30; m->used = 1ull << 30;
    (void)d;
    return 0;
}
"#;

/// Compiles a library of that name into `folder`.
fn compile(folder: &Path, name: &str, source: &str) {
    let file = folder.join(format!("{name}.c"));
    fs::write(&file, source).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(format!("-Wl,-soname,{name}")).arg(&file);
    assert!(compiler.status().expect("Rust links with cc").success());
    fs::remove_file(file).unwrap();
}

/// A folder with the driver's two libraries, for `LD_LIBRARY_PATH` of a command.
pub fn driver(folder: &Path) {
    compile(folder, "libnvidia-ml.so.1", NVML);
    compile(folder, "libcuda.so.1", "int cuInit(unsigned flags) { (void)flags; return 100; }");
}

/// A folder as `make gpu` leaves it, with TensorRT and the driver's libraries put there too; all empty libraries.
/// ONNX Runtime's own is not one.
pub fn gpu_build(folder: &Path) {
    compile(folder, CUDA_PROVIDER, "int nothing;");
    let names = CUDA.iter().chain(&TENSORRT).chain(&RTX).map(|(name, _)| *name);
    for name in names.chain([TENSORRT_PROVIDER, RTX_PROVIDER]) {
        fs::copy(folder.join(CUDA_PROVIDER), folder.join(name)).unwrap();
    }
    fs::write(folder.join("libonnxruntime.so"), "").unwrap();
}

/// Moves a file out of the way; [`put_back`] moves it back.
pub fn take(folder: &Path, name: &str) -> PathBuf {
    let away = folder.join(format!("{name}.away"));
    fs::rename(folder.join(name), &away).unwrap();
    away
}

pub fn put_back(folder: &Path, name: &str) {
    fs::rename(folder.join(format!("{name}.away")), folder.join(name)).unwrap();
}
