//! A bundle that answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::Options;
use super::features::{Features, Store};
use super::memory::{self, Room};
use super::opening::{chosen, room, stages, store};
use super::prediction::{Memory, Prediction, Run, Timing};
use super::prepacked::Prepacked;
use super::reader::{Content, Scan, ScanReader};
use super::stage::{Stage, milliseconds};
use super::verification::Verification;
use crate::batch;
use crate::bundle::Bundle;
use crate::error::{Code, Error, Result, Warning};
use crate::model::PARTS;
use crate::runtime::{Chosen, Placement, Runtime};
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::volume::{Grid, ReadOptions};

/// A report, read by the language model.
#[derive(Clone, Debug)]
pub struct EncodedReport {
    /// `text` f32 `[1, text.hidden]`.
    text: Tensor,
    /// `input_ids` and `attention_mask`, where tensors are kept.
    inputs: Option<[Tensor; 2]>,
    /// Number of tokens read.
    pub tokens: usize,
    cached: bool,
    warnings: Vec<Warning>,
    timing: Timing,
}

impl EncodedReport {
    /// What the language model made of it: `text` f32 `[1, text.hidden]`.
    pub fn features(&self) -> &Tensor {
        &self.text
    }

    /// What is to be known of the reading.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// A bundle ready to answer.
pub struct Predictor {
    bundle: Arc<Bundle>,
    runtime: &'static Runtime,
    options: Options,
    chosen: Chosen,
    stages: BTreeMap<&'static str, Stage>,
    verification: Verification,
    store: Option<Store>,
    prepacked: Option<Prepacked>,
    tokenizer: Option<Tokenizer>,
    room: Room,
    planned: u64,
    /// Whether there is room to load the image's graphs while the language model runs.
    ahead: bool,
    opened: Instant,
    /// When the last answer was given, or the bundle opened.
    answered: Instant,
    /// Milliseconds that opening took, until a prediction tells them.
    opening: Option<f64>,
    /// Milliseconds from opening to the first run of a graph.
    began: Option<f64>,
}

impl Predictor {
    /// Opens the bundle in `dir`, loads ONNX Runtime and plans the run's memory; graphs are loaded when they are needed, and
    /// their weights verified before anything is told that was computed with them.
    ///
    /// # Errors
    /// `bundle.*`, `runtime.missing`, `runtime.version`, `device.unavailable`, `memory.limit`.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        let opened = Instant::now();
        let bundle = Arc::new(Bundle::open_quickly(dir)?);
        let chosen = chosen(&bundle, &options)?;
        let device = chosen.provider.name();
        let runtime = Runtime::load(chosen.library.as_deref())?;
        let store = options.cache.as_deref().map(|cache| store(cache, &bundle, runtime, device)).transpose()?;
        let prepacked = options.cache.as_deref().filter(|_| options.prepacked);
        let prepacked = prepacked.map(|cache| Prepacked::new(cache, &bundle.model_sha256, runtime));
        let room = room(&bundle, &options);
        let (stages, planned, ahead) = stages(&bundle, &options, chosen.provider, &room)?;
        let verification = Verification::new(&bundle, options.cache.clone(), options.threads != Some(1));
        Ok(Self {
            bundle,
            runtime,
            options,
            chosen,
            stages,
            verification,
            store,
            prepacked,
            tokenizer: None,
            room,
            planned,
            ahead,
            opened,
            answered: opened,
            opening: Some(milliseconds(opened)),
            began: None,
        })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The device that really computes.
    pub fn device(&self) -> &'static str {
        self.chosen.provider.name()
    }

    /// The device that was chosen, and why.
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// Which provider computes which nodes of each graph that was loaded; always on a GPU, else where [`Options::placement`] asks.
    pub fn placements(&self) -> impl Iterator<Item = (&'static str, Placement)> {
        PARTS.iter().filter_map(|part| Some((*part, self.stages.get(part)?.placement()?)))
    }

    /// What reads scans for this bundle.
    pub fn reader(&self) -> ScanReader {
        let config = &self.bundle.manifest.config.volume;
        ScanReader {
            options: ReadOptions { grid: Grid::cube(config.size, config.voxel_mm), volume: self.options.volume },
            store: self.store.clone(),
            voxels: self.options.voxels || self.options.keep_tensors,
            clip: config.clip,
        }
    }

