//! A bundle that answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::prediction::Prediction;
use super::reader::{Content, Scan, ScanReader};
use super::{EncodedReport, Options};
use crate::batch;
use crate::bundle::Bundle;
use crate::error::{Code, Error, Result};
use crate::execute::Verification;
use crate::execute::cache::features::{Features, Store};
use crate::execute::cache::prepacked::Prepacked;
use crate::execute::{self, MemoryBudget};
use crate::execute::{Backend, Opened, room, stages, store, taken};
use crate::execute::{GpuMemory, Memory, Run, Timing};
use crate::execute::{Stage, milliseconds};
use crate::model::Part;
use crate::runtime::{Input, OutputPlacement, Placement, SelectedDevice};
use crate::tensor::{Tensor, TensorView};
use crate::text::Tokenizer;
use crate::volume::{Grid, ReadOptions};

/// A bundle ready to answer.
pub struct Predictor {
    pub(super) bundle: Arc<Bundle>,
    pub(super) taken: Backend,
    pub(super) options: Options,
    pub(super) stages: BTreeMap<Part, Stage>,
    pub(super) verification: Verification,
    pub(super) store: Option<Store>,
    pub(super) prepacked: Option<Prepacked>,
    pub(super) tokenizer: Option<Tokenizer>,
    room: MemoryBudget,
    planned: u64,
    gpu: Option<GpuMemory>,
    /// Whether there is room to load the image's graphs while the language model runs.
    ahead: bool,
    /// Whether language model and image run at once.
    pub(super) together: bool,
    pub(super) opened: Instant,
    /// When the last answer was given, or the bundle opened.
    answered: Instant,
    /// Milliseconds that opening took, until a prediction tells them.
    opening: Option<f64>,
    /// Milliseconds from opening to the first run of a graph.
    pub(super) began: Option<f64>,
}

