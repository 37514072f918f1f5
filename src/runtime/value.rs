//! Runs a graph, with values that may stay where it left them.
//!
//! On a GPU everything is bound: what comes from the host is staged in pinned memory, from where copies run beside the
//! processor; what another session left on the device is taken as it is; and each result is left on the device or brought to
//! the host, as the caller says. A session on the processor borrows its inputs and shares its results instead, which is no
//! copy either. [`Session::always_bind`] makes it go the device's way, with the processor's memory for the device's: so that
//! way is tested without a GPU.
//!
//! **What keeps what alive.** A [`DeviceTensor`] may outlive the session that made it, and graphs are released before their
//! results are read. That is sound, and no session is held by a tensor (it would hold gigabytes of weights): ONNX Runtime's
//! tensor shares ownership of the allocator that its memory came from (`Tensor::buffer_deleter_`, a shared pointer), and `ort`'s
//! value holds one more reference of it (`ValueInner::_allocator_handle`). An arena thus dies with its last tensor, and before
//! that gives back only what no tensor has. A run ends synchronized with the device, so nothing is still being written.
//!
//! **What is not used.** `ort` copies a borrowed value that is bound, and clones or moves tensors, by sessions in a static of its
//! own, which are still there when the process ends: where CUDA is unloaded first, that is a crash. Bound values are therefore
//! owned, and nothing is cloned.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{OutputSelector, RunOptions, SessionInputValue, SessionOutputs};
use ort::value::{DynTensor, DynTensorValueType, DynValue, Tensor as OrtTensor, TensorElementType, TensorRef};

use super::{ProfiledInput, Provider, Session};
use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, TensorView};

/// A value that lies where the session left it: on the GPU, or in the processor's memory.
#[derive(Debug)]
pub struct DeviceTensor {
    name: String,
    value: DynValue,
}

impl DeviceTensor {
    /// The output's name that it was made under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Extent of each axis.
    pub fn shape(&self) -> Vec<usize> {
        let shape = self.value.dtype().tensor_shape();
        shape.into_iter().flat_map(|s| s.iter()).map(|&d| usize::try_from(d).unwrap_or(0)).collect()
    }

    /// The element type, as ONNX Runtime names it: `f32`, `f16`, `i64`, …
    pub fn dtype(&self) -> String {
        self.value.dtype().tensor_type().map_or_else(|| "none".to_owned(), |t| t.to_string())
    }

    /// A copy in the process's memory; none where it lies on a device, or is neither f32 nor i64.
    pub fn to_host(&self) -> Option<Tensor> {
        own(&self.value)
    }

    /// Whether the processor can read it where it lies.
    pub fn on_host(&self) -> bool {
        let tensor = self.value.view().downcast::<DynTensorValueType>();
        tensor.is_ok_and(|tensor| tensor.memory_info().is_cpu_accessible())
    }
}

/// What a run takes.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Values in the process's memory.
    Host(TensorView<'a>),
    /// What a session left.
    Device(&'a DeviceTensor),
}

impl Input<'_> {
    fn empty(&self) -> bool {
        match self {
            Self::Host(view) => view.shape().contains(&0),
            Self::Device(tensor) => tensor.shape().contains(&0),
        }
    }
}

/// Where a result is to be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputPlacement {
    /// In a [`Tensor`] of the process.
    Host,
    /// Where it is made.
    Device,
}

/// What a run gives.
#[derive(Debug)]
pub enum RuntimeValue {
    /// A tensor of the process.
    Host(Tensor),
    /// A value where it was made.
    Device(DeviceTensor),
}

impl RuntimeValue {
    /// It as an input.
    pub fn input(&self) -> Option<Input<'_>> {
        match self {
            Self::Host(tensor) => TensorView::of(tensor).map(Input::Host),
            Self::Device(tensor) => Some(Input::Device(tensor)),
        }
    }

    /// The tensor, where it was brought to the host.
    pub fn host(self) -> Option<Tensor> {
        match self {
            Self::Host(tensor) => Some(tensor),
            Self::Device(_) => None,
        }
    }
}

impl Session {
    /// Runs the graph and returns the outputs of those names, in that order.
    ///
    /// # Errors
    /// `runtime.run` when an input is missing, misshapen or empty, an output unknown, or the run fails; `device.memory` when
    /// it fails for want of the device's memory.
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

