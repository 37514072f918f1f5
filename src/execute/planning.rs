//! From a bundle, options and a backend to one [`Stage`] a part: all that is decided before anything is loaded.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::Options;
use super::backend::Backend;
use super::gpu_plan;
use super::host_memory::{self, LimitedBy};
use super::memory_plan::{
    MemoryBudget, Planned, PlannedPart, bytes_while_read, over_budget, peak_when_preloading, plan,
};
use super::run_report::GpuMemory;
use super::stage::Stage;
use super::verification::SourceFiles;
use crate::bundle::Bundle;
use crate::error::{Code, Error, Result};
use crate::model::{Part, PartMap};
use crate::onnx::SegmentedModel;

/// Memory for reading a scan besides its grid: inflating, blocks of rows, and buffers for a row; and for tokens of a
/// report.
const READING: u64 = 8 << 20;

/// What was planned for the run as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunPlan {
    /// The expected peak of host memory.
    pub peak: u64,
    /// Whether memory allows the image's graphs to be preloaded while the language model runs.
    pub preload: bool,
    /// Whether the language model and the image's graphs run concurrently.
    pub concurrent: bool,
    /// The GPU's memory, where a GPU computes.
    pub gpu: Option<GpuMemory>,
}

/// The memory that the run may use, and what is in use whatever is run: the process as it is, and scans.
pub(super) fn memory_budget(bundle: &Bundle, options: &Options, backend: &Backend) -> MemoryBudget {
    let resident = host_memory::resident();
    let voxels = (bundle.manifest.config.volume.size as u64).saturating_pow(3);
    // With several scans the next is read while one is computed; on its way to a device one lies in pinned memory too.
    let next = u64::from(options.expected.scans > 1 && options.in_background());
    let staged = u64::from(backend.on_gpu() || options.as_on_gpu);
    let scans = 1 + next + staged;
    let in_use = resident.saturating_add(voxels.saturating_mul(4 * scans)).saturating_add(READING);
    let (limit, limited_by) = match options.max_memory {
        Some(limit) => (limit, LimitedBy::Request),
        None => {
            let (available, limited_by) = host_memory::available();
            (available.saturating_add(resident), limited_by)
        }
    };
    MemoryBudget { limit, limited_by, in_use }
}

/// A stage for each graph that will be needed, and the plan of the whole.
///
/// # Errors
/// `memory.limit`, `device.memory`, `device.precision`, `onnx.invalid`.
pub(super) fn stages(
    bundle: &Arc<Bundle>,
    options: &Options,
    backend: &Backend,
    budget: &MemoryBudget,
) -> Result<(PartMap<Option<Stage>>, RunPlan)> {
    let provider = backend.chosen.provider;
    let needed = Part::ALL.into_iter().filter(|part| *part != Part::Text || options.expected.reports > 0);
    let read = |part: Part| {
        let file = bundle.manifest.graph(part, provider.name()).ok_or_else(|| {
            let message = format!("the bundle has no graph `{part}` for the device `{}`", provider.name());
            Error::new(Code::DEVICE_PRECISION, message).at(&bundle.dir)
        })?;
        let path = bundle.file(file)?;
        let model = SegmentedModel::from_bytes(&bundle.read(file)?).map_err(|e| e.at(&path))?;
        Ok((part, model, path))
    };
    let models: Vec<(Part, SegmentedModel, PathBuf)> = needed.map(read).collect::<Result<_>>()?;
    let max_tokens = bundle.manifest.tokenizer.max_tokens as u64;
    let tokens = options.report_tokens.map_or(max_tokens, |tokens| (tokens as u64).clamp(1, max_tokens));
    let parts: Vec<PlannedPart<'_>> = models
        .iter()
        .map(|(part, model, _)| PlannedPart {
            part: *part,
            model,
            mode: options.mode_of(*part, provider.on_gpu()),
            dimensions: BTreeMap::from([("batch", 1), ("tokens", tokens)]),
        })
        .collect();
    let (planned, mut run) = plans(&parts, options, backend, budget).map_err(|e| e.at(&bundle.dir))?;
    if options.read_weights {
        run.peak = peak_when_reading(&parts, &planned, run.peak, budget).map_err(|e| e.at(&bundle.dir))?;
    }
    let loader = backend.loader(bundle, options, budget);
    let mut stages = PartMap::from_fn(|_| None);
    for ((part, model, path), planned) in models.iter().zip(planned) {
        let files = SourceFiles::of_part(bundle, *part);
        stages[*part] = Some(Stage::new(*part, (path, &files), model, planned, max_tokens, loader.clone())?);
    }
    Ok((stages, run))
}

/// The expected peak when weights are read: while a graph is loaded, its file is in memory besides what is made of it.
///
/// # Errors
/// `memory.limit`, also where a graph runs in groups: each would read the file again.
fn peak_when_reading(parts: &[PlannedPart<'_>], planned: &[Planned], peak: u64, budget: &MemoryBudget) -> Result<u64> {
    if planned.iter().any(|planned| planned.groups.len() > 1) {
        let message = "weights that are read need a graph as a whole in memory, and it does not fit: allow more memory";
        return Err(Error::new(Code::MEMORY_LIMIT, message));
    }
    // Graphs may be loaded concurrently.
    let files = parts.iter().map(|part| bytes_while_read(part.model)).fold(0, u64::saturating_add);
    let peak = peak.saturating_add(files);
    if peak > budget.limit { Err(over_budget("reading weights", peak, budget)) } else { Ok(peak) }
}

/// The plan of each part, and of the whole.
fn plans(
    parts: &[PlannedPart<'_>],
    options: &Options,
    backend: &Backend,
    budget: &MemoryBudget,
) -> Result<(Vec<Planned>, RunPlan)> {
    let fixed_modes = options.mode.is_some();
    if let Some(gpu) = backend.gpu_budget() {
        let plan = gpu_plan::plan(parts, &gpu, budget, fixed_modes)?;
        let concurrent = plan.concurrent && options.in_background();
        let memory = GpuMemory { free: gpu.free, planned: plan.peak };
        return Ok((plan.planned, RunPlan { peak: plan.host, preload: concurrent, concurrent, gpu: Some(memory) }));
    }
    let (planned, peak) = plan(parts, budget, fixed_modes)?;
    let preloading = peak_when_preloading(parts, &planned, peak, budget);
    let run = RunPlan {
        peak: preloading.unwrap_or(peak),
        preload: preloading.is_some(),
        concurrent: options.as_on_gpu,
        gpu: None,
    };
    Ok((planned, run))
}
