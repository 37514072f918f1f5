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

/// The files that are tried when no path is given, in order: next to the executable; `../lib` of an executable in a
/// folder `bin`; for an executable that Cargo built in this project's `target/`, the project's `.ort/`; an active
/// Python environment's `onnxruntime`; then `gpu/` in each of these. All are absolute, and none depends on the current
/// folder: a library is code, and whoever fills the folder that one stands in must not choose it.
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
    // With links followed: the tree that counts is where the file lies, and some systems report a relative path.
    let executable = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let venv = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    folders_of(executable.as_deref(), venv.as_deref())
}

/// The folders that are searched for an executable and an active virtual environment.
fn folders_of(executable: Option<&Path>, venv: Option<&Path>) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = executable.and_then(Path::parent) {
        folders.push(folder.to_path_buf());
        if let Some(prefix) = folder.parent().filter(|_| folder.ends_with("bin")) {
            folders.push(prefix.join("lib"));
        }
        folders.extend(project_of(folder).map(|project| project.join(".ort")));
    }
    // A relative one would depend on the current folder.
    folders.extend(venv.filter(|venv| venv.is_absolute()).into_iter().flat_map(python_packages));
    folders
}

/// The most folders between an executable and Cargo's `target`: `TRIPLE/release/examples`.
const TARGET_DEPTH: usize = 3;

/// The folder of this project's sources, if Cargo built an executable in `folder` for it: the folder that holds the
/// `target` in which the executable lies, with this package's manifest and the file of the pinned version. A folder
/// further above does not count, whatever it holds.
fn project_of(folder: &Path) -> Option<&Path> {
    let target = folder.ancestors().skip(1).take(TARGET_DEPTH).find(|above| above.ends_with("target"))?;
    let project = target.parent()?;
    let text = |name: &str| std::fs::read_to_string(project.join(name)).unwrap_or_default();
    let name = concat!("name = \"", env!("CARGO_PKG_NAME"), "\"");
    let ours = text("Cargo.toml").lines().any(|line| line.trim_end() == name);
    (ours && text("ONNXRUNTIME_VERSION").trim() == PINNED_VERSION).then_some(project)
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

/// The library that is named, as an absolute path: `explicit`, else by the variable `ORT_DYLIB_PATH`. A relative
/// explicit path is meant from the current folder by who typed it. A relative variable is refused: it is set once, and
/// would name another file in every folder that one goes to.
///
/// # Errors
/// `runtime.missing` for a relative path in the variable, or one that cannot be made absolute.
pub(super) fn named(explicit: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(path) = explicit {
        let absolute = std::path::absolute(path).map_err(|e| missing(format!("{e}")).at(path))?;
        return Ok(Some(absolute));
    }
    let Some(path) = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from) else { return Ok(None) };
    if path.is_relative() {
        let reason =
            format!("{VARIABLE} is a relative path, which means another file in every folder: make it absolute");
        return Err(missing(reason).at(path));
    }
    Ok(Some(path))
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

/// The library to load, an absolute path: the one that is [`named`], else the first file of [`search_order`].
pub(super) fn find(explicit: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named(explicit)? {
        // Only a regular file: opening a pipe would wait for ever.
        return match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(path),
            Ok(_) => Err(missing("it is not a file".into()).at(path)),
            Err(e) => Err(missing(format!("{e}")).at(path)),
        };
    }
    search_order().into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = format!(
            "{LIBRARY_NAME} was not found next to the program nor in an active Python environment (the current folder \
             is not searched)"
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

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(executable: &Path) -> Vec<PathBuf> {
        folders_of(Some(executable), None)
    }

    #[test]
    fn the_project_is_recognized_from_its_target_alone() {
        let dir = tempfile::tempdir().unwrap();
        let project = dir.path();
        let ort = project.join(".ort");
        let write = |name: &str, text: &str| std::fs::write(project.join(name), text).unwrap();
        let built = ["release", "debug", "release/deps", "release/examples", "x86_64-unknown-linux-gnu/release/deps"];
        let found = |place: &str| folders(&project.join("target").join(place).join("ba-infer")).contains(&ort);
        assert!(!built.iter().any(|place| found(place)), "without the project's files");
        write("Cargo.toml", "[package]\nname = \"brain-adapter\"\n");
        assert!(!built.iter().any(|place| found(place)), "without the version");
        write("ONNXRUNTIME_VERSION", "1.2.3\n");
        assert!(!found("release"), "another version");
        write("ONNXRUNTIME_VERSION", PINNED_VERSION);
        assert!(built.iter().all(|place| found(place)));
        assert!(!found("a/b/c/d"), "too deep");
        // Next to the project's files, but not in its `target`.
        for place in ["bin", "release", "dist/target2/release", ""] {
            assert!(!folders(&project.join(place).join("ba-infer")).contains(&ort), "{place}");
        }
        write("Cargo.toml", "[package]\nname = \"brain-adapter-x\"\n# name = \"brain-adapter\"\n");
        assert!(!found("release"), "another package");
    }

    #[test]
    fn only_absolute_folders_of_the_executables_own_tree() {
        let places = folders_of(Some("/opt/ba/bin/ba-infer".as_ref()), Some("venv".as_ref()));
        assert_eq!(places, ["/opt/ba/bin", "/opt/ba/lib"].map(PathBuf::from));
        assert_eq!(folders("/opt/ba/ba-infer".as_ref()), [PathBuf::from("/opt/ba")]);
        assert!(folders_of(None, None).is_empty());
        assert!(search_order().iter().all(|path| path.is_absolute()));
    }

    #[test]
    fn a_named_path_is_made_absolute() {
        let path = named(Some("x.so".as_ref())).unwrap().unwrap();
        assert_eq!(path, std::env::current_dir().unwrap().join("x.so"));
    }
}
