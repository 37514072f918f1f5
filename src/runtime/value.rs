//! Runs a graph, with values that may stay on the device that computed them.
//!
//! On a GPU, inputs and outputs are bound: host inputs are copied into pinned memory, from where transfers overlap with
//! the CPU's work; a value that another session left on the device is used as it is; and each result stays on the
//! device or is copied to the host, as the caller asks. A session on the CPU borrows its inputs and shares its results
//! instead, which copies nothing either. [`Session::always_bind`] makes it bind too, with host memory in place of the
//! device's: that code is tested without a GPU.
//!
//! **Lifetimes.** A [`DeviceTensor`] may outlive the session that made it, and graphs are released before their results
//! are read. This is sound without a tensor owning its session (which would keep gigabytes of weights alive): ONNX
//! Runtime's tensor shares ownership of the allocator of its memory (`Tensor::buffer_deleter_`, a shared pointer), and
//! `ort`'s value holds one more reference to it (`ValueInner::_allocator_handle`). An arena thus lives until its last
//! tensor is dropped, and before that only frees memory that no tensor uses. A run ends synchronized with the device,
//! so no write is pending.
//!
//! **What is avoided.** To copy a borrowed value that is bound, and to clone or move tensors, `ort` uses sessions in a
//! static, which are still alive when the process exits: if CUDA is unloaded first, that is a crash. Bound values are
//! therefore owned, and nothing is cloned.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{OutputSelector, RunOptions, SessionInputValue, SessionOutputs};
use ort::value::{DynTensor, DynTensorValueType, DynValue, Tensor as OrtTensor, TensorElementType, TensorRef};

use super::{ProfiledInput, Provider, Session};
use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, TensorView};

/// A value where its session left it: in the GPU's memory, or in the host's.
#[derive(Debug)]
pub struct DeviceTensor {
    name: String,
    value: DynValue,
}

impl DeviceTensor {
    /// The name of the output that it was.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size of each dimension.
    pub fn shape(&self) -> Vec<usize> {
        let shape = self.value.dtype().tensor_shape();
        shape.into_iter().flat_map(|s| s.iter()).map(|&d| usize::try_from(d).unwrap_or(0)).collect()
    }

    /// The element type, in `ort`'s spelling: `f32`, `f16`, `i64`, …
    pub fn dtype(&self) -> String {
        self.value.dtype().tensor_type().map_or_else(|| "none".to_owned(), |t| t.to_string())
    }

    /// A copy in host memory; none if it lies on a device, or is neither f32 nor i64.
    pub fn to_host(&self) -> Option<Tensor> {
        to_tensor(&self.value)
    }

    /// Whether the CPU can read it where it is.
    pub fn on_host(&self) -> bool {
        let tensor = self.value.view().downcast::<DynTensorValueType>();
        tensor.is_ok_and(|tensor| tensor.memory_info().is_cpu_accessible())
    }
}

/// An input of a run.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Values in host memory.
    Host(TensorView<'a>),
    /// Another session's result, where that session left it.
    Device(&'a DeviceTensor),
}

impl Input<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Host(view) => view.shape().contains(&0),
            Self::Device(tensor) => tensor.shape().contains(&0),
        }
    }
}

/// Where a run leaves a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputPlacement {
    /// In host memory, as a [`Tensor`].
    Host,
    /// On the device that computed it.
    Device,
}

/// A result of a run.
#[derive(Debug)]
pub enum RuntimeValue {
    /// A tensor in host memory.
    Host(Tensor),
    /// A value on the device that computed it.
    Device(DeviceTensor),
}

impl RuntimeValue {
    /// This value as the input of another run; none if it is a tensor that is not in row-major order.
    pub fn input(&self) -> Option<Input<'_>> {
        match self {
            Self::Host(tensor) => TensorView::of(tensor).map(Input::Host),
            Self::Device(tensor) => Some(Input::Device(tensor)),
        }
    }

    /// The tensor, if it is in host memory.
    pub fn host(self) -> Option<Tensor> {
        match self {
            Self::Host(tensor) => Some(tensor),
            Self::Device(_) => None,
        }
    }
}

