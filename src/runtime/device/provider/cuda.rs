//! NVIDIA GPUs through CUDA, cuBLAS and cuDNN: ONNX Runtime's own CUDA provider.

use std::path::PathBuf;

use ort::ep::ArenaExtendStrategy;
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::session::builder::SessionBuilder;

use super::super::gpu_libraries::{self, CUDA, CUDA_PROVIDER};
use super::{Provider, ProviderOptions, gpu, with_providers};
use crate::error::Result;
use crate::runtime::{Machine, Runtime};

/// NVIDIA GPUs through CUDA, cuBLAS and cuDNN.
#[derive(Debug)]
pub(super) struct Cuda;

/// Options of the CUDA provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CudaOptions {
    /// CUDA's number of the GPU. It stays 0: `CUDA_VISIBLE_DEVICES` chooses, and what is reported is CUDA's first GPU.
    pub device: i32,
    /// Limit of the arena in bytes; without one it may use all free memory.
    pub memory_limit: Option<usize>,
    /// Whether the arena grows by the requested size and not by powers of two. Memory is planned before a run: an arena
    /// of twice the size would break the plan, and fail on a GPU on which the model fits.
    pub grow_as_requested: bool,
    /// Whether cuDNN times every algorithm of each convolution in the first run. Its heuristic costs nothing, and the
    /// model has three convolutions: a single scan should not wait for a search, nor be computed by another algorithm,
    /// whose last bits differ, because the machine was busy during the timing.
    pub time_convolutions: bool,
    /// Whether convolutions may use as much workspace as they need: the fast algorithms of 3-D convolutions do.
    pub workspace: bool,
    /// Whether factors of float32 products are rounded to TensorFloat-32's 10 bits of mantissa. Off: an fp32 bundle
    /// promises fp32, whose products agree with PyTorch's to 1e-5; for speed there is fp16.
    pub tf32: bool,
    /// Whether convolutions run in channels-last layout. Off: ONNX Runtime adds transposes for it, and does not convert
    /// 3-D convolutions, which ours are.
    pub channels_last: bool,
    /// Whether fused layer norms add in float32. On: sums of fp16 residuals exceed 65504 in real language models.
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
    /// These options as `ort`'s builder.
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

    fn files(&self, machine: &Machine) -> Vec<PathBuf> {
        gpu::files(machine, &[CUDA_PROVIDER])
    }

    fn configure(&self, _: &Runtime, builder: SessionBuilder, _: &ProviderOptions<'_>) -> Result<SessionBuilder> {
        with_providers(builder, [CudaOptions::default().build().build()], self)
    }
}
