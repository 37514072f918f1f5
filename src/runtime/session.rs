//! A loaded graph that runs.

use std::path::{Path, PathBuf};

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{OutputSelector, RunOptions, SessionInputValue};
use ort::value::{DynValue, TensorRef};

use super::placement::{self, Placement};
use super::{CPU, Provider, Runtime};
use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, TensorView};

/// How a graph is loaded.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Who computes it.
    pub provider: &'static dyn Provider,
    /// Whether a node that the provider leaves to the CPU is an error, unless it handles extents alone.
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

/// What providers need to know that compute by engines, which are made for certain extents of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// The inputs that have dimensions without a number.
    pub inputs: Vec<ProfiledInput>,
    /// Where engines are kept; without, they are made anew by every process.
    pub folder: Option<PathBuf>,
}

/// The extents that an input may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfiledInput {
    /// The input's name.
    pub name: String,
    /// The least extent of each dimension.
    pub min: Vec<u64>,
    /// What the engine is made to be fastest for.
    pub opt: Vec<u64>,
    /// The largest.
    pub max: Vec<u64>,
}

/// A graph in ONNX Runtime's hands.
pub struct Session {
    inner: ort::session::Session,
    path: PathBuf,
    device: &'static str,
    placement: Option<Placement>,
}

impl Session {
    /// Loads the graph at `path`; its external data lies beside it.
    ///
    /// # Errors
    /// `device.unavailable`, `device.fallback`, or `runtime.model` when ONNX Runtime refuses the graph.
    pub fn open(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Self> {
        let refused = |e: &dyn std::fmt::Display| {
            Error::new(Code::RUNTIME_MODEL, format!("ONNX Runtime refuses the graph: {e}")).at(path)
        };
        let provider = options.provider;
        let builder = Self::configure(runtime, options).map_err(|e| refused(&e))?;
        let mut builder = provider.configure(runtime, builder, options, &EngineOptions::default())?;
        let inner = builder.commit_from_file(path).map_err(|e| refused(&e))?;
        Self::made(inner, path, options)
    }

    /// Loads a part of the graph at `path`, given as an ONNX model; external data lies beside the whole.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_part(runtime: &Runtime, model: &[u8], path: &Path, options: &SessionOptions) -> Result<Self> {
        let refused = |e: &dyn std::fmt::Display| {
            Error::new(Code::RUNTIME_MODEL, format!("ONNX Runtime refuses a part of the graph: {e}")).at(path)
        };
        // A model in memory has no folder of its own.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = folder.to_str().ok_or_else(|| refused(&"the folder's name is not Unicode"))?;
        let provider = options.provider;
        let builder = Self::configure(runtime, options)
            .and_then(|b| Ok(b.with_config_entry("session.model_external_initializers_file_folder_path", folder)?));
        let mut builder =
            provider.configure(runtime, builder.map_err(|e| refused(&e))?, options, &EngineOptions::default())?;
        let inner = builder.commit_from_memory(model).map_err(|e| refused(&e))?;
        Self::made(inner, path, options)
    }