    /// As [`Self::run`], with inputs that may be another session's results, and results that stay where they are made.
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
        let failed = |message: String| Error::new(code_of(provider, &message), message).at(&path);
        self.check_names(inputs, outputs).map_err(failed)?;
        let results = match self.bind {
            true => self.bound(inputs, outputs),
            false => self.borrowed(inputs, outputs),
        };
        let results = results.map_err(|e| failed(e.to_string()))?;
        let take = |((name, leave), value): (&(&str, OutputPlacement), Option<DynValue>)| {
            let value = value.ok_or_else(|| failed(format!("output `{name}` is missing")))?;
            Ok(match leave {
                OutputPlacement::Device => RuntimeValue::Device(DeviceTensor { name: (*name).to_owned(), value }),
                OutputPlacement::Host => {
                    let tensor = own(&value);
                    RuntimeValue::Host(tensor.ok_or_else(|| failed(format!("output `{name}` has an unexpected type")))?)
                }
            })
        };
        outputs.iter().zip(results).map(take).collect()
    }

    /// Makes all runs bind their inputs and outputs, as they are on a GPU.
    pub fn always_bind(&mut self) {
        self.bind = true;
    }

    /// Runs the graph once on made-up values, zeros and (where they are whole numbers: tokens, masks) ones, with the extents that
    /// `profiled` calls the best: what providers put off to the first run is done then.
    ///
    /// # Errors
    /// As [`Self::run`]; `runtime.run` also when an input has a dimension without a number and is not profiled.
    pub fn warm_up(&mut self, profiled: &[ProfiledInput]) -> Result<()> {
        let failed = |message: String| Error::new(Code::RUNTIME_RUN, message).at(&self.path);
        let mut made = Vec::new();
        for input in self.inner.inputs() {
            let name = input.name();
            let known = input.dtype().tensor_shape().map(|s| s.iter().copied().collect::<Vec<i64>>());
            let best = profiled.iter().find(|p| p.name == name).map(|p| p.opt.as_slice());
            let best = best.map(|dims| dims.iter().map(|&d| i64::try_from(d).unwrap_or(-1)).collect());
            let shape = best.or(known).filter(|s| s.iter().all(|&d| d > 0));
            let shape = shape.ok_or_else(|| failed(format!("input `{name}` has no known extent to be run with")))?;
            let kind = input.dtype().tensor_type().unwrap_or(TensorElementType::Float32);
            let value = made_up(kind, &shape).map_err(|e| failed(e.to_string()))?;
            made.push(DeviceTensor { name: name.to_owned(), value });
        }
        let outputs = self.outputs();
        let inputs: Vec<_> = made.iter().map(|tensor| (tensor.name(), Input::Device(tensor))).collect();
        let outputs: Vec<_> = outputs.iter().map(|name| (name.as_str(), OutputPlacement::Device)).collect();
        self.run_bound(&inputs, &outputs).map(drop)
    }

    /// The processor's way: inputs are borrowed.
    fn borrowed(
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

    /// The device's way: everything is bound. A binding serves one run: another would write over its results.
    fn bound(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
    ) -> ort::Result<Vec<Option<DynValue>>> {
        let staging = self.staging();
        let mut binding = self.inner.create_binding()?;
        for (name, input) in inputs {
            match input {
                Input::Device(tensor) => binding.bind_input(*name, &tensor.value)?,
                Input::Host(view) => binding.bind_input(*name, &staged(&staging, view)?)?,
            }
        }
        let (device, host) = (self.device_memory()?, MemoryInfo::default());
        for (name, leave) in outputs {
            binding.bind_output_to_device(*name, if *leave == OutputPlacement::Device { &device } else { &host })?;
        }
        // Copies out of pinned memory are only begun by then.
        binding.synchronize_inputs()?;
        let results = in_order(self.inner.run_binding(&binding)?, outputs);
        binding.synchronize_outputs()?;
        Ok(results)
    }

    /// What allocates memory from where a device's copies are fast: pinned, where the provider has any.
    fn staging(&self) -> Allocator {
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

    /// Where results that stay are put. All NVIDIA providers find their allocator under CUDA's name: what is compared is the kind
    /// of device, the vendor and the number.
    fn device_memory(&self) -> ort::Result<MemoryInfo<'static>> {
        match self.provider().on_gpu() {
            true => MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default),
            false => Ok(MemoryInfo::default()),
        }
    }

    /// ONNX Runtime itself accepts an empty batch, and a missing input can crash it.
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
        if let Some((name, _)) = inputs.iter().find(|(_, input)| input.empty()) {
            return Err(format!("input `{name}` is empty"));
        }
        match outputs.iter().find(|(name, _)| !self.inner.outputs().iter().any(|o| o.name() == *name)) {
            Some((name, _)) => Err(format!("the graph has no output `{name}`")),
            None => Ok(()),
        }
    }
}

/// What a failure is: a device that has no memory left says so only in words.
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

/// A copy in memory of this allocator, which the processor can write.
fn staged(allocator: &Allocator, view: &TensorView<'_>) -> ort::Result<DynValue> {
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

/// Zeros, or ones where they are int64, in the process's memory.
fn made_up(kind: TensorElementType, shape: &[i64]) -> ort::Result<DynValue> {
    let mut tensor = DynTensor::new(&Allocator::default(), kind, shape.to_vec())?;
    if kind == TensorElementType::Int64 {
        tensor.try_extract_tensor_mut::<i64>()?.1.fill(1);
    }
    Ok(tensor.into_dyn())
}

fn own(value: &DynValue) -> Option<Tensor> {
    let dims = |shape: &ort::value::Shape| shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
    if let Ok((shape, values)) = value.try_extract_tensor::<f32>() {
        return Tensor::f32(&dims(shape)?, values.to_vec());
    }
    let (shape, values) = value.try_extract_tensor::<i64>().ok()?;
    Tensor::i64(&dims(shape)?, values.to_vec())
}
