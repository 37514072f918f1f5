//! Scan (and report) → CN / MCI / AD: the work of `ba-infer`.
//!
//! Layer 6, feature `runtime`. A [`Predictor`] holds a verified bundle and opens each graph when it is first needed.
//!
//! ```no_run
//! use brain_adapter::infer::{Options, Predictor};
//!
//! let mut predictor = Predictor::open("onnx".as_ref(), Options::default())?;
//! let report = predictor.encode_report("Memory complaints for two years. MMSE 24.")?;
//! let scan = predictor.read_scan("scan.nii.gz".as_ref())?;
//! let prediction = predictor.predict(scan, Some(&report))?;
//! println!("{} {:?}", prediction.label, prediction.probabilities);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

pub mod cohort;
mod prediction;

use std::path::{Path, PathBuf};
use std::time::Instant;

pub use prediction::{BundleIdentity, Prediction, Timing};

use crate::batch;
use crate::bundle::Bundle;
use crate::error::{Code, Error, Result, Warning};
use crate::model::PARTS;
use crate::runtime::{Device, Runtime, Session, SessionOptions};
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::volume::{self, Conformed, Grid, ReadOptions};

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where to run.
    pub device: Device,
    /// Threads within an operator; by default one a core.
    pub threads: Option<usize>,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<PathBuf>,
    /// The volume of a 4-D scan, from 0.
    pub volume: Option<usize>,
    /// Whether graphs stay loaded for the next scan; else each is released when its stage is done.
    pub keep_loaded: bool,
    /// Whether predictions carry every stage's tensor.
    pub keep_tensors: bool,
}

/// A scan, read and conformed.
pub struct Scan {
    /// Its file.
    pub path: PathBuf,
    /// Its voxels on the model's grid.
    pub conformed: Conformed,
    /// Milliseconds that reading took.
    pub milliseconds: f64,
}

/// A report, read by the language model.
#[derive(Clone, Debug)]
pub struct EncodedReport {
    /// `text` f32 `[1, text.hidden]`.
    text: Tensor,
    /// `input_ids` and `attention_mask`.
    inputs: [Tensor; 2],
    /// Number of tokens read.
    pub tokens: usize,
    warnings: Vec<Warning>,
    timing: Timing,
}

/// A bundle ready to answer.
pub struct Predictor {
    bundle: Bundle,
    runtime: &'static Runtime,
    options: Options,
    device: &'static str,
    sessions: [Option<Session>; 4],
    tokenizer: Option<Tokenizer>,
}

