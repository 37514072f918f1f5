//! Where ONNX Runtime's shared library is searched for, and the errors of a failure to load it.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};

/// The version that this crate is built and tested against: what `make ort` fetches.
pub const PINNED_VERSION: &str = include_str!("../../ONNXRUNTIME_VERSION").trim_ascii();

/// The library's file name on this platform.
pub const LIBRARY_NAME: &str = if cfg!(target_os = "windows") {
    "onnxruntime.dll"
} else if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// The environment variable that names the library.
const VARIABLE: &str = "ORT_DYLIB_PATH";

/// The folder of the GPU's build, inside the folder of the CPU's; `make gpu` installs it there.
pub(super) const GPU_FOLDER: &str = "gpu";

/// The files that are tried when no path is given, in order: next to the executable, `.ort/` in the current folder
/// and in each folder above it, `.ort/` above the executable, an active Python environment's `onnxruntime`; then `gpu/`
/// in each of these.
pub fn search_order() -> Vec<PathBuf> {
    let folders = search_folders();
    let gpu: Vec<PathBuf> = folders.iter().map(|folder| folder.join(GPU_FOLDER)).collect();
    let mut files: Vec<PathBuf> = Vec::new();
    for file in folders.into_iter().chain(gpu).flat_map(|folder| library_files(&folder)) {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

fn search_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let executable = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    folders.extend(executable.clone());
    let current = std::env::current_dir().ok();
    for start in [current, executable].into_iter().flatten() {
        folders.extend(start.ancestors().map(|folder| folder.join(".ort")));
    }
    folders.extend(std::env::var_os("VIRTUAL_ENV").into_iter().flat_map(|venv| python_packages(Path::new(&venv))));
    folders
}

/// The folders that are searched for a build with the GPU's providers: `gpu/` in each folder of [`search_order`], and
/// the folder itself.
pub(super) fn gpu_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in search_folders().into_iter().flat_map(|folder| [folder.join(GPU_FOLDER), folder]) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// ONNX Runtime's library in `folder`.
pub(super) fn in_folder(folder: &Path) -> Option<PathBuf> {
    library_files(folder).into_iter().find(|path| path.is_file())
}

/// The library that the variable `ORT_DYLIB_PATH` names.
pub(super) fn from_environment() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// `lib/python3.*/site-packages/onnxruntime/capi` of a virtual environment.
fn python_packages(venv: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> =
        versions.map(|entry| entry.path().join("site-packages").join("onnxruntime").join("capi")).collect();
    folders.push(venv.join("Lib").join("site-packages").join("onnxruntime").join("capi"));
    folders.sort();
    folders
}

/// The library's plain name in `folder`, then names that end in a version, as in wheels.
fn library_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![folder.join(LIBRARY_NAME)];
    let versioned = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let versioned = versioned.filter(|path| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.starts_with("libonnxruntime.so.") || (name.starts_with("libonnxruntime.1.") && name.ends_with(".dylib"))
    });
    let mut versioned: Vec<PathBuf> = versioned.collect();
    versioned.sort();
    files.extend(versioned);
    files
}

/// The library to load: the explicit path, else the variable's, else the first file of [`search_order`].
pub(super) fn find(explicit: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = explicit.map(Path::to_path_buf).or_else(from_environment) {
        // Only a regular file: opening a pipe would wait for ever.
        return match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(std::path::absolute(&path).unwrap_or(path)),
            Ok(_) => Err(missing("it is not a file".into()).at(path)),
            Err(e) => Err(missing(format!("{e}")).at(path)),
        };
    }
    search_order().into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = format!(
            "{LIBRARY_NAME} was not found next to the program, in a folder .ort here or above, \
             nor in an active Python environment"
        );
        missing(message)
    })
}

fn missing(reason: String) -> Error {
    let message = format!(
        "cannot load ONNX Runtime: {reason}; name the library of ONNX Runtime {PINNED_VERSION} with --ort-lib or \
         {VARIABLE}, or ask who installed this program to add it ({INSTALL})"
    );
    Error::new(Code::RUNTIME_MISSING, message)
}

/// How the library is installed: a hint for who has the program's source folder.
const INSTALL: &str = "from the source folder: `make ort`";

/// The error of a library that `ort` could not load, with the dynamic loader's own reason.
pub(super) fn load_error(path: &Path, error: &ort::LoadDynamicError) -> Error {
    use ort::LoadDynamicError as E;
    match error {
        E::BadVersion { version_str, .. } => {
            let message = format!(
                "this is ONNX Runtime {version_str}, expected 1.{} or later: install {PINNED_VERSION} ({INSTALL})",
                ort::MINOR_VERSION
            );
            Error::new(Code::RUNTIME_VERSION, message).at(path)
        }
        E::Dlopen { error, .. } => missing(loader_reason(error)).at(path),
        E::MissingApi { .. } => missing("it is not ONNX Runtime (it has no OrtGetApiBase)".into()).at(path),
        other => missing(format!("{other}")).at(path),
    }
}

/// The dynamic loader's reason, which is in the error's source and not in its message.
pub(super) fn loader_reason(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