impl Session {
    /// Runs the graph and returns the named outputs, in that order.
    ///
    /// # Errors
    /// `runtime.run` when an input is missing, empty, of a wrong shape or not in row-major order, an output is unknown,
    /// or the run fails; `device.memory` when it fails because the device's memory is exhausted.
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
        let inputs: Vec<_> = inputs.iter().map(|(name, view)| (*name, Input::Host(*view))).collect();
        let outputs: Vec<_> = outputs.iter().map(|name| (*name, OutputPlacement::Host)).collect();
        let results = self.run_bound(&inputs, &outputs)?;
        Ok(results.into_iter().filter_map(RuntimeValue::host).collect())
    }

    /// As [`Self::run`], with inputs that may be another session's results, and results that may stay on the device.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_bound(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
    ) -> Result<Vec<RuntimeValue>> {
        let path = self.path.clone();
        let provider = self.provider();
        let failed = |message: String| Error::new(Code::RUNTIME_RUN, message).at(&path);
        self.check_names(inputs, outputs).map_err(failed)?;
        let results = match self.uses_binding {
            true => self.run_with_binding(inputs, outputs),
            false => self.run_borrowing(inputs, outputs),
        };
        let results = results.map_err(|e| {
            let message = e.to_string();
            Error::new(code_of(provider, &message), format!("ONNX Runtime failed to run the graph: {message}"))
                .at(&path)
        })?;
        let place = |((name, placement), value): (&(&str, OutputPlacement), Option<DynValue>)| {
            let value = value.ok_or_else(|| failed(format!("output `{name}` is missing")))?;
            Ok(match placement {
                OutputPlacement::Device => RuntimeValue::Device(DeviceTensor { name: (*name).to_owned(), value }),
                OutputPlacement::Host => {
                    let tensor = to_tensor(&value);
                    RuntimeValue::Host(tensor.ok_or_else(|| failed(format!("output `{name}` has an unexpected type")))?)
                }
            })
        };
        outputs.iter().zip(results).map(place).collect()
    }

    /// Makes all runs bind their inputs and outputs, as on a GPU.
    pub fn always_bind(&mut self) {
        self.uses_binding = true;
    }

    /// Runs the graph once on dummy inputs, zeros or (for integers: tokens, masks) ones, with the optimal shapes of
    /// `profiled`: providers defer work to the first run.
    ///
    /// # Errors
    /// As [`Self::run`]; `runtime.run` also when an input has a dynamic dimension and is not profiled.
    pub fn warm_up(&mut self, profiled: &[ProfiledInput]) -> Result<()> {
        let failed = |message: String| Error::new(Code::RUNTIME_RUN, message).at(&self.path);
        let mut dummies = Vec::new();
        for input in self.inner.inputs() {
            let name = input.name();
            let declared = input.dtype().tensor_shape().map(|s| s.iter().copied().collect::<Vec<i64>>());
            let optimal = profiled.iter().find(|p| p.name == name).map(|p| p.opt.as_slice());
            let optimal = optimal.map(|dims| dims.iter().map(|&d| i64::try_from(d).unwrap_or(-1)).collect());
            let shape = optimal.or(declared).filter(|s| s.iter().all(|&d| d > 0));
            let shape =
                shape.ok_or_else(|| failed(format!("input `{name}` has a dynamic dimension without a profile")))?;
            let kind = input.dtype().tensor_type().unwrap_or(TensorElementType::Float32);
            let value = dummy(kind, &shape).map_err(|e| failed(e.to_string()))?;
            dummies.push(DeviceTensor { name: name.to_owned(), value });
        }
        let outputs = self.outputs();
        let inputs: Vec<_> = dummies.iter().map(|tensor| (tensor.name(), Input::Device(tensor))).collect();
        let outputs: Vec<_> = outputs.iter().map(|name| (name.as_str(), OutputPlacement::Device)).collect();
        self.run_bound(&inputs, &outputs).map(drop)
    }

    /// On the CPU: inputs are borrowed.
    fn run_borrowing(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
    ) -> ort::Result<Vec<Option<DynValue>>> {
        let values = inputs.iter().map(|(name, input)| Ok(((*name).to_owned(), borrow(input)?)));
        let values = values.collect::<ort::Result<Vec<_>>>()?;
        let selector = outputs.iter().fold(OutputSelector::no_default(), |s, (name, _)| s.with(*name));
        let options = RunOptions::new()?.with_outputs(selector);
        Ok(in_order(self.inner.run_with_options(values, &options)?, outputs))
    }

    /// On a device: everything is bound. A binding serves one run: another would overwrite its results.
    fn run_with_binding(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
    ) -> ort::Result<Vec<Option<DynValue>>> {
        let staging = self.staging_allocator();
        let mut binding = self.inner.create_binding()?;
        for (name, input) in inputs {
            match input {
                Input::Device(tensor) => binding.bind_input(*name, &tensor.value)?,
                Input::Host(view) => binding.bind_input(*name, &copy_to(&staging, view)?)?,
            }
        }
        let (device, host) = (self.device_memory()?, MemoryInfo::default());
        for (name, placement) in outputs {
            let memory = if *placement == OutputPlacement::Device { &device } else { &host };
            binding.bind_output_to_device(*name, memory)?;
        }
        // Copies from pinned memory are asynchronous.
        binding.synchronize_inputs()?;
        let results = in_order(self.inner.run_binding(&binding)?, outputs);
        binding.synchronize_outputs()?;
        Ok(results)
    }

    /// The allocator of memory from which copies to the device are fast: pinned, if the provider has it.
    fn staging_allocator(&self) -> Allocator {
        let pinned = || {
            let info = MemoryInfo::new(AllocationDevice::CUDA_PINNED, 0, AllocatorType::Device, MemoryType::CPUInput)?;
            Allocator::new(&self.inner, info)
        };
        match self.provider().on_gpu().then(pinned) {
            Some(Ok(allocator)) => allocator,
            Some(Err(e)) => {
                let message = format!("no pinned memory, copies to the GPU are slower: {e}");
                super::log(ort::logging::LogLevel::Warning, &message);
                Allocator::default()
            }
            None => Allocator::default(),
        }
    }

    /// The memory of results that stay on the device. All NVIDIA providers find their allocator under CUDA's name: only
    /// the kind of device, the vendor and the number are compared.
    fn device_memory(&self) -> ort::Result<MemoryInfo<'static>> {
        match self.provider().on_gpu() {
            true => MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default),
            false => Ok(MemoryInfo::default()),
        }
    }

    /// Checks names and sizes: ONNX Runtime itself accepts an empty batch, and a missing input can crash it.
    fn check_names(
        &self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
    ) -> std::result::Result<(), String> {
        for input in self.inner.inputs() {
            if !inputs.iter().any(|(name, _)| *name == input.name()) {
                return Err(format!("input `{}` was not given", input.name()));
            }
        }
        if let Some((name, _)) = inputs.iter().find(|(_, input)| input.is_empty()) {
            return Err(format!("input `{name}` is empty"));
        }
        match outputs.iter().find(|(name, _)| !self.inner.outputs().iter().any(|o| o.name() == *name)) {
            Some((name, _)) => Err(format!("the graph has no output `{name}`")),
            None => Ok(()),
        }
    }
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