impl Predictor {
    /// Verifies the bundle in `dir` and loads ONNX Runtime; graphs are loaded when they are needed.
    ///
    /// # Errors
    /// `bundle.*`, `runtime.missing`, `runtime.version`, `device.unavailable`.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        let device = options.device.provider()?.name();
        let bundle = Bundle::open(dir)?;
        let runtime = Runtime::load(options.library.as_deref())?;
        Ok(Self { bundle, runtime, options, device, sessions: [const { None }; 4], tokenizer: None })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The device that really computes.
    pub fn device(&self) -> &'static str {
        self.device
    }

    /// Fails when scans without a report cannot be answered, before any work is done.
    ///
    /// # Errors
    /// `bundle.no_image_head`.
    pub fn needs_no_report(&self) -> Result<()> {
        if self.bundle.manifest.image_head {
            return Ok(());
        }
        let message = "no report was given, and the bundle has no image-only classifier: give the report with --report";
        Err(Error::new(Code::BUNDLE_NO_IMAGE_HEAD, message).at(&self.bundle.dir))
    }

    /// Reads a scan onto the model's grid.
    ///
    /// # Errors
    /// `nifti.*` or `io`.
    pub fn read_scan(&self, path: &Path) -> Result<Scan> {
        let started = Instant::now();
        let config = &self.bundle.manifest.config.volume;
        let options = ReadOptions { grid: Grid::cube(config.size, config.voxel_mm), volume: self.options.volume };
        let conformed = volume::read(path, &options)?;
        Ok(Scan { path: path.to_path_buf(), conformed, milliseconds: milliseconds(started) })
    }

    /// Tokenizes a report and runs the language model on it.
    ///
    /// # Errors
    /// `tokenizer.invalid` or `runtime.*`.
    pub fn encode_report(&mut self, report: &str) -> Result<EncodedReport> {
        let record = &self.bundle.manifest.tokenizer;
        let tokenizer = match &mut self.tokenizer {
            Some(tokenizer) => tokenizer,
            slot => slot.insert(Tokenizer::load(&self.bundle.file(&record.file), record.bos)?),
        };
        let tokens = tokenizer.encode(report, record.max_tokens)?;
        let rows = self.bundle.manifest.text_model.vocab as i64;
        if let Some(id) = tokens.ids.iter().find(|id| **id >= rows) {
            let message = format!("the report gives token {id}, and the language model knows {rows}");
            return Err(Error::new(Code::TOKENIZER_INVALID, message).at(self.bundle.file(&record.file)));
        }
        let inputs = batch::report(&tokens);
        let mut timing = Timing::default();
        let feed = [("input_ids", &inputs[0]), ("attention_mask", &inputs[1])];
        let text = one(self.run("text", &feed, &["text"], &mut timing)?);
        let warnings = tokens.warning().into_iter().collect();
        Ok(EncodedReport { text, inputs, tokens: tokens.ids.len(), warnings, timing })
    }

    /// Classifies a scan, with its report or by the image alone.
    ///
    /// # Errors
    /// `nifti.constant`, `bundle.no_image_head`, `runtime.*`.
    pub fn predict(&mut self, scan: Scan, report: Option<&EncodedReport>) -> Result<Prediction> {
        if report.is_none() {
            self.needs_no_report()?;
        }
        let mut timing = Timing::default();
        let started = Instant::now();
        let volume = scan.conformed.normalize(self.bundle.manifest.config.volume.clip).map_err(|e| e.at(&scan.path))?;
        timing.add("scan", scan.milliseconds + milliseconds(started));
        let mut warnings = volume.warnings.clone();
        let volume = batch::volume(volume);
        let adapter = one(self.run("adapter", &[("volume", &volume)], &["adapter"], &mut timing)?);
        let vision = one(self.run("vision", &[("adapter", &adapter)], &["vision"], &mut timing)?);
        if let Some(report) = report {
            timing.merge(&report.timing);
            warnings.extend(report.warnings.iter().cloned());
        }
        let heads = self.heads(&vision, report, &mut timing)?;
        let mut prediction = Prediction::new(&self.bundle, self.device, scan.path, &heads, report.is_some())?;
        if self.options.keep_tensors {
            let stages = [("volume", volume), ("adapter", adapter), ("vision", vision)];
            prediction.tensors.extend(stages.map(|(n, t)| (n.to_owned(), t)));
            if let Some(report) = report {
                let [ids, mask] = report.inputs.clone();
                let stages = [("input_ids", ids), ("attention_mask", mask), ("text", report.text.clone())];
                prediction.tensors.extend(stages.map(|(n, t)| (n.to_owned(), t)));
            }
            prediction.tensors.extend(heads);
        }
        prediction.warnings = warnings;
        prediction.timing_ms = timing;
        Ok(prediction)
    }

    /// The heads' outputs by name. Without a report zeros stand in for the text, and only what does not depend on
    /// it is computed for the caller.
    fn heads(
        &mut self,
        vision: &Tensor,
        report: Option<&EncodedReport>,
        timing: &mut Timing,
    ) -> Result<Vec<(String, Tensor)>> {
        let absent = Tensor::F32(ndarray::ArrayD::zeros(vec![1, self.bundle.manifest.config.text.hidden]));
        let mut names = match report {
            Some(_) => vec!["v", "t", "logits", "similarity"],
            None => vec!["v"],
        };
        names.extend(self.bundle.manifest.image_head.then_some("image_logits"));
        let feed = [("vision", vision), ("text", report.map_or(&absent, |r| &r.text))];
        let tensors = self.run("heads", &feed, &names, timing)?;
        Ok(names.into_iter().map(str::to_owned).zip(tensors).collect())
    }

    fn run(
        &mut self,
        part: &'static str,
        inputs: &[(&str, &Tensor)],
        outputs: &[&str],
        timing: &mut Timing,
    ) -> Result<Vec<Tensor>> {
        let index = PARTS.iter().position(|p| *p == part).expect("a part of the model");
        let mut session = match self.sessions[index].take() {
            Some(session) => session,
            None => {
                let started = Instant::now();
                let record = &self.bundle.manifest.parts[part];
                let options = SessionOptions {
                    device: self.options.device,
                    threads: self.options.threads,
                    ..SessionOptions::default()
                };
                let session = Session::open(self.runtime, &self.bundle.file(&record.file), &options)?;
                timing.add("load", milliseconds(started));
                session
            }
        };
        let started = Instant::now();
        let results = session.run(inputs, outputs)?;
        timing.add(part, milliseconds(started));
        if self.options.keep_loaded {
            self.sessions[index] = Some(session);
        }
        Ok(results)
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The only result of a run with one output.
fn one(results: Vec<Tensor>) -> Tensor {
    results.into_iter().next().expect("a run gives one tensor an output")
}
