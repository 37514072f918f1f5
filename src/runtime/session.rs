//! A loaded graph. [`super::value`] runs it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::placement::{self, Placement};
use super::{EngineOptions, Provider, Runtime, SessionOptions, Source};
use crate::error::{Code, Error, Result};
use crate::threads;

/// A graph loaded into ONNX Runtime.
pub struct Session {
    pub(super) inner: ort::session::Session,
    pub(super) path: PathBuf,
    provider: &'static dyn Provider,
    /// Whether runs bind their inputs and outputs ([`super::value`]).
    pub(super) uses_binding: bool,
    placement: Option<Placement>,
}

impl Session {
    /// Loads the graph at `path`; its external data lies next to it.
    ///
    /// # Errors
    /// `device.unavailable`; `device.fallback`; `device.memory` when the weights do not fit; `runtime.model` when ONNX
    /// Runtime refuses the graph.
    pub fn open(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Self> {
        Self::load(runtime, Source::File(path), options, &EngineOptions::default())
    }

    /// Loads part of the graph at `path`, given as an ONNX model; external data lies next to `path`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_part(runtime: &Runtime, model: &[u8], path: &Path, options: &SessionOptions) -> Result<Self> {
        Self::load(runtime, Source::Part { model, path }, options, &EngineOptions::default())
    }

    /// Loads a graph from memory with all its weights; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_bytes(runtime: &Runtime, model: &[u8], name: &str, options: &SessionOptions) -> Result<Self> {
        Self::load(runtime, Source::Bytes(model, name), options, &EngineOptions::default())
    }

    /// Loads a graph, with the shapes and the cache of its engines for providers that build some.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn load(
        runtime: &Runtime,
        source: Source<'_>,
        options: &SessionOptions,
        engines: &EngineOptions,
    ) -> Result<Self> {
        let (path, what) = match source {
            Source::File(path) | Source::Read { path, .. } => (path, "the graph"),
            Source::Part { path, .. } => (path, "part of the graph"),
            Source::Bytes(_, name) => (Path::new(name), "the graph"),
        };
        let refused = |e: &dyn std::fmt::Display| refusal(&format!("load {what}"), &e.to_string()).at(path);
        let mut builder = Self::configure(runtime, options).map_err(|e| refused(&e))?;
        if let Source::Part { .. } = source {
            // A model in memory has no folder of its own.
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let folder = folder.to_str().ok_or_else(|| refused(&"the folder's name is not Unicode"))?;
            let entry = "session.model_external_initializers_file_folder_path";
            builder = builder.with_config_entry(entry, folder).map_err(|e| refused(&e.to_string()))?;
        }
        if let Source::Read { weights, .. } = source {
            for (name, bytes) in weights {
                let with = builder.with_external_initializer_file_in_memory(name, Arc::clone(bytes));
                builder = with.map_err(|e| refused(&e.to_string()))?;
            }
        }
        let mut builder = options.provider.configure(runtime, builder, &options.for_provider(engines))?;
        let inner = match source {
            Source::File(path) => builder.commit_from_file(path),
            Source::Part { model, .. } | Source::Read { model, .. } | Source::Bytes(model, _) => {
                builder.commit_from_memory(model)
            }
        };
        let inner = inner.map_err(|e| match code_of(options.provider, &e.to_string()) {
            Code::DEVICE_MEMORY => {
                Error::new(Code::DEVICE_MEMORY, format!("not enough GPU memory to load {what}: {e}")).at(path)
            }
            _ => refused(&e),
        })?;
        let placement = placement::of_session(&inner, options, path)?;
        let (path, provider) = (path.to_path_buf(), options.provider);
        Ok(Self { inner, path, provider, uses_binding: provider.on_gpu(), placement })
    }

    /// Writes the graph at `path` to `target`, a new file, in the form in which it runs: optimized, its weights
    /// repacked for this CPU in `TARGET.data`, from where [`Self::open`] maps them. The files are only valid for this
    /// version of ONNX Runtime on this kind of CPU.
    ///
    /// # Errors
    /// As [`Self::open`]; also if the files cannot be written.
    pub fn save_prepacked(runtime: &Runtime, path: &Path, target: &Path, options: &SessionOptions) -> Result<()> {
        let refused = |e: &dyn std::fmt::Display| refusal("write the prepacked weights", &e.to_string()).at(path);
        let (provider, engines) = (options.provider, EngineOptions::default());
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let save = |b: SessionBuilder| -> ort::Result<SessionBuilder> {
            let b = b.with_optimized_model_path(target)?;
            let b = b.with_config_entry("session.save_external_prepacked_constant_initializers", "1")?;
            let b =
                b.with_config_entry("session.optimized_model_external_initializers_file_name", format!("{name}.data"))?;
            // Small weights stay in the graph's file.
            Ok(b.with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "16384")?)
        };
        let builder = Self::configure(runtime, options).and_then(save).map_err(|e| refused(&e))?;
        provider
            .configure(runtime, builder, &options.for_provider(&engines))?
            .commit_from_file(path)
            .map(drop)
            .map_err(|e| refused(&e))
    }

    fn configure(runtime: &Runtime, options: &SessionOptions) -> ort::Result<SessionBuilder> {
        let level = match (options.optimize, options.fold) {
            (false, _) => GraphOptimizationLevel::Disable,
            // Higher levels widen constants even with folding disabled.
            (true, false) => GraphOptimizationLevel::Level1,
            (true, true) => GraphOptimizationLevel::All,
        };
        let builder = ort::session::Session::builder(&runtime.environment)?.with_optimization_level(level)?;
        let builder = placement::record(builder, options)?;
        // A memory pattern is recorded in the first run and allocated as one more block from the second run on, in
        // addition to what the first left in the arena: measured, it doubles the memory of activations and makes
        // nothing faster.
        let mut builder = builder.with_memory_pattern(false)?;
        if products_overflow() {
            builder = builder.with_config_entry("session.x64quantprecision", "1")?;
        }
        if !options.prepack {
            builder = builder.with_config_entry("session.disable_prepacking", "1")?;
        }
        if !options.fold {
            let folding = "ConstantFolding;ConstantFoldingDQ";
            builder = builder.with_config_entry("optimization.disable_specified_optimizers", folding)?;
        }
        if options.provider.on_gpu() {
            // Weights are allocated at their size: the arena would allocate the next power of two for them.
            builder = builder.with_config_entry("session.use_device_allocator_for_initializers", "1")?;
        }
        if let Some(threads) = options.threads {
            builder = builder.with_intra_threads(threads)?;
        }
        Ok(builder)
    }

    /// Which provider computes which node, if the options asked for it or the provider is a GPU's.
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// The provider that the graph was loaded for.
    pub fn provider(&self) -> &'static dyn Provider {
        self.provider
    }

    /// That provider's name, which results report as the device.
    pub fn device(&self) -> &'static str {
        self.provider.name()
    }

    /// Names of the inputs.
    pub fn inputs(&self) -> Vec<String> {
        self.inner.inputs().iter().map(|i| i.name().to_owned()).collect()
    }

    /// Names of the outputs.
    pub fn outputs(&self) -> Vec<String> {
        self.inner.outputs().iter().map(|o| o.name().to_owned()).collect()
    }
}

