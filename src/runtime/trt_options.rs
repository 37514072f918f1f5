//! Options of providers that build engines, and the libraries that an engine depends on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a provider that builds engines (TensorRT, TensorRT for RTX) needs to know of a graph: an engine serves a range
/// of input shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// The inputs with dynamic dimensions.
    pub inputs: Vec<ProfiledInput>,
    /// Folder of the engine cache; without one, every process builds its engines again.
    pub folder: Option<PathBuf>,
    /// Whether this session writes its engines there, for later sessions.
    pub make: bool,
}

/// The shapes that an input may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfiledInput {
    /// The input's name.
    pub name: String,
    /// Minimum size of each dimension.
    pub min: Vec<u64>,
    /// The shape that the engine is tuned for.
    pub opt: Vec<u64>,
    /// Maximum size of each dimension.
    pub max: Vec<u64>,
}

/// Beginnings of the names of libraries that determine an engine: TensorRT, its ONNX parsers, the plugin.
const ENGINE_LIBRARIES: [&str; 5] = [
    "libnvinfer.so",
    "libnvonnxparser",
    "libtensorrt_rtx",
    "libtensorrt_onnxparser",
    "libonnxruntime_providers_nv_tensorrt",
];

/// The libraries that build engines, as loaded by this process: file names, which include versions, and sizes.
/// `unknown` if none is loaded or the system does not list them (Linux does).
pub fn engine_libraries() -> String {
    loaded_libraries(&ENGINE_LIBRARIES)
}

/// As [`engine_libraries`], with CUDA's kernel libraries: what results on a GPU depend on.
pub fn compute_libraries() -> String {
    loaded_libraries(&[&ENGINE_LIBRARIES[..], &["libcudnn", "libcublas"]].concat())
}

/// The loaded libraries whose names have one of these beginnings.
fn loaded_libraries(beginnings: &[&str]) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    // The sixth column is the file, with its links followed.
    let files = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let matching = |path: &&Path| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        beginnings.iter().any(|beginning| name.starts_with(beginning))
    };
    let describe = |path: &Path| {
        let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
        format!("{} of {bytes} bytes", path.file_name().unwrap_or_default().to_string_lossy())
    };
    let all: BTreeSet<String> = files.filter(matching).map(describe).collect();
    if all.is_empty() { "unknown".to_owned() } else { all.into_iter().collect::<Vec<_>>().join(", ") }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn loaded_libraries_are_named_with_their_size() {
        let found = loaded_libraries(&["libc.so", "libm.so"]);
        assert!(found.contains("libc.so") && found.ends_with(" bytes"), "{found}");
        assert_eq!(found.matches("libc.so").count(), 1, "once each: {found}");
        assert_eq!(loaded_libraries(&["no-such-library"]), "unknown");
    }
}
