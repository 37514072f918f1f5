//! A bundle's graphs, ready to run: the one owner of the bundle, its stages and their verification.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::backend::Backend;
use super::cache::features::Store;
use super::cache::prepacked::{Prepacked, PrepackedCopy};
use super::memory_plan::MemoryBudget;
use super::planning::{RunPlan, memory_budget, stages};
use super::run_report::{Memory, Run, Timing, milliseconds};
use super::stage::Stage;
use super::verification::Verification;
use super::{Options, host_memory};
use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::files::private;
use crate::model::{Part, PartMap};
use crate::runtime::{Input, OutputPlacement, Placement, RuntimeValue, SelectedDevice, Session};
use crate::tensor::{Tensor, TensorView};

/// A bundle's graphs: planned for the memory that there is, loaded when they are first run, each run as planned, and
/// verified before a result leaves the program.
///
/// **Shared use.** Every method takes `&self`. Each stage is behind a lock of its own, held while it runs: two parts
/// run concurrently, two runs of one part follow one another. Verification has a lock too, held while a hash is waited
/// for. Locks are taken in one order, stages as parts run and verification last, so nothing waits in a circle.
///
/// **Cancellation** is not offered yet; the places for it are these. A flag that the caller shares would be read where
/// a stage goes from one group to the next, and in [`Pipeline::run`] before a stage starts; within a run, ONNX Runtime
/// stops on `RunOptions::terminate`. A cancelled run leaves its stage as an error does: the session of that group is
/// released, all others are untouched, and the next run loads it again.
pub struct Pipeline {
    bundle: Arc<Bundle>,
    backend: Backend,
    budget: MemoryBudget,
    plan: RunPlan,
    stages: PartMap<Option<Mutex<Stage>>>,
    verification: Mutex<Verification>,
    prepacked: Option<Prepacked>,
    /// Whether hashing and loading may run on threads of their own.
    in_background: bool,
    opened: Instant,
}

impl Pipeline {
    /// Opens the bundle in `dir`, selects the device, loads ONNX Runtime and plans the graphs. Without expected reports
    /// no memory is planned for the language model.
    ///
    /// # Errors
    /// `bundle.*`, `cache.unsafe`, `runtime.missing`, `runtime.version`, `device.*`, `memory.limit`, `onnx.invalid`.
    pub fn open(dir: &Path, options: &Options) -> Result<Self> {
        let opened = Instant::now();
        Self::opened_at(opened, Arc::new(Bundle::open_quickly(dir)?), options)
    }

