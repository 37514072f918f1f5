//! Answers for scans and reports: what goes through which graphs, and what a prediction is made of.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::Options;
use super::encoded_report::EncodedReport;
use super::prediction::Prediction;
use super::results::AnswerContext;
use super::scan::{Content, Scan, ScanReader};
use crate::batch;
use crate::bundle::{Bundle, Tool, unchanged_while};
use crate::error::{Code, Error, Result, Warning};
use crate::execute::cache::features::{Features, Store};
use crate::execute::{Pipeline, Timing, milliseconds};
use crate::model::Part;
use crate::runtime::{Input, OutputPlacement, Placement, SelectedDevice};
use crate::tensor::{Tensor, TensorView};
use crate::text::Tokenizer;
use crate::volume::{Grid, ReadOptions};

/// A bundle ready to answer, from as many threads as share it ([`Pipeline`] says how).
pub struct Predictor {
    pipeline: Pipeline,
    options: Options,
    store: Option<Store>,
    /// Loaded with the first report.
    tokenizer: OnceLock<Tokenizer>,
    clock: Mutex<Clock>,
    /// Whether a result has the warning that memory was exceeded.
    told_exceeded: AtomicBool,
}

/// Wall time between results.
struct Clock {
    /// When the last prediction was made, or the bundle opened.
    last: Instant,
    /// Milliseconds that opening took, until a prediction reports them.
    opening: Option<f64>,
}

/// A scan, encoded by adapter and vision transformer.
pub(super) struct EncodedScan {
    path: PathBuf,
    cached: bool,
    features: Features,
    /// The stages' tensors, where they are kept.
    tensors: Vec<(String, Tensor)>,
    timing: Timing,
}

