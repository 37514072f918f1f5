//! A study: a model, the same model with an adapter and heads that were trained on, calibration inputs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::tensor::{DType, LazyTensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use crate::commands::{Done, ba_export, ba_train, copy_files, fixture, save, scan, tensors, write_model};

/// Folders and files in one temporary folder.
pub struct Study {
    pub dir: TempDir,
    /// The model before training.
    pub model: PathBuf,
    /// The model as it would be after it.
    pub next: PathBuf,
    /// The trained tensors alone.
    pub trained: PathBuf,
    pub calibration: PathBuf,
    pub report: PathBuf,
}

impl Study {
    /// A study of the committed fixture `name` with the ViT and the language model of `towers`.
    pub fn new(name: &str, towers: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let study = Self {
            model: at("model"),
            next: at("next"),
            trained: at("trained.safetensors"),
            calibration: at("calibration"),
            report: at("report.txt"),
            dir,
        };
        write_model(&study.model, name, towers);
        write_model(&study.next, name, towers);
        save(&study.trained, changed(name, 1));
        fs::copy(&study.trained, study.next.join("adapter.safetensors")).unwrap();
        fs::create_dir(&study.calibration).unwrap();
        for i in 0..3 {
            let scan = if i == 1 { fixture("tiny-gqa-bf16-sharded/scan.nii.gz") } else { scan() };
            fs::copy(scan, study.calibration.join(format!("case{i}.nii.gz"))).unwrap();
            let text = format!("Case {i}: memory complaints for {} years. MMSE {}.", i + 1, 27 - 3 * i);
            fs::write(study.calibration.join(format!("case{i}.txt")), text).unwrap();
        }
        fs::write(&study.report, "Memory complaints for two years. MMSE 24.\n").unwrap();
        study
    }

    /// Exports a model to a folder of the study, calibrated.
    pub fn export(&self, precision: &str, to: &str, model: &Path) -> PathBuf {
        let to = self.dir.path().join(to);
        let calibration = &self.calibration;
        ba_export(&[&"--model", &model, &"--quantize", &precision, &"--calibration", calibration, &"-o", &to]).ok();
        to
    }

    /// Applies the trained tensors; JSON on stdout.
    pub fn apply(&self, bundle: &Path, more: &[&str]) -> Done {
        let (trained, calibration) = (&self.trained, &self.calibration);
        let mut args: Vec<&dyn AsRef<OsStr>> =
            vec![&"apply", &"--json", &"--checkpoint", trained, &"--bundle", &bundle];
        args.extend([&"--calibration" as &dyn AsRef<OsStr>, calibration]);
        args.extend(more.iter().map(|m| m as &dyn AsRef<OsStr>));
        ba_train(&args)
    }

    /// Trained tensors of another configuration.
    pub fn other(&self) -> PathBuf {
        let path = self.dir.path().join("other.safetensors");
        save(&path, tensors("tiny-bottleneck3d", "heads/"));
        path
    }

    /// A copy of a bundle under another name.
    pub fn copy(&self, bundle: &Path, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        fs::create_dir(&to).unwrap();
        copy_files(bundle, &to);
        to
    }
}

/// The trained tensors of a fixture after some training: all floats moved, variances kept positive.
pub fn changed(name: &str, seed: u64) -> Vec<(String, LazyTensor)> {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let mut all = tensors(name, "heads/");
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (_, tensor) in all.iter_mut().filter(|(_, t)| t.dtype() == DType::F32) {
        let scale = |v: f32, rng: &mut ChaCha8Rng| v * rng.random_range(0.6..1.6);
        let values: Vec<f32> = tensor.to_f32().unwrap().into_iter().map(|v| scale(v, rng)).collect();
        *tensor = LazyTensor::from_f32(tensor.shape(), &values);
    }
    all
}

/// Puts a NaN into a tensor.
pub fn poison(tensors: &mut [(String, LazyTensor)], name: &str) {
    let (_, tensor) = tensors.iter_mut().find(|(n, _)| n == name).unwrap();
    let mut values = tensor.to_f32().unwrap();
    *values.last_mut().unwrap() = f32::NAN;
    *tensor = LazyTensor::from_f32(tensor.shape(), &values);
}

/// Names, types and shapes of a checkpoint.
pub fn dtypes_and_shapes(path: &Path) -> Vec<(String, DType, Vec<usize>)> {
    let file = Checkpoint::open(path).unwrap();
    file.iter().map(|(name, t)| (name.to_owned(), t.dtype(), t.shape().to_vec())).collect()
}

/// The folder of a committed fixture.
pub fn folder(name: &str) -> PathBuf {
    fixture(name)
}
