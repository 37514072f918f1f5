//! A loaded graph. How it is run is [`super::binding`]'s.

use std::path::{Path, PathBuf};

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::placement::{self, Placement};
use super::value::code_of;
use super::{CPU, EngineOptions, Provider, Runtime};
use crate::error::{Code, Error, Result};

/// How a graph is loaded.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Who computes it.
    pub provider: &'static dyn Provider,
    /// Whether a node that the provider leaves to another is an error, unless it handles extents alone.
    pub strict: bool,
    /// Whether it is recorded where each node is computed ([`Session::placement`]).
    pub placement: bool,
    /// Threads within an operator; by default one a core.
    pub threads: Option<usize>,
    /// Whether ONNX Runtime may rewrite the graph. Without, it runs operator by operator, as written.
    pub optimize: bool,
    /// Whether weights are laid out anew when a graph is loaded. Without, they stay in the mapped file: less memory and
    /// a faster start, slower runs.
    pub prepack: bool,
    /// Whether what depends on weights alone is computed when a graph is loaded, and kept. Without, half-precision weights
    /// are widened when they are needed and let go again: less memory, slower runs.
    pub fold: bool,
    /// Whether memory that a run took for activations is given back when it ends.
    pub shrink: bool,
}

impl SessionOptions {
    /// On the CPU, as fast as it can.
    pub const DEFAULT: Self = Self {
        provider: CPU,
        strict: false,
        placement: false,
        threads: None,
        optimize: true,
        prepack: true,
        fold: true,
        shrink: false,
    };
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Where a graph is.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file; its external data lies beside it.
    File(&'a Path),
    /// A part of the graph in a file, as an ONNX model; external data lies beside the whole.
    Part {
        /// The model.
        model: &'a [u8],
        /// The whole graph's file.
        path: &'a Path,
    },
    /// An ONNX model that holds all its weights, under a name for messages.
    Bytes(&'a [u8], &'a str),
}

/// A graph in ONNX Runtime's hands.
pub struct Session {
    pub(super) inner: ort::session::Session,
    pub(super) path: PathBuf,
    provider: &'static dyn Provider,
    /// Whether inputs and outputs are bound ([`super::binding`]).
    pub(super) bind: bool,
    placement: Option<Placement>,
}

impl Session {
    /// Loads the graph at `path`; its external data lies beside it.
    ///
    /// # Errors
    /// `device.unavailable`, `device.fallback`, or `runtime.model` when ONNX Runtime refuses the graph.
    pub fn open(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Self> {
        Self::load(runtime, Source::File(path), options, &EngineOptions::default())
    }

    /// Loads a part of the graph at `path`, given as an ONNX model; external data lies beside the whole.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_part(runtime: &Runtime, model: &[u8], path: &Path, options: &SessionOptions) -> Result<Self> {
        Self::load(runtime, Source::Part { model, path }, options, &EngineOptions::default())
    }

    /// Loads a graph from memory, which holds all its weights; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_bytes(runtime: &Runtime, model: &[u8], name: &str, options: &SessionOptions) -> Result<Self> {
        Self::load(runtime, Source::Bytes(model, name), options, &EngineOptions::default())
    }

    /// Loads a graph, with what engines are to be made for where the provider makes any.
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
            Source::File(path) => (path, "the graph"),
            Source::Part { path, .. } => (path, "a part of the graph"),
            Source::Bytes(_, name) => (Path::new(name), "the graph"),
        };
        let refused = |e: &dyn std::fmt::Display| {
            Error::new(Code::RUNTIME_MODEL, format!("ONNX Runtime refuses {what}: {e}")).at(path)
        };
        let mut builder = Self::configure(runtime, options).map_err(|e| refused(&e))?;
        if let Source::Part { .. } = source {
            // A model in memory has no folder of its own.
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let folder = folder.to_str().ok_or_else(|| refused(&"the folder's name is not Unicode"))?;
            let entry = "session.model_external_initializers_file_folder_path";
            builder = builder.with_config_entry(entry, folder).map_err(|e| refused(&e.to_string()))?;
        }
        let mut builder = options.provider.configure(runtime, builder, options, engines)?;
        let inner = match source {
            Source::File(path) => builder.commit_from_file(path),
            Source::Part { model, .. } | Source::Bytes(model, _) => builder.commit_from_memory(model),
        };
        let inner = inner.map_err(|e| match code_of(options.provider, &e.to_string()) {
            Code::DEVICE_MEMORY => Error::new(Code::DEVICE_MEMORY, format!("{what} cannot be loaded: {e}")).at(path),
            _ => refused(&e),
        })?;
        let placement = placement::placed(&inner, options, path)?;
        let (path, provider) = (path.to_path_buf(), options.provider);
        Ok(Self { inner, path, provider, bind: provider.on_gpu(), placement })
    }

    /// Writes the graph at `path` to `target`, a new file, as it would be run: rewritten, its weights laid out for this
    /// processor in `TARGET.data`, from where [`Self::open`] maps them. It serves this version of ONNX Runtime on this kind
    /// of processor alone.
    ///
    /// # Errors
    /// As [`Self::open`], also where the files cannot be written.
    pub fn save_prepacked(runtime: &Runtime, path: &Path, target: &Path, options: &SessionOptions) -> Result<()> {
        let refused = |e: &dyn std::fmt::Display| {
            Error::new(Code::RUNTIME_MODEL, format!("ONNX Runtime cannot lay the weights out on disk: {e}")).at(path)
        };
        let provider = options.provider;
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
            .configure(runtime, builder, options, &EngineOptions::default())?
            .commit_from_file(path)
            .map(drop)
            .map_err(|e| refused(&e))
    }

    fn configure(runtime: &Runtime, options: &SessionOptions) -> ort::Result<SessionBuilder> {
        let level = match (options.optimize, options.fold) {
            (false, _) => GraphOptimizationLevel::Disable,
            // Higher levels widen constants whatever is asked for.
            (true, false) => GraphOptimizationLevel::Level1,
            (true, true) => GraphOptimizationLevel::All,
        };
        let builder = ort::session::Session::builder(&runtime.environment)?.with_optimization_level(level)?;
        let builder = placement::record(builder, options)?;
        // A pattern is recorded in the first run and allocated as one more block from the second on, beside what the first
        // left in the arena: measured, it doubles the memory of activations and makes nothing faster.
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
            // Weights are allocated as they are: the arena would take the next power of two for them.
            builder = builder.with_config_entry("session.use_device_allocator_for_initializers", "1")?;
        }
        if let Some(threads) = options.threads {
            builder = builder.with_intra_threads(threads)?;
        }
        Ok(builder)
    }

    /// Where each node is computed, if the options asked for it.
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// The provider that it was loaded for.
    pub fn provider(&self) -> &'static dyn Provider {
        self.provider
    }

    /// That provider's name: the device.
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

/// Whether this processor's fast kernels of uint8 × int8 overflow 16 bits and give wrong products: x86 without VNNI. ONNX
/// Runtime is then to take uint8 × uint8, which is slower and right. It does not look by itself whether there is VNNI:
/// asked on a processor that has it, it takes the slow kernels too (measured: half the speed).
fn products_overflow() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        !(std::arch::is_x86_feature_detected!("avx512vnni") || std::arch::is_x86_feature_detected!("avxvnni"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