    /// Loads a graph from memory, which holds all its weights; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_bytes(runtime: &Runtime, model: &[u8], name: &str, options: &SessionOptions) -> Result<Self> {
        let path = Path::new(name);
        let refused = |e: &dyn std::fmt::Display| {
            Error::new(Code::RUNTIME_MODEL, format!("ONNX Runtime refuses the graph: {e}")).at(path)
        };
        let provider = options.provider;
        let builder = Self::configure(runtime, options).map_err(|e| refused(&e))?;
        let inner = provider
            .configure(runtime, builder, options, &EngineOptions::default())?
            .commit_from_memory(model)
            .map_err(|e| refused(&e))?;
        Self::made(inner, path, options)
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
        if let Some(threads) = options.threads {
            builder = builder.with_intra_threads(threads)?;
        }
        Ok(builder)
    }

    fn made(inner: ort::session::Session, path: &Path, options: &SessionOptions) -> Result<Self> {
        let placement = placement::placed(&inner, options, path)?;
        Ok(Self { inner, path: path.to_path_buf(), device: options.provider.name(), placement })
    }

    /// Where each node is computed, if the options asked for it.
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// The device that it really runs on.
    pub fn device(&self) -> &'static str {
        self.device
    }

    /// Names of the inputs.
    pub fn inputs(&self) -> Vec<String> {
        self.inner.inputs().iter().map(|i| i.name().to_owned()).collect()
    }

    /// Names of the outputs.
    pub fn outputs(&self) -> Vec<String> {
        self.inner.outputs().iter().map(|o| o.name().to_owned()).collect()
    }

    /// Runs the graph and returns the outputs of those names, in that order.
    ///
    /// # Errors
    /// `runtime.run` when an input is missing, misshapen or empty, an output unknown, or the run fails.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)], outputs: &[&str]) -> Result<Vec<Tensor>> {
        let mut views = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            let message = || format!("input `{name}` is not in row-major order");
            let view = TensorView::of(tensor);
            views.push((*name, view.ok_or_else(|| Error::new(Code::RUNTIME_RUN, message()).at(&self.path))?));
        }
        self.run_views(&views, outputs)
    }

    /// As [`Self::run`], with inputs that may lie in a mapped file.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_views(&mut self, inputs: &[(&str, TensorView<'_>)], outputs: &[&str]) -> Result<Vec<Tensor>> {
        let path = self.path.clone();
        let failed = |message: String| Error::new(Code::RUNTIME_RUN, message).at(&path);
        self.check_names(inputs, outputs).map_err(&failed)?;
        let values = inputs.iter().map(|(name, view)| Ok(((*name).to_owned(), borrow(view)?)));
        let values = values.collect::<ort::Result<Vec<_>>>().map_err(|e| failed(e.to_string()))?;
        let selector = outputs.iter().fold(OutputSelector::no_default(), |s, name| s.with(*name));
        let options = RunOptions::new().map_err(|e| failed(e.to_string()))?.with_outputs(selector);
        let results = self.inner.run_with_options(values, &options).map_err(|e| failed(e.to_string()))?;
        let take = |name: &&str| {
            let value = results.get(name).ok_or_else(|| failed(format!("output `{name}` is missing")))?;
            own(value).ok_or_else(|| failed(format!("output `{name}` has an unexpected type")))
        };
        outputs.iter().map(take).collect()
    }

    /// ONNX Runtime itself accepts an empty batch, and a missing input can crash it.
    fn check_names(&self, inputs: &[(&str, TensorView<'_>)], outputs: &[&str]) -> std::result::Result<(), String> {
        for input in self.inner.inputs() {
            if !inputs.iter().any(|(name, _)| *name == input.name()) {
                return Err(format!("input `{}` was not given", input.name()));
            }
        }
        if let Some((name, _)) = inputs.iter().find(|(_, tensor)| tensor.shape().contains(&0)) {
            return Err(format!("input `{name}` is empty"));
        }
        match outputs.iter().find(|name| !self.inner.outputs().iter().any(|o| o.name() == **name)) {
            Some(name) => Err(format!("the graph has no output `{name}`")),
            None => Ok(()),
        }
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

fn borrow<'a>(view: &TensorView<'a>) -> ort::Result<SessionInputValue<'a>> {
    let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
    Ok(match view {
        TensorView::F32(_, values) => TensorRef::from_array_view((shape, *values))?.into(),
        TensorView::I64(_, values) => TensorRef::from_array_view((shape, *values))?.into(),
    })
}

fn own(value: &DynValue) -> Option<Tensor> {
    let dims = |shape: &ort::value::Shape| shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
    if let Ok((shape, values)) = value.try_extract_tensor::<f32>() {
        return Tensor::f32(&dims(shape)?, values.to_vec());
    }
    let (shape, values) = value.try_extract_tensor::<i64>().ok()?;
    Tensor::i64(&dims(shape)?, values.to_vec())
}
