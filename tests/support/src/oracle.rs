//! Oracles: what tests hold results against and Cargo does not build. A missing one is a failure, unless the variable
//! `BA_SKIP` names it. Each test that is skipped is recorded, so that none is green without having run unnoticed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use crate::package;

/// Names of oracles to skip, with commas between them.
const SKIP: &str = "BA_SKIP";
/// The file to which skipped tests are appended, if any. `make test` names one and prints it at the end.
const SKIPPED: &str = "BA_SKIPPED";

/// What tests hold results against, and which some machines lack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Oracle {
    /// Python with the packages of `scripts/test-requirements.txt`: onnx, flatbuffers, nibabel, NumPy.
    Python,
    /// Python with Microsoft's training runtime, onnxruntime-training 1.19.2.
    Ort119,
    /// Python with TensorRT for RTX, whose compiler needs no GPU.
    Trt,
    /// Python with PyTorch.
    Torch,
    /// Recorded fixtures that are too large for the repository.
    Shared,
    /// ONNX Runtime's CUDA provider.
    Gpu,
}

impl Oracle {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Python, Self::Ort119, Self::Trt, Self::Torch, Self::Shared, Self::Gpu];

    /// The name in `BA_SKIP`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Ort119 => "ort119",
            Self::Trt => "trt",
            Self::Torch => "torch",
            Self::Shared => "shared",
            Self::Gpu => "gpu",
        }
    }

    /// What it is and where it is looked for.
    fn need(self) -> &'static str {
        match self {
            Self::Python => "a Python with the packages of scripts/test-requirements.txt, named by BA_PYTHON",
            Self::Ort119 => "Microsoft's training runtime, in .venv-ort119 or the Python that BA_ORT119_PYTHON names",
            Self::Trt => "TensorRT for RTX, in .venv-trt or the Python that BA_TRT_PYTHON names",
            Self::Torch => "a Python with PyTorch, named by BA_TORCH_PYTHON",
            Self::Shared => "the large recorded fixtures, in ../shared or the folder that BA_SHARED names",
            Self::Gpu => "ONNX Runtime's CUDA provider, in .ort/gpu (make gpu)",
        }
    }

    /// `found`; `None` where `skip` names the oracle.
    ///
    /// # Errors
    /// One sentence where it is neither found nor skipped.
    pub fn judge<T>(self, found: Option<T>, skip: &BTreeSet<String>) -> Result<Option<T>, String> {
        let name = self.name();
        if skip.contains(name) {
            return Ok(None);
        }
        let missing = || format!("this test needs {}: run `make test`, or set {SKIP}={name} to skip it", self.need());
        found.map(Some).ok_or_else(missing)
    }

    /// `found`; `None` where `BA_SKIP` names the oracle, and then it is recorded that `what` did not run.
    fn or_skip<T>(self, found: Option<T>, what: &str) -> Option<T> {
        static NAMES: LazyLock<BTreeSet<String>> = LazyLock::new(|| names(&std::env::var(SKIP).unwrap_or_default()));
        let found = self.judge(found, &NAMES).unwrap_or_else(|sentence| panic!("{sentence}"));
        if found.is_none() {
            record(self.name(), what);
        }
        found
    }
}

/// The names of a list such as `python,torch`; a name of no oracle is an error.
pub fn names(list: &str) -> BTreeSet<String> {
    let known = Oracle::ALL.map(Oracle::name);
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let check = |name: &str| {
        assert!(known.contains(&name), "{SKIP} names `{name}`, which is none of {}", known.join(", "));
        name.to_owned()
    };
    names.map(check).collect()
}

/// Records that `what` does not apply to this machine, for a reason that nobody can install away, such as a driver
/// that is there.
pub fn not_here(reason: &str, what: &str) {
    record(&format!("machine: {reason}"), what);
}

/// A line on stderr past the test harness, and one with tabs in the file that `BA_SKIPPED` names.
fn record(reason: &str, what: &str) {
    let (thread, program) = (std::thread::current(), std::env::current_exe().unwrap_or_default());
    let area = program.file_stem().unwrap_or_default().to_string_lossy();
    let test = format!("{}::{}", area.split('-').next().unwrap_or_default(), thread.name().unwrap_or("?"));
    crate::say(&format!("skipped ({reason}): {test}: {what}"));
    if let Some(list) = named(SKIPPED) {
        let mut file = OpenOptions::new().create(true).append(true).open(list).unwrap();
        // A line in one write: those of tests that run at once do not mix.
        file.write_all(format!("{reason}\t{test}\t{what}\n").as_bytes()).unwrap();
    }
}

/// The path in a variable.
fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The interpreter that a variable names, or that of an environment which make has made.
fn environment(variable: &str, folder: &str) -> Option<PathBuf> {
    let folder = package(folder);
    named(variable).or_else(|| folder.join("ready").exists().then(|| folder.join("bin/python")))
}

/// The Python with the packages of `scripts/test-requirements.txt`; `what` needs it.
pub fn python(what: &str) -> Option<PathBuf> {
    Oracle::Python.or_skip(named("BA_PYTHON"), what)
}

/// What a script of this package prints, run by [`python`].
pub fn run_python(what: &str, script: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Option<Vec<u8>> {
    let done = Command::new(python(what)?).arg(package(script)).args(args).output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    Some(done.stdout)
}

/// The Python with Microsoft's training runtime.
pub fn ort119(what: &str) -> Option<PathBuf> {
    Oracle::Ort119.or_skip(environment("BA_ORT119_PYTHON", ".venv-ort119"), what)
}

/// The Python with TensorRT for RTX.
pub fn trt(what: &str) -> Option<PathBuf> {
    Oracle::Trt.or_skip(environment("BA_TRT_PYTHON", ".venv-trt"), what)
}

/// The Python with PyTorch.
pub fn torch(what: &str) -> Option<PathBuf> {
    Oracle::Torch.or_skip(named("BA_TORCH_PYTHON"), what)
}

/// A file or folder of the large recorded fixtures.
pub fn shared(path: &str) -> Option<PathBuf> {
    let folder = named("BA_SHARED").unwrap_or_else(|| package("../shared"));
    let found = Some(folder.join(path)).filter(|path| path.exists());
    Oracle::Shared.or_skip(found, &format!("what is recorded in {path}"))
}

/// The folder of ONNX Runtime's CUDA provider that has all of these files.
pub fn gpu(files: &[&str], what: &str) -> Option<PathBuf> {
    let folder = package(".ort/gpu");
    let complete = files.iter().all(|file| folder.join(file).is_file());
    Oracle::Gpu.or_skip(complete.then_some(folder), what)
}
