//! Running the commands: model folders made of the committed fixtures, bundles, and child processes with a time limit.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use brain_adapter::bundle::sha256_of;
use brain_adapter::checkpoint::{Checkpoint, write_safetensors};
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::progress::Silent;
use brain_adapter::runtime::Runtime;
use brain_adapter::tensor::LazyTensor;
use serde_json::Value;
use tempfile::TempDir;

use crate::{lasting, package};

/// Seconds after which a command has hung.
pub(crate) const LIMIT: u64 = 120;

/// A committed fixture.
pub fn fixture(path: &str) -> PathBuf {
    package("tests/data/fixtures").join(path)
}

/// ONNX Runtime's library, which [`command`] names.
pub fn library() -> PathBuf {
    let runtime = Runtime::load(None).unwrap_or_else(|e| panic!("this test needs ONNX Runtime (make ort): {e}"));
    runtime.library.clone()
}

/// A command in an environment that names ONNX Runtime's library and nothing else.
pub fn command(binary: &str) -> Command {
    let mut command = bare(binary);
    command.env("ORT_DYLIB_PATH", library());
    command
}

/// A command in an environment that does not name ONNX Runtime's library.
pub fn bare(binary: &str) -> Command {
    let mut command = Command::new(crate::program(binary));
    for name in ["ORT_DYLIB_PATH", "BA_MODEL", "VIRTUAL_ENV", "RAYON_NUM_THREADS", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

pub fn ba_export(args: &[&dyn AsRef<OsStr>]) -> Done {
    finish(command("ba-export").args(args.iter().map(|a| a.as_ref())))
}

pub fn ba_infer(args: &[&dyn AsRef<OsStr>]) -> Done {
    finish(command("ba-infer").args(args.iter().map(|a| a.as_ref())))
}

pub fn ba_train(args: &[&dyn AsRef<OsStr>]) -> Done {
    finish(command("ba-train").args(args.iter().map(|a| a.as_ref())))
}

/// What a command left.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub seconds: f64,
}

impl Done {
    /// It succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// It failed with exit code 1, one line on stderr with this error code, and nothing that smells of a panic.
    pub fn fails(self, code: &str) -> Self {
        assert_eq!(self.code, Some(1), "expected {code}: {self:#?}");
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains("RUST_BACKTRACE"), "{self:#?}");
        let lines: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error[")).collect();
        assert_eq!(lines.len(), 1, "{self:#?}");
        assert!(lines[0].starts_with(&format!("error[{code}]: ")), "expected {code}: {self:#?}");
        self
    }

    /// As [`Self::fails`], and stderr holds that one line alone.
    pub fn fails_with_one_line(self, code: &str) -> Self {
        let done = self.fails(code);
        assert_eq!(done.stderr.lines().count(), 1, "{done:#?}");
        done
    }

    /// The error names all of these.
    pub fn naming(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not named: {self:#?}");
        }
        self
    }

    /// The one JSON document on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not one JSON document ({e}): {self:#?}"))
    }

    /// The JSON documents on stdout, one a line.
    pub fn json_lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {self:#?}"))).collect()
    }
}

/// Runs a command to its end, or fails when it hangs.
pub fn finish(command: &mut Command) -> Done {
    finish_within(command, LIMIT)
}

pub fn finish_within(command: &mut Command, seconds: u64) -> Done {
    let dir = tempfile::tempdir().unwrap();
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let started = Instant::now();
    let child = command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap()).spawn().unwrap();
    let code = wait(child, seconds);
    let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    Done { code, stdout: text(&out), stderr: text(&err), seconds: started.elapsed().as_secs_f64() }
}

pub(crate) fn wait(mut child: Child, seconds: u64) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the command did not end within {seconds} s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Tensors of a committed fixture whose names begin with `prefix`, without it.
pub fn tensors(name: &str, prefix: &str) -> Vec<(String, LazyTensor)> {
    let file = Checkpoint::open(fixture(name).join("weights.safetensors")).unwrap();
    let under = file.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_owned(), t.clone())));
    under.collect()
}

/// Writes tensors as safetensors.
pub fn save(path: &Path, tensors: Vec<(String, LazyTensor)>) {
    write_safetensors(path, tensors, &Default::default()).unwrap();
}

/// Writes a model folder in `dir`: `name`'s configuration and adapter, the ViT and the language model of `towers`.
pub fn write_model(dir: &Path, name: &str, towers: &str) {
    fs::create_dir_all(dir.join("m3d")).unwrap();
    fs::create_dir_all(dir.join("llama")).unwrap();
    fs::copy(fixture(name).join("config.json"), dir.join("config.json")).unwrap();
    save(&dir.join("adapter.safetensors"), tensors(name, "heads/"));
    save(&dir.join("m3d/pretrained_ViT.safetensors"), tensors(towers, "vit/"));
    save(&dir.join("llama/model.safetensors"), tensors(towers, "llama/"));
    fs::copy(fixture(towers).join("llama/config.json"), dir.join("llama/config.json")).unwrap();
    fs::copy(package("tests/data/tokenizer/tokenizer.json"), dir.join("llama/tokenizer.json")).unwrap();
}

/// The folder of the tiny model, made once a test program.
pub fn tiny_model() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let dir = lasting();
        write_model(dir.path(), "tiny", "tiny");
        dir
    };
    FOLDER.get_or_init(make).path()
}

/// The tiny model's bundle, made once a test program; not to be changed.
pub fn tiny_bundle() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let dir = lasting();
        let plan = Plan::new(Sources::in_folder(tiny_model()).unwrap(), dir.path().join("onnx"));
        export::run(&plan, &mut Silent).unwrap();
        dir
    };
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| FOLDER.get_or_init(make).path().join("onnx"))
}

/// A copy of the tiny bundle that may be changed.
pub fn tiny_copy() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_files(tiny_bundle(), dir.path());
    dir
}

/// Copies the files of one folder into another.
pub fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The tiny model's recorded scan.
pub fn scan() -> PathBuf {
    fixture("tiny/scan.nii.gz")
}

/// A report in a new file.
pub fn report(dir: &Path) -> PathBuf {
    let path = dir.join("report.txt");
    fs::write(&path, "Memory complaints for two years. MMSE 24.\n").unwrap();
    path
}

/// A folder's `bundle.json`.
pub fn manifest(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("bundle.json")).unwrap()).unwrap()
}

pub fn write_manifest(dir: &Path, manifest: &Value) {
    fs::write(dir.join("bundle.json"), serde_json::to_vec_pretty(manifest).unwrap()).unwrap();
}

/// Makes `bundle.json` agree with the files as they are now, as someone who tampers on purpose would.
pub fn reseal(dir: &Path) {
    let mut manifest = manifest(dir);
    for file in manifest["files"].as_array_mut().unwrap() {
        let path = dir.join(file["name"].as_str().unwrap());
        file["bytes"] = fs::metadata(&path).unwrap().len().into();
        file["sha256"] = sha256_of(&path).unwrap().into();
    }
    write_manifest(dir, &manifest);
}

/// Every entry of a folder with its bytes (of files), to see that nothing changed.
pub fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<(String, Vec<u8>)> = entries
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).unwrap_or_default()))
        .collect();
    all.sort();
    all
}

/// Names in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}
