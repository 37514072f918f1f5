//! From a bundle and options to graphs with a plan: what happens once, before anything is loaded.

use std::collections::BTreeMap;
use std::path::Path;

use super::Options;
use super::cache::engines::{EngineKey, Engines};
use super::cache::features::Store;
use super::gpu_plan::{self, GpuBudget};
use super::loader::Setting;
use super::memory_plan::{self, MemoryBudget, Planned, PlannedPart, ahead, plan};
use super::run_report::GpuMemory;
use super::stage::Stage;
use crate::bundle::{Bundle, Tool};
use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::onnx::SegmentedModel;
use crate::runtime::{Gpu, Runtime, SelectedDevice, SessionOptions, compute_libraries, engine_libraries};

/// Bytes beside the grid that reading a scan takes: inflating, blocks of rows, and what a row needs.
const READING: u64 = 24 << 20;

/// The device that is taken for a bundle.
pub(crate) struct Backend {
    /// It.
    pub chosen: SelectedDevice,
    /// ONNX Runtime, as the device needs it.
    pub runtime: &'static Runtime,
}

/// The graphs of a run.
pub(crate) struct Opened {
    pub stages: BTreeMap<Part, Stage>,
    /// The peak of the process's memory that is expected.
    pub planned: u64,
    /// Whether there is room to load the image's graphs while the language model runs.
    pub ahead: bool,
    /// Whether language model and image run at once.
    pub together: bool,
    /// The card's memory.
    pub gpu: Option<GpuMemory>,
}

/// The device that is taken for this bundle, and ONNX Runtime for it.
pub(crate) fn taken(bundle: &Bundle, options: &Options) -> Result<Backend> {
    let suits = |name: &str| bundle.manifest.suits(name);
    let (chosen, runtime) = options.device.open(options.library.as_deref(), &suits)?;
    Ok(Backend { chosen, runtime })
}

impl Backend {
    /// The GPU that is planned for.
    fn card(&self) -> Option<GpuBudget> {
        let gpu = self.chosen.gpu.as_ref().filter(|_| self.chosen.provider.on_gpu())?;
        Some(GpuBudget { name: gpu.name.clone(), free: gpu.free, engines: self.chosen.provider.makes_engines() })
    }

    /// What results depend on, beside bundle and ONNX Runtime.
    fn identity(&self) -> String {
        let provider = self.chosen.provider;
        let gpu = self.chosen.gpu.as_ref().filter(|_| provider.on_gpu());
        let driver = self.chosen.driver.as_deref().unwrap_or_default();
        identity(provider.name(), gpu, driver, &compute_libraries())
    }

    /// How graphs are loaded on it.
    fn setting(&self, bundle: &Bundle, options: &Options, room: &MemoryBudget) -> Setting {
        let provider = self.chosen.provider;
        let bound = provider.on_gpu() || options.as_on_gpu;
        let session = SessionOptions {
            provider,
            strict: options.strict_device,
            placement: options.placement,
            threads: options.threads,
            ..SessionOptions::default()
        };
        let cache = options.cache.as_deref().filter(|_| provider.makes_engines());
        if provider.makes_engines() && cache.is_none() {
            let line = "TensorRT engines are made anew, which takes minutes: name a folder with --cache to keep them";
            options.tell.say(line);
        }
        Setting {
            runtime: self.runtime,
            options: session,
            bound,
            warm_up: bound && options.warm_up,
            engines: cache.map(|cache| (Engines::new(cache, options.tell.clone()), self.engine_key(bundle))),
            // Under a limit that was named, memory is to be back before more is taken.
            beside: options.threads != Some(1) && !room.explicit,
        }
    }

    /// What engines depend on, but for the graph.
    fn engine_key(&self, bundle: &Bundle) -> EngineKey {
        let gpu = self.chosen.gpu.as_ref();
        EngineKey {
            format: 1,
            bundle: bundle.model_sha256.clone(),
            graph: String::new(),
            segments: [0, 0],
            provider: self.chosen.provider.name().to_owned(),
            gpu: gpu.map(|g| g.name.clone()).unwrap_or_default(),
            compute_capability: gpu.map(|g| format!("{}.{}", g.capability.0, g.capability.1)).unwrap_or_default(),
            tensorrt: engine_libraries(),
            driver: self.chosen.driver.clone().unwrap_or_default(),
            onnxruntime: self.runtime.build.to_owned(),
            inputs: Vec::new(),
        }
    }
}

/// The provider, and the card where there is one: two cards, or versions of what runs on them, round differently.
fn identity(provider: &str, gpu: Option<&Gpu>, driver: &str, libraries: &str) -> String {
    match gpu {
        Some(Gpu { name, capability: (major, minor), .. }) => {
            format!("{provider}, {name} ({major}.{minor}), driver {driver}, {libraries}")
        }
        None => provider.to_owned(),
    }
}

/// What there is to run in.
pub(crate) fn room(bundle: &Bundle, options: &Options, backend: &Backend) -> MemoryBudget {
    let resident = memory_plan::resident();
    let voxels = (bundle.manifest.config.volume.size as u64).saturating_pow(3);
    // With several scans the next is read while one is computed; on its way to a device one lies in pinned memory too.
    let next = u64::from(options.expected.scans > 1 && options.threads != Some(1));
    let staged = u64::from(backend.chosen.provider.on_gpu() || options.as_on_gpu);
    let scans = 1 + next + staged;
    let in_use = resident.saturating_add(voxels.saturating_mul(4 * scans)).saturating_add(READING);
    let left = || memory_plan::available().saturating_add(resident);
    MemoryBudget { limit: options.max_memory.unwrap_or_else(left), explicit: options.max_memory.is_some(), in_use }
}