/// A scan as the vision transformer sees it.
pub(super) struct Seen {
    path: PathBuf,
    cached: bool,
    features: Features,
    /// The stages' tensors, where they are kept.
    tensors: Vec<(String, Tensor)>,
    timing: Timing,
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
        let taken = taken(&bundle, &options)?;
        let store = options.cache.as_deref().map(|cache| store(cache, &bundle, &taken)).transpose()?;
        let on_gpu = taken.chosen.provider.on_gpu();
        if options.prepacked && on_gpu {
            options.tell.say("weights are laid out for processors alone: --prepacked does nothing on a GPU");
        }
        let prepacked = options.cache.as_deref().filter(|_| options.prepacked && !on_gpu);
        let prepacked = prepacked.map(|cache| Prepacked::new(cache, &bundle.model_sha256, taken.runtime));
        let room = room(&bundle, &options, &taken);
        let Opened { stages, planned, ahead, together, gpu } = stages(&bundle, &options, &taken, &room)?;
        let verification = Verification::new(&bundle, options.cache.clone(), options.threads != Some(1));
        Ok(Self {
            bundle,
            taken,
            options,
            stages,
            verification,
            store,
            prepacked,
            tokenizer: None,
            room,
            planned,
            gpu,
            ahead,
            together,
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
        self.taken.chosen.provider.name()
    }

    /// The device that was chosen, and why.
    pub fn chosen(&self) -> &SelectedDevice {
        &self.taken.chosen
    }

    /// Which provider computes which nodes of each graph that was loaded; always on a GPU, else where [`Options::placement`] asks.
    pub fn placements(&self) -> impl Iterator<Item = (Part, Placement)> {
        Part::ALL.iter().filter_map(|part| Some((*part, self.stages.get(part)?.placement()?)))
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
        for part in [Part::Vision, Part::Adapter, Part::Heads] {
            self.verification.start(part)?;
            if let Some(stage) = self.stages.get_mut(&part) {
                stage.load_ahead();
            }
        }
        Ok(())
    }

    /// Classifies a scan, with its report or by the image alone.
    ///
    /// # Errors
    /// `nifti.constant`, `bundle.no_image_head`, `bundle.checksum`, `bundle.replaced`, `runtime.*`.
    pub fn predict(&mut self, scan: Scan, report: Option<&EncodedReport>) -> Result<Prediction> {
        if report.is_none() {
            self.needs_no_report()?;
        }
        let seen = self.look(scan)?;
        self.answer(seen, report)
    }

    /// A scan through the adapter and the vision transformer.
    pub(super) fn look(&mut self, scan: Scan) -> Result<Seen> {
        let mut timing = Timing::default();
        if let Some(opening) = self.opening.take() {
            timing.add("open", opening);
        }
        timing.add("scan", scan.milliseconds);
        let cached = matches!(scan.content, Content::Features(_));
        let path = scan.path.clone();
        let (features, tensors) = self.see(scan, &mut timing)?;
        Ok(Seen { path, cached, features, tensors, timing })
    }

    /// The answer for a scan that was seen, with its report or without.
    pub(super) fn answer(&mut self, seen: Seen, report: Option<&EncodedReport>) -> Result<Prediction> {
        let Seen { path, cached, features, mut tensors, mut timing } = seen;
        let mut warnings = features.warnings;
        if let Some(report) = report {
            timing.merge(&report.timing);
            warnings.extend(report.warnings.iter().cloned());
        }
        let heads = self.heads(&features.tensor, report, &mut timing)?;
        self.verified(&[Part::Heads], &mut timing)?;
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
        // From one graph to the next it stays where it is, unless all tensors are wanted.
        let leaves = self.stages.get(&Part::Adapter).map_or(OutputPlacement::Host, Stage::leave);
        let leave = if self.options.keep_tensors { OutputPlacement::Host } else { leaves };
        let given = [("volume", self.row_major(&volume)?)];
        let adapter = one(self.flow(Part::Adapter, &given, &[("adapter", leave)], timing)?);
        // 67 MB that nobody reads again, unless all tensors are wanted.
        let volume = self.options.keep_tensors.then_some(volume);
        let given = adapter.input().ok_or_else(|| self.broken())?;
        let vision =
            one(self.flow(Part::Vision, &[("adapter", given)], &[("vision", OutputPlacement::Host)], timing)?);
        let vision = vision.host().ok_or_else(|| self.broken())?;
        self.verified(&[Part::Adapter, Part::Vision], timing)?;
        let features = Features { tensor: vision, warnings, tokens: 0 };
        if let (Some(store), Some(key)) = (&self.store, &scan.key) {
            store.put(key, &features)?;
        }
        let kept = volume.zip(adapter.host()).map(|(volume, adapter)| {
            let stages = [("volume", volume), ("adapter", adapter), ("vision", features.tensor.clone())];
            stages.map(|(n, t)| (n.to_owned(), t)).to_vec()
        });
        Ok((features, kept.unwrap_or_default()))
    }

    pub(super) fn row_major<'a>(&self, tensor: &'a Tensor) -> Result<Input<'a>> {
        TensorView::of(tensor).map(Input::Host).ok_or_else(|| self.broken())
    }

    fn broken(&self) -> Error {
        Error::new(Code::RUNTIME_RUN, "a graph's result is not in row-major order").at(&self.bundle.dir)
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
        let tensors = self.run(Part::Heads, &feed, &names, timing)?;
        Ok(names.into_iter().map(str::to_owned).zip(tensors).collect())
    }

    /// How the run really went.
    fn told(&self, from_cache: Vec<&'static str>) -> Run {
        let stage = |part: &Part| self.stages.get(part).map(Stage::told);
        Run {
            chosen: Some(self.taken.chosen.clone()),
            stages: Part::ALL.iter().filter_map(stage).collect(),
            from_cache,
            memory_bytes: Memory {
                limit: self.room.explicit.then_some(self.room.limit),
                planned: self.planned,
                peak: execute::peak(),
            },
            gpu_memory_bytes: self.gpu,
            weights: self.verification.how(self.stages.values().any(Stage::is_prepacked)),
            started_ms: self.began,
            wall_ms: None,
        }
    }
}

/// The only result of a run with one output.
pub(super) fn one<T>(results: Vec<T>) -> T {
    results.into_iter().next().expect("a run gives one value an output")
}
