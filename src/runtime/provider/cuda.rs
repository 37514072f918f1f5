//! NVIDIA GPUs through CUDA, cuBLAS and cuDNN: ONNX Runtime's own CUDA provider.

use std::path::PathBuf;

use ort::ep::ArenaExtendStrategy;
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::session::builder::SessionBuilder;

use super::{Provider, gpu, with_providers};
use crate::error::Result;
use crate::runtime::gpu_libraries::{self, CUDA, CUDA_PROVIDER};
use crate::runtime::{EngineOptions, Machine, Runtime, SessionOptions};

/// NVIDIA GPUs through CUDA, cuBLAS and cuDNN.
#[derive(Debug)]
pub(super) struct Cuda;

/// How the CUDA provider is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CudaOptions {
    /// CUDA's number of the GPU. `CUDA_VISIBLE_DEVICES` chooses, so that all that is told of the first is true.
    pub device: i32,
    /// Most bytes of the arena; without, all that is free.
    pub memory_limit: Option<usize>,
    /// Whether the arena grows by as much as is asked for and not by powers of two. Memory is counted before a run: an arena of
    /// twice the size would be counted wrong, and fail on a card on which the model fits.
    pub grow_as_requested: bool,
    /// Whether cuDNN times every algorithm of each convolution in the first run. Its rule of thumb costs nothing, and the model
    /// has three convolutions: a single scan should not wait for a search, nor be computed by another algorithm, whose last bits
    /// differ, because the machine was busy when they were timed.
    pub time_convolutions: bool,
    /// Whether convolutions may take workspace as they like: the fast algorithms of 3-D ones need it.
    pub workspace: bool,
    /// Whether float32 products are rounded to TensorFloat-32's 10 bits of mantissa. Off: an fp32 bundle promises fp32, whose
    /// products agree with PyTorch's to 1e-5; who wants speed exports fp16.
    pub tf32: bool,
    /// Whether convolutions run with channels last. Off: ONNX Runtime then adds transposes, and ours are 3-D, which it does not
    /// rewrite.
    pub channels_last: bool,
    /// Whether fused layer norms add in float32. On: sums of half-precision residuals pass 65504 in real language models.
    pub strict_norms: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            device: 0,
            memory_limit: None,
            grow_as_requested: true,
            time_convolutions: false,
            workspace: true,
            tf32: false,
            channels_last: false,
            strict_norms: true,
        }
    }
}

impl CudaOptions {
    /// The provider as `ort` takes it.
    pub fn build(&self) -> ort::ep::CUDA {
        let arena = match self.grow_as_requested {
            true => ArenaExtendStrategy::SameAsRequested,
            false => ArenaExtendStrategy::NextPowerOfTwo,
        };
        let search = match self.time_convolutions {
            true => ConvAlgorithmSearch::Exhaustive,
            false => ConvAlgorithmSearch::Heuristic,
        };
        let cuda = ort::ep::CUDA::default()
            .with_device_id(self.device)
            .with_arena_extend_strategy(arena)
            .with_conv_algorithm_search(search)
            .with_conv_max_workspace(self.workspace)
            .with_tf32(self.tf32)
            .with_prefer_nhwc(self.channels_last)
            .with_skip_layer_norm_strict_mode(self.strict_norms);
        match self.memory_limit {
            Some(limit) => cuda.with_memory_limit(limit),
            None => cuda,
        }
    }
}

impl Provider for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn ep(&self) -> &'static str {
        "CUDAExecutionProvider"
    }

    fn on_gpu(&self) -> bool {
        true
    }

    fn unavailable(&self, machine: &Machine) -> Option<String> {
        let check = || {
            gpu::capable(machine)?;
            let folder = gpu::build(machine, CUDA_PROVIDER)?;
            gpu_libraries::load(CUDA.iter(), &folder, machine.system_loader)
        };
        check().err()
    }

    fn library(&self, machine: &Machine) -> Option<PathBuf> {
        gpu::library_of(machine, CUDA_PROVIDER)
    }

    fn configure(
        &self,
        _: &Runtime,
        builder: SessionBuilder,
        _: &SessionOptions,
        _: &EngineOptions,
    ) -> Result<SessionBuilder> {
        with_providers(builder, [CudaOptions::default().build().build()], self)
    }
}
