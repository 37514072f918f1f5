//! CUDA on the CPU, as far as making a session needs it: ONNX Runtime's real CUDA provider over libraries that allocate
//! in main memory, copy there, and compute nothing. Every function that the provider is linked with is there; most
//! return 0.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The libraries, with how their functions' names begin, and whether these have the library's name as their version.
const LIBRARIES: [(&str, &[&str], bool); 5] = [
    ("libcudart.so.13", &["cuda", "__cuda"], true),
    ("libcublasLt.so.13", &["cublasLt"], true),
    ("libcublas.so.13", &["cublas"], true),
    ("libcurand.so.10", &["curand"], false),
    ("libcuda.so.1", &["cu"], false),
];

/// Those that do something. The GPU has compute capability 8.6; `cudaDeviceProp` has it at bytes 360 and 364.
const WRITTEN: [(&str, &str); 18] = [
    ("cudaGetDeviceCount", "(int *n) { *n = 1; return 0; }"),
    ("cudaGetDevice", "(int *d) { *d = 0; return 0; }"),
    ("cudaGetErrorString", "(int e) { (void)e; return (long)\"an error\"; }"),
    ("cudaGetErrorName", "(int e) { (void)e; return (long)\"an error\"; }"),
    ("cudaRuntimeGetVersion", "(int *v) { *v = 13000; return 0; }"),
    ("cudaDriverGetVersion", "(int *v) { *v = 13000; return 0; }"),
    ("cudaMalloc", "(void **p, size_t n) { return posix_memalign(p, 256, n); }"),
    ("cudaMallocHost", "(void **p, size_t n) { return posix_memalign(p, 256, n); }"),
    ("cudaHostAlloc", "(void **p, size_t n, unsigned f) { (void)f; return posix_memalign(p, 256, n); }"),
    ("cudaFree", "(void *p) { free(p); return 0; }"),
    ("cudaFreeHost", "(void *p) { free(p); return 0; }"),
    ("cudaMemcpy", "(void *d, const void *s, size_t n) { memcpy(d, s, n); return 0; }"),
    ("cudaMemcpyAsync", "(void *d, const void *s, size_t n) { memcpy(d, s, n); return 0; }"),
    ("cudaMemset", "(void *d, int v, size_t n) { memset(d, v, n); return 0; }"),
    ("cudaMemsetAsync", "(void *d, int v, size_t n) { memset(d, v, n); return 0; }"),
    ("cudaMemGetInfo", "(size_t *f, size_t *t) { *f = 15ul << 30; *t = 16ul << 30; return 0; }"),
    ("cudaDeviceGetAttribute", "(int *v, int a) { *v = a == 75 ? 8 : a == 76 ? 6 : 1024; return 0; }"),
    (
        "cudaGetDeviceProperties",
        "(char *p) { int *i = (int *)p; memset(p, 0, 512); for (int k = 72; k < 128; k++) i[k] = 1024; i[90] = 8; \
         i[91] = 6; return 0; }",
    ),
];

/// Those that give a handle at their first argument.
const HANDLES: [&str; 6] = [
    "cudaStreamCreate",
    "cudaStreamCreateWithFlags",
    "cudaEventCreate",
    "cudaEventCreateWithFlags",
    "cublasCreate_v2",
    "cublasLtCreate",
];

/// Makes the libraries in `folder` for the provider in `gpu`; none without the tools for it.
pub fn make(folder: &Path, provider: &Path) -> Option<()> {
    let listed = Command::new("nm").args(["-D", "--undefined-only"]).arg(provider).output().ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    // The last word of a line, without a version.
    let names = listed.lines().filter_map(|line| line.split_whitespace().next_back()?.split('@').next());
    let mut left: BTreeSet<&str> = names.filter(|name| !name.starts_with("_Z")).collect();
    for (library, beginnings, versioned) in LIBRARIES {
        let (own, others) = left.iter().partition(|name| beginnings.iter().any(|begin| name.starts_with(begin)));
        left = others;
        compile(folder, library, &own, versioned)?;
    }
    Some(())
}

fn compile(folder: &Path, library: &str, names: &BTreeSet<&str>, versioned: bool) -> Option<()> {
    let mut source = "#include <stdlib.h>\n#include <string.h>\n".to_owned();
    for name in names {
        let written = WRITTEN.iter().find(|(written, _)| written == name).map(|(_, body)| *body);
        let handle = HANDLES.contains(name).then_some("(void **p) { *p = malloc(8); return 0; }");
        source += &format!("long {name}{}\n", written.or(handle).unwrap_or("(void) { return 0; }"));
    }
    let (file, map) = (folder.join("stub.c"), folder.join("stub.map"));
    fs::write(&file, source).unwrap();
    fs::write(&map, format!("{library} {{ global: *; }};")).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-w", "-o"]).arg(folder.join(library)).arg(format!("-Wl,-soname,{library}"));
    if versioned {
        compiler.arg(format!("-Wl,--version-script={}", map.display()));
    }
    compiler.arg(file).status().ok().filter(|status| status.success()).map(|_| ())
}