    /// Whether scans may be read on another thread while this one computes.
    pub fn reads_beside(&self) -> bool {
        self.options.threads != Some(1)
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

    /// Begins to load what scans go through, on another thread and where there is room for it, while this one has other work.
    ///
    /// # Errors
    /// `bundle.checksum`, `io`: those of the files' verification.
    pub fn load_ahead(&mut self) -> Result<()> {
        if !self.ahead || !self.reads_beside() || self.prepacked.is_some() {
            return Ok(());
        }
        for part in ["vision", "adapter", "heads"] {
            self.verification.start(part)?;
            if let Some(stage) = self.stages.get_mut(part) {
                stage.load_ahead(self.runtime);
            }
        }
        Ok(())
    }

    /// Tokenizes a report and runs the language model on it, or finds what it made of it in the cache.
    ///
    /// # Errors
    /// `tokenizer.invalid`, `bundle.checksum`, `bundle.replaced` or `runtime.*`.
    pub fn encode_report(&mut self, report: &str) -> Result<EncodedReport> {
        let key = self.store.as_ref().map(|store| store.report_key(report));
        let known = self.store.as_ref().zip(key.as_ref()).filter(|_| !self.options.keep_tensors);
        if let Some(Features { tensor, warnings, tokens }) = known.and_then(|(store, key)| store.get(key)) {
            let timing = Timing::default();
            return Ok(EncodedReport { text: tensor, inputs: None, tokens, cached: true, warnings, timing });
        }
        let tokens = self.tokenize(report)?;
        let inputs = batch::report(&tokens);
        let mut timing = Timing::default();
        let feed = [("input_ids", &inputs[0]), ("attention_mask", &inputs[1])];
        let text = one(self.run("text", &feed, &["text"], &mut timing)?);
        self.verified(&["text"], &mut timing)?;
        let warnings: Vec<Warning> = tokens.warning().into_iter().collect();
        let tokens = tokens.ids.len();
        if let (Some(store), Some(key)) = (&self.store, &key) {
            store.put(key, &Features { tensor: text.clone(), warnings: warnings.clone(), tokens })?;
        }
        let inputs = self.options.keep_tensors.then_some(inputs);
        Ok(EncodedReport { text, inputs, tokens, cached: false, warnings, timing })
    }

    fn tokenize(&mut self, report: &str) -> Result<crate::text::Tokens> {
        let record = &self.bundle.manifest.tokenizer;
        let tokenizer = match &mut self.tokenizer {
            Some(tokenizer) => tokenizer,
            slot => {
                let tokenizer = Tokenizer::load(&self.bundle.file(&record.file), record.bos)?;
                self.bundle.still_here()?;
                slot.insert(tokenizer)
            }
        };
        let tokens = tokenizer.encode(report, record.max_tokens)?;
        let rows = self.bundle.manifest.text_model.vocab as i64;
        if let Some(id) = tokens.ids.iter().find(|id| **id >= rows) {
            let message = format!("the report gives token {id}, and the language model knows {rows}");
            return Err(Error::new(Code::TOKENIZER_INVALID, message).at(self.bundle.file(&record.file)));
        }
        Ok(tokens)
    }

    /// Classifies a scan, with its report or by the image alone.
    ///
    /// # Errors
    /// `nifti.constant`, `bundle.no_image_head`, `bundle.checksum`, `bundle.replaced`, `runtime.*`.
    pub fn predict(&mut self, scan: Scan, report: Option<&EncodedReport>) -> Result<Prediction> {
        if report.is_none() {
            self.needs_no_report()?;
        }
        let mut timing = Timing::default();
        if let Some(opening) = self.opening.take() {
            timing.add("open", opening);
        }
        timing.add("scan", scan.milliseconds);
        let cached = matches!(scan.content, Content::Features(_));
        let path = scan.path.clone();
        let (features, mut tensors) = self.see(scan, &mut timing)?;
        let mut warnings = features.warnings;
        if let Some(report) = report {
            timing.merge(&report.timing);
            warnings.extend(report.warnings.iter().cloned());
        }
        let heads = self.heads(&features.tensor, report, &mut timing)?;
        self.verified(&["heads"], &mut timing)?;
        let mut prediction = Prediction::new(&self.bundle, self.device(), path, &heads, report.is_some())?;
        if self.options.keep_tensors {
            if let Some((report, [ids, mask])) = report.and_then(|r| Some((r, r.inputs.clone()?))) {
                let stages = [("input_ids", ids), ("attention_mask", mask), ("text", report.text.clone())];
                tensors.extend(stages.map(|(n, t)| (n.to_owned(), t)));
            }
            tensors.extend(heads);
            prediction.tensors = tensors;
        }
        prediction.warnings = warnings;
        prediction.timing_ms = timing;
        let from_cache = [("vision", cached), ("text", report.is_some_and(|r| r.cached))];
        let wall = std::mem::replace(&mut self.answered, Instant::now()).elapsed();
        prediction.run = self.told(from_cache.into_iter().filter(|(_, c)| *c).map(|(n, _)| n).collect());
        prediction.run.wall_ms = Some(wall.as_secs_f64() * 1e3);
        Ok(prediction)
    }

    /// What the vision transformer makes of a scan, and the stages' tensors where they are kept.
    fn see(&mut self, scan: Scan, timing: &mut Timing) -> Result<(Features, Vec<(String, Tensor)>)> {
        let started = Instant::now();
        let volume = match scan.content {
            Content::Features(features) => return Ok((features, Vec::new())),
            Content::Volume(volume) => *volume,
            Content::Voxels(conformed) => {
                conformed.normalize(self.bundle.manifest.config.volume.clip).map_err(|e| e.at(&scan.path))?
            }
        };
        timing.add("scan", milliseconds(started));
        let warnings = volume.warnings.clone();
        let volume = batch::volume(volume);
        let adapter = one(self.run("adapter", &[("volume", &volume)], &["adapter"], timing)?);
        // 67 MB that nobody reads again, unless all tensors are wanted.
        let volume = self.options.keep_tensors.then_some(volume);
        let vision = one(self.run("vision", &[("adapter", &adapter)], &["vision"], timing)?);
        self.verified(&["adapter", "vision"], timing)?;
        let features = Features { tensor: vision, warnings, tokens: 0 };
        if let (Some(store), Some(key)) = (&self.store, &scan.key) {
            store.put(key, &features)?;
        }
        let kept = volume.map(|volume| {
            let stages = [("volume", volume), ("adapter", adapter), ("vision", features.tensor.clone())];
            stages.map(|(n, t)| (n.to_owned(), t)).to_vec()
        });
        Ok((features, kept.unwrap_or_default()))
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
        self.prepare(part, timing)?;
        let (opened, began) = (self.opened, &mut self.began);
        let stage = self.stages.get_mut(part).ok_or_else(|| {
            let message = format!("no memory was planned for the graph `{part}`: the options expect no report");
            Error::new(Code::MEMORY_LIMIT, message).at(&self.bundle.dir)
        })?;
        let results = stage.run(self.runtime, inputs, outputs, timing, &mut || {
            began.get_or_insert_with(|| milliseconds(opened));
        })?;
        // Nothing is computed with parts of two bundles.
        if stage.take_opened() {
            self.bundle.still_here()?;
        }
        Ok(results)
    }

    /// What comes before a graph is loaded: its weights begin to be verified, or a laid-out copy of it is found or made.
    fn prepare(&mut self, part: &'static str, timing: &mut Timing) -> Result<()> {
        // Small weights are laid out in no time.
        let large = !self.bundle.large_files(part).is_empty();
        let stage = self.stages.get_mut(part).filter(|stage| large && stage.whole());
        let (Some(prepacked), Some(stage)) = (&self.prepacked, stage) else { return self.verification.start(part) };
        if stage.is_prepacked() {
            return Ok(());
        }
        let path = match prepacked.find(part) {
            Some(path) => path,
            None => {
                let started = Instant::now();
                self.verification.start(part)?;
                self.verification.wait(part)?;
                let need = self.bundle.manifest.parts[part].bytes.saturating_mul(9) / 4;
                let path = prepacked.make(part, stage.path(), need, self.runtime, &stage.options())?;
                timing.add("prepack", milliseconds(started));
                path
            }
        };
        stage.take_prepacked(path);
        Ok(())
    }

    /// Waits until the weights of these parts are verified.
    fn verified(&mut self, parts: &[&str], timing: &mut Timing) -> Result<()> {
        let started = Instant::now();
        parts.iter().try_for_each(|part| self.verification.wait(part))?;
        let waited = milliseconds(started);
        if waited > 1.0 {
            timing.add("verify", waited);
        }
        Ok(())
    }

    /// How the run really went.
    fn told(&self, from_cache: Vec<&'static str>) -> Run {
        let stage = |part: &&'static str| self.stages.get(part).map(Stage::told);
        Run {
            chosen: Some(self.chosen.clone()),
            stages: PARTS.iter().filter_map(stage).collect(),
            from_cache,
            memory_bytes: Memory {
                limit: self.room.asked.then_some(self.room.limit),
                planned: self.planned,
                peak: memory::peak(),
            },
            weights: self.verification.how(self.stages.values().any(Stage::is_prepacked)),
            started_ms: self.began,
            wall_ms: None,
        }
    }
}

/// The only result of a run with one output.
fn one(results: Vec<Tensor>) -> Tensor {
    results.into_iter().next().expect("a run gives one tensor an output")
}