/// The graphs that will be needed, planned.
pub(crate) fn stages(bundle: &Bundle, options: &Options, taken: &Backend, room: &MemoryBudget) -> Result<Opened> {
    let provider = taken.chosen.provider;
    let needed = Part::ALL.into_iter().filter(|part| *part != Part::Text || options.expected.reports > 0);
    let read = |part: Part| {
        let file = bundle.manifest.graph(part, provider.name()).ok_or_else(|| {
            let message = format!("the bundle has no graph `{part}` for the device `{}`", provider.name());
            Error::new(Code::DEVICE_PRECISION, message).at(&bundle.dir)
        })?;
        let path = bundle.file(file);
        Ok((part, SegmentedModel::read(&path)?, path))
    };
    let models = needed.map(read).collect::<Result<Vec<_>>>()?;
    let tokens = bundle.manifest.tokenizer.max_tokens as u64;
    let parts: Vec<PlannedPart<'_>> = models
        .iter()
        .map(|(name, model, _)| PlannedPart {
            name: *name,
            model,
            mode: options.mode_of(*name, provider.on_gpu()),
            extents: BTreeMap::from([("batch", 1), ("tokens", tokens)]),
        })
        .collect();
    let (planned, mut opened) = plans(&parts, options, taken, room).map_err(|e| e.at(&bundle.dir))?;
    let setting = taken.setting(bundle, options, room);
    for ((name, model, path), planned) in models.iter().zip(planned) {
        let stage = Stage::new(*name, path.clone(), model, planned, tokens, setting.clone())?;
        opened.stages.insert(*name, stage);
    }
    Ok(opened)
}

/// The plan of each part, and of the whole without its stages.
fn plans(
    parts: &[PlannedPart<'_>],
    options: &Options,
    taken: &Backend,
    room: &MemoryBudget,
) -> Result<(Vec<Planned>, Opened)> {
    let (stages, fixed) = (BTreeMap::new(), options.mode.is_some());
    if let Some(card) = taken.card() {
        let on_card = gpu_plan::plan(parts, &card, room, fixed)?;
        let gpu = Some(GpuMemory { free: card.free, planned: on_card.peak });
        let (planned, together) = (on_card.host, on_card.together && options.threads != Some(1));
        return Ok((on_card.planned, Opened { stages, planned, ahead: together, together, gpu }));
    }
    let (plans, peak) = plan(parts, room, fixed)?;
    let with_ahead = ahead(parts, &plans, peak, room);
    let (planned, together) = (with_ahead.unwrap_or(peak), options.as_on_gpu);
    Ok((plans, Opened { stages, planned, ahead: with_ahead.is_some(), together, gpu: None }))
}

/// The store of features: what they depend on beside the input.
pub(crate) fn store(cache: &Path, bundle: &Bundle, taken: &Backend) -> Result<Store> {
    let preprocessing = serde_json::to_string(&bundle.manifest.preprocessing);
    let preprocessing = preprocessing.map_err(|e| Error::new(Code::IO, e.to_string()).at(cache))?;
    let tool = Tool::this();
    let context = [&bundle.model_sha256, &preprocessing, &tool.version, taken.runtime.build, &taken.identity()];
    Store::open(cache, &context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::{Expected, Mode};

    /// Features of one card are not taken for another's; those of a processor are where they always were.
    #[test]
    fn what_computes_is_part_of_what_features_depend_on() {
        let gpu = |name: &str, capability| Gpu {
            name: name.to_owned(),
            capability,
            memory: 24 << 30,
            free: 20 << 30,
            uuid: "GPU-1".to_owned(),
        };
        let card = gpu("NVIDIA Test 4090", (8, 9));
        let all = [
            identity("cuda", Some(&card), "580.1", ""),
            identity("tensorrt", Some(&card), "580.1", "libnvinfer.so.10.9.0 of 5 bytes"),
            identity("tensorrt", Some(&card), "580.1", "libnvinfer.so.10.10.0 of 5 bytes"),
            identity("cuda", Some(&card), "590.1", ""),
            identity("cuda", Some(&gpu("NVIDIA Test 5090", (8, 9))), "580.1", ""),
            identity("cuda", Some(&gpu("NVIDIA Test 4090", (12, 0))), "580.1", ""),
            identity("cpu", None, "580.1", ""),
        ];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
        assert_eq!(all[6], "cpu");
        // What changes from run to run does not count.
        let busy = Gpu { free: 1, uuid: "GPU-2".to_owned(), ..card.clone() };
        assert_eq!(identity("cuda", Some(&busy), "580.1", ""), all[0]);
    }

    /// On a GPU what runs twice stays: its weights would have to be brought there again.
    #[test]
    fn modes_follow_what_is_expected() {
        let mode = |scans, reports, part: Part, on_gpu| {
            Options { expected: Expected { scans, reports }, ..Options::default() }.mode_of(part, on_gpu)
        };
        for on_gpu in [false, true] {
            assert_eq!(mode(1, 1, Part::Text, on_gpu), Mode::OneShot);
            assert_eq!(mode(1, 1, Part::Vision, on_gpu), Mode::OneShot);
            assert_eq!(mode(2, 1, Part::Vision, on_gpu), Mode::Resident);
            assert_eq!(mode(2, 1, Part::Text, on_gpu), Mode::OneShot);
            assert_eq!(mode(20, 20, Part::Text, on_gpu), Mode::Resident);
        }
        assert_eq!((mode(2, 2, Part::Text, false), mode(2, 2, Part::Text, true)), (Mode::OneShot, Mode::Resident));
        let explicit = Options { mode: Some(Mode::OneShot), ..Options::default() };
        assert_eq!(explicit.mode_of(Part::Vision, true), Mode::OneShot);
    }
}
