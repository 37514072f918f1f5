//! The device and ONNX Runtime that a run uses, and what its results depend on.

use std::path::Path;

use super::Options;
use super::cache::engines::{EngineCache, EngineKey};
use super::cache::features::Store;
use super::gpu_plan::GpuBudget;
use super::loader::Loader;
use super::memory_plan::MemoryBudget;
use crate::bundle::{Bundle, Tool};
use crate::error::{Error, Result};
use crate::runtime::{Gpu, Runtime, SelectedDevice, SessionOptions, compute_libraries, engine_libraries};

/// The device that was selected for a bundle, and ONNX Runtime as that device needs it.
pub(super) struct Backend {
    /// The device, and why it was selected.
    pub chosen: SelectedDevice,
    /// ONNX Runtime. There is one a process.
    pub runtime: &'static Runtime,
}

impl Backend {
    /// Selects the device for this bundle and loads ONNX Runtime for it.
    ///
    /// # Errors
    /// `device.*`, `runtime.missing`, `runtime.version`.
    pub fn select(bundle: &Bundle, options: &Options) -> Result<Self> {
        let suits = |name: &str| bundle.manifest.suits(name);
        let (chosen, runtime) = options.device.open(options.library.as_deref(), &suits)?;
        Ok(Self { chosen, runtime })
    }

    /// Whether a GPU computes.
    pub fn on_gpu(&self) -> bool {
        self.chosen.provider.on_gpu()
    }

    /// The GPU's memory, where a GPU computes.
    pub fn gpu_budget(&self) -> Option<GpuBudget> {
        let gpu = self.chosen.gpu.as_ref().filter(|_| self.on_gpu())?;
        Some(GpuBudget { name: gpu.name.clone(), free: gpu.free, engines: self.chosen.provider.makes_engines() })
    }

    /// The feature cache for results of this bundle on this backend.
    ///
    /// # Errors
    /// `io` when the folder cannot be made.
    pub fn feature_store(&self, cache: &Path, bundle: &Bundle) -> Result<Store> {
        let preprocessing = serde_json::to_string(&bundle.manifest.preprocessing);
        let preprocessing =
            preprocessing.map_err(|e| Error::internal(format!("the preprocessing has no JSON form: {e}")))?;
        let tool = Tool::this();
        let context = [&bundle.model_sha256, &preprocessing, &tool.version, self.runtime.build, &self.identity()];
        Store::open(cache, &context)
    }

    /// How graphs are loaded on it.
    pub fn loader(&self, bundle: &Bundle, options: &Options, budget: &MemoryBudget) -> Loader {
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
            let note = "TensorRT engines are built in every run, which takes minutes: keep them with --cache DIR";
            options.progress.note(note);
        }
        Loader {
            runtime: self.runtime,
            options: session,
            bound,
            read_weights: options.read_weights,
            warm_up: bound && options.warm_up,
            engines: cache.map(|cache| (EngineCache::new(cache, options.progress.clone()), self.engine_key(bundle))),
            // Under an explicit limit, memory must be released before more is taken.
            background_release: options.in_background() && !budget.is_explicit(),
        }
    }

    /// What results depend on, besides the bundle and ONNX Runtime.
    fn identity(&self) -> String {
        let gpu = self.chosen.gpu.as_ref().filter(|_| self.on_gpu());
        let driver = self.chosen.driver.as_deref().unwrap_or_default();
        identity(self.chosen.provider.name(), gpu, driver, &compute_libraries())
    }

    /// What engines depend on, except for the graph.
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

/// The provider, and the GPU where there is one: two GPUs, or two versions of their libraries, round differently.
fn identity(provider: &str, gpu: Option<&Gpu>, driver: &str, libraries: &str) -> String {
    match gpu {
        Some(Gpu { name, capability: (major, minor), .. }) => {
            format!("{provider}, {name} ({major}.{minor}), driver {driver}, {libraries}")
        }
        None => provider.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One GPU's features are not used on another; those of a CPU keep their place.
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
}