impl Predictor {
    /// Opens the bundle in `dir`, loads ONNX Runtime and plans the run's memory. Graphs are loaded when they are first
    /// needed; their weights are verified before a result leaves.
    ///
    /// # Errors
    /// `bundle.*`, `runtime.missing`, `runtime.version`, `device.*`, `memory.limit`.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        Self::open_for(dir, options, None)
    }

    /// As [`Self::open`], for scans with this report, or shorter ones: memory is planned for its tokens instead of the
    /// model's maximum.
    ///
    /// # Errors
    /// As [`Self::open`]; also `tokenizer.invalid`.
    pub fn open_for(dir: &Path, mut options: Options, report: Option<&str>) -> Result<Self> {
        let tokenizer = OnceLock::new();
        // A report whose features the cache may have needs no tokenizer.
        let pipeline = match report.filter(|_| options.cache.is_none()) {
            Some(report) => {
                let bundle = Arc::new(Bundle::open_quickly(dir)?);
                let loaded = load_tokenizer(&bundle)?;
                options.report_tokens = Some(loaded.encode(report, bundle.manifest.tokenizer.max_tokens)?.ids.len());
                tokenizer.get_or_init(|| loaded);
                Pipeline::over(bundle, &options)?
            }
            None => Pipeline::open(dir, &options)?,
        };
        let store = options.cache.as_deref().map(|cache| pipeline.feature_store(cache)).transpose()?;
        let opened = pipeline.opened();
        let clock = Mutex::new(Clock { last: opened, opening: Some(milliseconds(opened)) });
        Ok(Self { pipeline, options, store, tokenizer, clock, told_exceeded: AtomicBool::new(false) })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        self.pipeline.bundle()
    }

    /// The device that computes.
    pub fn device(&self) -> &'static str {
        self.pipeline.device()
    }

    /// The device that was selected, and why.
    pub fn chosen(&self) -> &SelectedDevice {
        self.pipeline.chosen()
    }

    /// Which provider computes which nodes of each graph that was loaded; always on a GPU, else where
    /// [`Options::placement`] asks.
    pub fn placements(&self) -> impl Iterator<Item = (Part, Placement)> {
        self.pipeline.placements()
    }

    /// A reader of scans for this bundle.
    pub fn reader(&self) -> ScanReader {
        let config = &self.bundle().manifest.config.volume;
        ScanReader {
            options: ReadOptions {
                grid: Grid::cube(config.size, config.voxel_mm),
                volume: self.options.volume,
                orientation: self.options.orientation,
            },
            store: self.store.clone(),
            keep_voxels: self.options.voxels || self.options.keep_tensors,
            clip: config.clip,
            identify: false,
        }
    }

    /// What answers depend on besides scan and report.
    pub fn answer_context(&self) -> AnswerContext {
        let Tool { name, version } = Tool::this();
        // In one part with the device, so that keys of answers without it are those of earlier versions.
        let stated = self.options.orientation.map(|codes| format!(", orientation {codes}")).unwrap_or_default();
        let strict = self.options.strict_quality.then(|| "strict quality".to_owned());
        let parts = [name, version, self.bundle().sha256.clone(), format!("{}{stated}", self.device())];
        AnswerContext::new(parts.into_iter().chain(strict), self.options.volume)
    }

    /// Whether scans may be read on another thread while this one computes.
    pub fn reads_in_background(&self) -> bool {
        self.pipeline.in_background()
    }

    /// Fails when scans without a report cannot be classified, before any work is done.
    ///
    /// # Errors
    /// `bundle.no_image_head`.
    pub fn require_image_head(&self) -> Result<()> {
        if self.bundle().manifest.image_head {
            return Ok(());
        }
        let message = "no report was given, and the bundle has no image-only classifier: give the report with --report";
        Err(Error::new(Code::BUNDLE_NO_IMAGE_HEAD, message).at(&self.bundle().dir))
    }

    /// Starts to load the image's graphs on other threads, where memory allows it, while this one has other work.
    ///
    /// # Errors
    /// `bundle.checksum`, `io`: those of the files' verification.
    pub fn preload(&self) -> Result<()> {
        self.pipeline.preload()
    }

    /// Classifies a scan, with its report or by the image alone.
    ///
    /// # Errors
    /// `nifti.constant`, the code of a quality warning ([`Options::strict_quality`]), `bundle.no_image_head`,
    /// `bundle.checksum`, `bundle.replaced`, `runtime.*`.
    pub fn predict(&self, scan: Scan, report: Option<&EncodedReport>) -> Result<Prediction> {
        if report.is_none() {
            self.require_image_head()?;
        }
        let encoded = self.encode_scan(scan)?;
        self.classify(encoded, report)
    }

    /// A scan through the adapter and the vision transformer.
    pub(super) fn encode_scan(&self, scan: Scan) -> Result<EncodedScan> {
        let mut timing = Timing::default();
        if let Some(opening) = self.clock().opening.take() {
            timing.add("open", opening);
        }
        timing.add("scan", scan.milliseconds);
        let cached = matches!(scan.content, Content::Features(_));
        let path = scan.path.clone();
        let (features, tensors) = self.scan_features(scan, &mut timing)?;
        Ok(EncodedScan { path, cached, features, tensors, timing })
    }

    /// The prediction for an encoded scan, with its report or without.
    pub(super) fn classify(&self, scan: EncodedScan, report: Option<&EncodedReport>) -> Result<Prediction> {
        let EncodedScan { path, cached, features, mut tensors, mut timing } = scan;
        let mut warnings = features.warnings;
        if let Some(report) = report {
            if self.options.strict_quality {
                Warning::refuse_quality(&report.warnings)?;
            }
            timing.merge(&report.timing);
            warnings.extend(report.warnings.iter().cloned());
        }
        let heads = self.heads(&features.tensor, report, &mut timing)?;
        self.pipeline.verify(&[Part::Heads], &mut timing)?;
        let mut prediction = Prediction::new(self.bundle(), self.device(), path, &heads, report.is_some())?;
        if self.options.keep_tensors {
            if let Some((report, [ids, mask])) = report.and_then(|r| Some((r, r.inputs.clone()?))) {
                let stages = [("input_ids", ids), ("attention_mask", mask), ("text", report.text.clone())];
                tensors.extend(stages.map(|(n, t)| (n.to_owned(), t)));
            }
            tensors.extend(heads);
            prediction.tensors = tensors;
        }
        prediction.warnings = warnings;
        prediction.quality = features.quality;
        prediction.timing_ms = timing;
        let from_cache = [(Part::Vision, cached), (Part::Text, report.is_some_and(|r| r.cached))];
        let from_cache = from_cache.into_iter().filter(|(_, cached)| *cached).map(|(part, _)| part.as_str());
        prediction.run = self.pipeline.to_record(from_cache.collect());
        // The peak only grows: said once, not in every result from then on.
        let exceeded = prediction.run.memory_bytes.exceeded();
        prediction.warnings.extend(exceeded.filter(|_| !self.told_exceeded.swap(true, Ordering::Relaxed)));
        let elapsed = std::mem::replace(&mut self.clock().last, Instant::now()).elapsed();
        prediction.run.wall_ms = Some(elapsed.as_secs_f64() * 1e3);
        Ok(prediction)
    }

    /// Refuses a scan or report with a quality warning, where [`Options::strict_quality`] asks for it.
    fn refuse_quality(&self, warnings: &[Warning], path: &Path) -> Result<()> {
        if self.options.strict_quality { Warning::refuse_quality(warnings).map_err(|e| e.at(path)) } else { Ok(()) }
    }

    /// The vision transformer's features of a scan, and the stages' tensors where they are kept.
    fn scan_features(&self, scan: Scan, timing: &mut Timing) -> Result<(Features, Vec<(String, Tensor)>)> {
        let started = Instant::now();
        let volume = match scan.content {
            Content::Features(features) => {
                self.refuse_quality(&features.warnings, &scan.path)?;
                return Ok((*features, Vec::new()));
            }
            Content::Volume(volume) => *volume,
            Content::Voxels(conformed) => {
                conformed.normalize(self.bundle().manifest.config.volume.clip).map_err(|e| e.at(&scan.path))?
            }
        };
        timing.add("scan", milliseconds(started));
        self.refuse_quality(&volume.warnings, &scan.path)?;
        let (warnings, quality) = (volume.warnings.clone(), Some(volume.quality.clone()));
        let volume = batch::volume(volume);
        let keep = self.options.keep_tensors;
        // Between the graphs the map stays where it is made, unless all tensors are kept.
        let handover = if keep { OutputPlacement::Host } else { self.pipeline.handover(Part::Adapter)? };
        let not_dense = || Error::internal("the volume or a graph's output is not in row-major order");
        let input = TensorView::of(&volume).map(Input::Host).ok_or_else(not_dense)?;
        let map = self.pipeline.run_values(Part::Adapter, &[("volume", input)], &[("adapter", handover)], timing)?;
        let map = only(map, Part::Adapter)?;
        // 67 MB that nothing reads again, unless all tensors are kept.
        let volume = keep.then_some(volume);
        let input = [("adapter", map.input().ok_or_else(not_dense)?)];
        let vision = self.pipeline.run_values(Part::Vision, &input, &[("vision", OutputPlacement::Host)], timing)?;
        let vision = only(vision, Part::Vision)?.host().ok_or_else(not_dense)?;
        self.pipeline.verify(&[Part::Adapter, Part::Vision], timing)?;
        let features = Features { tensor: vision, warnings, tokens: 0, quality };
        if let (Some(store), Some(key)) = (&self.store, &scan.key) {
            store.put(key, &features)?;
        }
        let kept = volume.zip(map.host()).map(|(volume, map)| {
            let stages = [("volume", volume), ("adapter", map), ("vision", features.tensor.clone())];
            stages.map(|(n, t)| (n.to_owned(), t)).to_vec()
        });
        Ok((features, kept.unwrap_or_default()))
    }

    /// The heads' outputs by name. Without a report, zeros take the place of the text features, and only outputs that
    /// do not depend on them are computed.
    fn heads(
        &self,
        vision: &Tensor,
        report: Option<&EncodedReport>,
        timing: &mut Timing,
    ) -> Result<Vec<(String, Tensor)>> {
        let absent = Tensor::F32(ndarray::ArrayD::zeros(vec![1, self.bundle().manifest.config.text.hidden]));
        let mut names = match report {
            Some(_) => vec!["v", "t", "logits", "similarity"],
            None => vec!["v"],
        };
        names.extend(self.bundle().manifest.image_head.then_some("image_logits"));
        let feed = [("vision", vision), ("text", report.map_or(&absent, |r| &r.text))];
        let tensors = self.pipeline.run(Part::Heads, &feed, &names, timing)?;
        Ok(names.into_iter().map(str::to_owned).zip(tensors).collect())
    }

    /// The graphs.
    pub(super) fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// The feature cache, where there is one.
    pub(super) fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Whether every stage's tensor is kept.
    pub(super) fn keeps_tensors(&self) -> bool {
        self.options.keep_tensors
    }

    /// The bundle's tokenizer, loaded when it is first needed.
    ///
    /// # Errors
    /// `tokenizer.invalid`, `bundle.changed`, `bundle.replaced`.
    pub(super) fn tokenizer(&self) -> Result<&Tokenizer> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let tokenizer = load_tokenizer(self.bundle())?;
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bundle's tokenizer.
fn load_tokenizer(bundle: &Bundle) -> Result<Tokenizer> {
    let record = &bundle.manifest.tokenizer;
    let (path, files) = (bundle.file(&record.file)?, [Arc::clone(bundle.open_file(&record.file)?)]);
    let tokenizer = unchanged_while(&files, || Tokenizer::load(&path, record.bos));
    bundle.still_here()?;
    tokenizer
}

/// The value of a run with one output.
pub(super) fn only<T>(values: Vec<T>, part: Part) -> Result<T> {
    values.into_iter().next().ok_or_else(|| Error::internal(format!("{part}: output missing")))
}
