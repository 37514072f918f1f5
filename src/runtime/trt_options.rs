//! What providers that compute by engines need to know of a graph.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What providers need to know that compute by engines, which are made for certain extents of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// The inputs that have dimensions without a number.
    pub inputs: Vec<ProfiledInput>,
    /// Where engines are kept; without, they are made anew by every process.
    pub folder: Option<PathBuf>,
    /// Whether this session is to put them there, for later ones.
    pub make: bool,
}

/// The extents that an input may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfiledInput {
    /// The input's name.
    pub name: String,
    /// The least extent of each dimension.
    pub min: Vec<u64>,
    /// What the engine is made to be fastest for.
    pub opt: Vec<u64>,
    /// The largest.
    pub max: Vec<u64>,
}

/// What the names of libraries begin with that decide what engines are made: TensorRT, its readers of ONNX, the plugin.
const ENGINES: [&str; 5] = [
    "libnvinfer.so",
    "libnvonnxparser",
    "libtensorrt_rtx",
    "libtensorrt_onnxparser",
    "libonnxruntime_providers_nv_tensorrt",
];

/// The libraries that make engines, as this process has them loaded: file names, which hold versions, and sizes. `unknown` where the
/// system does not say (it is Linux that does) or none is loaded.
pub fn engine_libraries() -> String {
    loaded(&ENGINES)
}

/// As [`engine_libraries`], with CUDA's libraries of kernels: what results on a GPU depend on.
pub fn compute_libraries() -> String {
    loaded(&[&ENGINES[..], &["libcudnn", "libcublas"]].concat())
}

/// The loaded libraries whose names begin so.
fn loaded(names: &[&str]) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    // The sixth column is the file, with its links followed.
    let files = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let named = |path: &&Path| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        names.iter().any(|begin| name.starts_with(begin))
    };
    let told = |path: &Path| {
        let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
        format!("{} of {bytes} bytes", path.file_name().unwrap_or_default().to_string_lossy())
    };
    let all: BTreeSet<String> = files.filter(named).map(told).collect();
    if all.is_empty() { "unknown".to_owned() } else { all.into_iter().collect::<Vec<_>>().join(", ") }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn loaded_libraries_are_named_with_their_size() {
        let found = loaded(&["libc.so", "libm.so"]);
        assert!(found.contains("libc.so") && found.ends_with(" bytes"), "{found}");
        assert_eq!(found.matches("libc.so").count(), 1, "once each: {found}");
        assert_eq!(loaded(&["no-such-library"]), "unknown");
    }
}