    /// The same over a bundle that is open, quickly or not.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn over(bundle: Arc<Bundle>, options: &Options) -> Result<Self> {
        Self::opened_at(Instant::now(), bundle, options)
    }

    fn opened_at(opened: Instant, bundle: Arc<Bundle>, options: &Options) -> Result<Self> {
        if let Some(cache) = &options.cache {
            private::cache_folder(cache)?;
        }
        let backend = Backend::select(&bundle, options)?;
        if options.prepacked && backend.on_gpu() {
            options.progress.note("only the CPU prepacks weights: --prepacked does nothing on a GPU");
        }
        let cache = options.cache.as_deref().filter(|_| options.prepacked && !backend.on_gpu());
        let prepacked = cache.map(|cache| Prepacked::new(cache, &bundle.model_sha256, backend.runtime));
        let budget = memory_budget(&bundle, options, &backend);
        let (stages, plan) = stages(&bundle, options, &backend, &budget)?;
        let verification = Verification::new(&bundle, options.cache.clone(), options.in_background());
        Ok(Self {
            bundle,
            backend,
            budget,
            plan,
            stages: stages.map(|_, stage| stage.map(Mutex::new)),
            verification: Mutex::new(verification),
            prepacked,
            in_background: options.in_background(),
            opened,
        })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The device that computes.
    pub fn device(&self) -> &'static str {
        self.backend.chosen.provider.name()
    }

    /// The device that was selected, and why.
    pub fn chosen(&self) -> &SelectedDevice {
        &self.backend.chosen
    }

    /// Whether the language model and the image's graphs should run concurrently.
    pub fn runs_concurrently(&self) -> bool {
        self.plan.concurrent
    }

    /// Which provider computes which nodes of each graph that was loaded; always on a GPU, else where
    /// [`Options::placement`] asks.
    pub fn placements(&self) -> impl Iterator<Item = (Part, Placement)> {
        Part::ALL.into_iter().filter_map(|part| Some((part, self.stage(part).ok()?.placement()?)))
    }

    /// Where a part's output stays that the next part reads: on the device, where there is one.
    ///
    /// # Errors
    /// `internal` for a part that was not planned.
    pub fn handover(&self, part: Part) -> Result<OutputPlacement> {
        Ok(self.stage(part)?.handover())
    }

    /// Since when the bundle is open.
    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    /// Whether hashing, reading and loading may run on threads of their own.
    pub(crate) fn in_background(&self) -> bool {
        self.in_background
    }

    /// The feature cache in `cache`, for results of this bundle on this device.
    ///
    /// # Errors
    /// `io` when the folder cannot be made.
    pub(crate) fn feature_store(&self, cache: &Path) -> Result<Store> {
        self.backend.feature_store(cache, &self.bundle)
    }

    /// Starts to load the image's graphs on other threads, where memory allows it.
    ///
    /// # Errors
    /// `bundle.checksum`, `io`: those of the files' verification; `threads.unavailable`.
    pub fn preload(&self) -> Result<()> {
        if !self.plan.preload || !self.in_background || self.prepacked.is_some() {
            return Ok(());
        }
        for part in [Part::Vision, Part::Adapter, Part::Heads] {
            self.verification().start(part)?;
            self.stage(part)?.preload()?;
        }
        Ok(())
    }

    /// Runs a graph on tensors and gives the outputs of those names, in that order. Names, shapes and types are those
    /// of [`crate::model`]. The outputs count only after [`Self::verify`].
    ///
    /// # Errors
    /// As [`Self::run_values`].
    pub fn run(
        &self,
        part: Part,
        inputs: &[(&str, &Tensor)],
        outputs: &[&str],
        timing: &mut Timing,
    ) -> Result<Vec<Tensor>> {
        let view = |tensor| TensorView::of(tensor).map(Input::Host);
        let inputs = inputs.iter().map(|&(name, tensor)| {
            let input =
                view(tensor).ok_or_else(|| Error::internal(format!("{part}: `{name}` is not in row-major order")))?;
            Ok((name, input))
        });
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs: Vec<_> = outputs.iter().map(|name| (*name, OutputPlacement::Host)).collect();
        let results = self.run_values(part, &inputs, &outputs, timing)?;
        Ok(results.into_iter().filter_map(RuntimeValue::host).collect())
    }

    /// As [`Self::run`], with inputs that may lie on the device, and outputs that stay where the caller wants them.
    ///
    /// # Errors
    /// `bundle.checksum`, `bundle.changed`, `bundle.replaced`, `runtime.*`, `device.*`; `internal` for a part that was
    /// not planned.
    pub fn run_values(
        &self,
        part: Part,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
        timing: &mut Timing,
    ) -> Result<Vec<RuntimeValue>> {
        self.prepare(part, timing)?;
        let mut stage = self.stage(part)?;
        let results = stage.run(inputs, outputs, timing)?;
        // Nothing is computed with parts of two bundles.
        if stage.take_opened_file() {
            self.bundle.still_here()?;
        }
        Ok(results)
    }

    /// Waits until the weights of these parts are verified, and makes sure that no file was changed since: nothing that
    /// was computed with them may leave the program before.
    ///
    /// # Errors
    /// `bundle.checksum` or `bundle.changed`, naming the file.
    pub fn verify(&self, parts: &[Part], timing: &mut Timing) -> Result<()> {
        let started = Instant::now();
        parts.iter().try_for_each(|part| self.verification().wait(*part))?;
        let waited = milliseconds(started);
        if waited > 1.0 {
            timing.add("verify", waited);
        }
        Ok(())
    }

    /// Verifies the weights of all parts, also of those that were not run.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn verify_all(&self) -> Result<()> {
        Part::ALL.into_iter().try_for_each(|part| self.verification().start(part))?;
        self.verify(&Part::ALL, &mut Timing::default())
    }

    /// How the run went so far. `from_cache`: the features that were not computed.
    pub fn to_record(&self, from_cache: Vec<&'static str>) -> Run {
        let stages: Vec<_> = Part::ALL.into_iter().filter_map(|part| self.stage(part).ok()).collect();
        let first_run = stages.iter().filter_map(|stage| stage.first_run()).min();
        Run {
            chosen: Some(self.backend.chosen.clone()),
            libraries: self.backend.runtime.files(),
            stages: stages.iter().map(|stage| stage.to_record()).collect(),
            from_cache,
            memory_bytes: Memory {
                limit: self.budget.is_explicit().then_some(self.budget.limit),
                available: self.budget.limit,
                limited_by: self.budget.limited_by.name(),
                planned: self.plan.peak,
                in_use: self.budget.in_use,
                peak: host_memory::peak(),
            },
            gpu_memory_bytes: self.plan.gpu,
            weights: self.verification().how(stages.iter().any(|stage| stage.is_prepacked())),
            started_ms: first_run.map(|at| at.saturating_duration_since(self.opened).as_secs_f64() * 1e3),
            wall_ms: None,
        }
    }

    /// What comes before a graph is loaded: verification of its weights starts, or its prepacked copy is found or made.
    fn prepare(&self, part: Part, timing: &mut Timing) -> Result<()> {
        // Prepacking small weights takes no time worth saving.
        let large = !self.bundle.large_files(part).is_empty();
        let mut stage = self.stage(part)?;
        let Some(prepacked) = self.prepacked.as_ref().filter(|_| large && stage.is_whole()) else {
            drop(stage);
            return self.verification().start(part);
        };
        if !stage.is_prepacked() {
            let copy = self.prepacked_copy(prepacked, part, &stage, timing)?;
            stage.use_prepacked(&copy);
        }
        Ok(())
    }

    /// The prepacked copy of a graph, made now where the cache has none.
    fn prepacked_copy(
        &self,
        cache: &Prepacked,
        part: Part,
        stage: &Stage,
        timing: &mut Timing,
    ) -> Result<PrepackedCopy> {
        if let Some(copy) = cache.find(part)? {
            return Ok(copy);
        }
        let started = Instant::now();
        self.verification().start(part)?;
        self.verification().wait(part)?;
        let need = self.bundle.manifest.parts[part.as_str()].bytes.saturating_mul(9) / 4;
        let (runtime, options) = (self.backend.runtime, stage.prepacking_options());
        let copy = cache.make(part, need, &mut |target| {
            stage.while_loading(|| Session::save_prepacked(runtime, stage.path(), target, &options))
        })?;
        timing.add("prepack", milliseconds(started));
        Ok(copy)
    }

    /// A part's stage, for the caller alone.
    fn stage(&self, part: Part) -> Result<MutexGuard<'_, Stage>> {
        let stage = self.stages[part].as_ref();
        let stage =
            stage.ok_or_else(|| Error::internal(format!("{part}: not planned, since no report was expected")))?;
        // A panic within a run poisons the lock; its session is gone, and the stage loads another.
        Ok(stage.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn verification(&self) -> MutexGuard<'_, Verification> {
        self.verification.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