/// The error of a graph that ONNX Runtime refuses. It reports only in words that the system refused a thread of the
/// pool that each session has.
fn refusal(doing: &str, message: &str) -> Error {
    if ["pthread_create failed", "_beginthreadex failed"].iter().any(|words| message.contains(words)) {
        let message = format!("ONNX Runtime cannot {doing}: the system refuses to start a thread; {}", threads::ADVICE);
        return Error::new(Code::THREADS_UNAVAILABLE, message);
    }
    Error::new(Code::RUNTIME_MODEL, format!("ONNX Runtime cannot {doing}: {message}"))
}

/// Whether this CPU's fast uint8 × int8 kernels overflow 16 bits and give wrong products: x86 without VNNI. ONNX
/// Runtime must then use uint8 × uint8, which is slower and right. The option does not check for VNNI by itself: set on
/// a CPU that has it, it selects the slow kernels too (measured: half the speed).
fn products_overflow() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        !(std::arch::is_x86_feature_detected!("avx512vnni") || std::arch::is_x86_feature_detected!("avxvnni"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The code of a failure: a device reports exhausted memory only in words.
pub(super) fn code_of(provider: &dyn Provider, message: &str) -> Code {
    let message = message.to_ascii_lowercase();
    let memory = ["out of memory", "out_of_memory", "outofmemory", "failed to allocate memory", "alloc_failed"];
    match provider.on_gpu() && memory.iter().any(|words| message.contains(words)) {
        true => Code::DEVICE_MEMORY,
        false => Code::RUNTIME_RUN,
    }
}