fn in_order(mut results: SessionOutputs<'_>, outputs: &[(&str, OutputPlacement)]) -> Vec<Option<DynValue>> {
    outputs.iter().map(|(name, _)| results.remove(name)).collect()
}

fn borrow<'a>(input: &Input<'a>) -> ort::Result<SessionInputValue<'a>> {
    let dims = |shape: &[usize]| shape.iter().map(|&d| d as i64).collect::<Vec<i64>>();
    Ok(match input {
        Input::Host(TensorView::F32(shape, values)) => TensorRef::from_array_view((dims(shape), *values))?.into(),
        Input::Host(TensorView::I64(shape, values)) => TensorRef::from_array_view((dims(shape), *values))?.into(),
        Input::Device(tensor) => (&tensor.value).into(),
    })
}

/// A copy in this allocator's memory, which the CPU can write.
fn copy_to(allocator: &Allocator, view: &TensorView<'_>) -> ort::Result<DynValue> {
    Ok(match view {
        TensorView::F32(shape, values) => {
            let mut tensor = OrtTensor::<f32>::new(allocator, shape.to_vec())?;
            tensor.try_extract_tensor_mut::<f32>()?.1.copy_from_slice(values);
            tensor.into_dyn()
        }
        TensorView::I64(shape, values) => {
            let mut tensor = OrtTensor::<i64>::new(allocator, shape.to_vec())?;
            tensor.try_extract_tensor_mut::<i64>()?.1.copy_from_slice(values);
            tensor.into_dyn()
        }
    })
}

/// Zeros, or ones for int64, in host memory.
fn dummy(kind: TensorElementType, shape: &[i64]) -> ort::Result<DynValue> {
    let mut tensor = DynTensor::new(&Allocator::default(), kind, shape.to_vec())?;
    if kind == TensorElementType::Int64 {
        tensor.try_extract_tensor_mut::<i64>()?.1.fill(1);
    }
    Ok(tensor.into_dyn())
}

fn to_tensor(value: &DynValue) -> Option<Tensor> {
    let dims = |shape: &ort::value::Shape| shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
    if let Ok((shape, values)) = value.try_extract_tensor::<f32>() {
        return Tensor::f32(&dims(shape)?, values.to_vec());
    }
    let (shape, values) = value.try_extract_tensor::<i64>().ok()?;
    Tensor::i64(&dims(shape)?, values.to_vec())
}
