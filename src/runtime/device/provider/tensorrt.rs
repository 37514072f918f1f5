//! NVIDIA GPUs through TensorRT, for data-centre GPUs and wherever the user installed it.
//!
//! Types are the graph's own: without `trt_fp16_enable`, `trt_bf16_enable` and `trt_int8_enable` ONNX Runtime builds a
//! strongly typed network, in which TensorRT neither narrows nor widens a type (source: ONNX Runtime,
//! `tensorrt_execution_provider.cc`, `kSTRONGLY_TYPED`). An fp16 bundle is therefore fp16 because it was exported so,
//! with its norms and softmax in float32, and `trt_layer_norm_fp32_fallback`, which only affects weakly typed networks,
//! is off.
//!
//! Weights become part of the engine, so the bundle's folder is not needed again (`trt_onnx_model_folder_path` is for
//! weightless engines). TensorRT receives a graph as one protobuf message with its weights, of 2 GB at most.

use std::path::{Path, PathBuf};

use ort::session::builder::SessionBuilder;

use super::super::gpu_libraries::{self, CUDA, CUDA_PROVIDER, TENSORRT, TENSORRT_PROVIDER};
use super::cuda::CudaOptions;
use super::profile::Profile;
use super::{Provider, ProviderOptions, gpu, refused, with_providers};
use crate::error::Result;
use crate::runtime::{Machine, Runtime};

/// NVIDIA GPUs through TensorRT.
#[derive(Debug)]
pub(super) struct TensorRt;

/// Options of the TensorRT provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TensorRtOptions {
    /// CUDA's number of the GPU.
    pub device: i32,
    /// Folder of the engine cache and the timing cache; without one, every session builds its engines again.
    pub folder: Option<PathBuf>,
    /// The shapes that engines are built for; without them, those of the first run, and every new shape rebuilds an
    /// engine.
    pub profile: Profile,
    /// Limit in bytes of the memory for building an engine, in addition to its weights; without one, TensorRT uses what
    /// the GPU has.
    pub workspace: Option<usize>,
}

impl TensorRtOptions {
    /// These options as `ort`'s builder.
    ///
    /// # Errors
    /// When the folder's name is not Unicode.
    pub fn build(&self) -> Result<ort::ep::TensorRT, String> {
        let mut trt = ort::ep::TensorRT::default().with_device_id(self.device);
        if let Some(folder) = &self.folder {
            let folder = folder_text(folder)?;
            trt = trt.with_engine_cache(true).with_engine_cache_path(folder);
            trt = trt.with_timing_cache(true).with_timing_cache_path(folder);
        }
        if !self.profile.is_empty() {
            trt = trt.with_profile_min_shapes(&self.profile.min);
            trt = trt.with_profile_opt_shapes(&self.profile.opt).with_profile_max_shapes(&self.profile.max);
        }
        Ok(match self.workspace {
            Some(bytes) => trt.with_max_workspace_size(bytes),
            None => trt,
        })
    }
}

/// A folder as the text of an option.
pub(super) fn folder_text(folder: &Path) -> Result<&str, String> {
    folder.to_str().ok_or_else(|| format!("the name of the engine cache's folder is not Unicode: {}", folder.display()))
}

impl Provider for TensorRt {
    fn name(&self) -> &'static str {
        "tensorrt"
    }

    fn ep(&self) -> &'static str {
        "TensorrtExecutionProvider"
    }

    fn on_gpu(&self) -> bool {
        true
    }

    fn makes_engines(&self) -> bool {
        true
    }

    fn unavailable(&self, machine: &Machine) -> Option<String> {
        let check = || {
            gpu::capable(machine)?;
            let folder = gpu::build(machine, TENSORRT_PROVIDER)?;
            gpu_libraries::load(CUDA.iter().chain(TENSORRT), &folder, machine.system_loader)
        };
        check().err()
    }

    fn library(&self, machine: &Machine) -> Option<PathBuf> {
        gpu::library_of(machine, TENSORRT_PROVIDER)
    }

    fn files(&self, machine: &Machine) -> Vec<PathBuf> {
        gpu::files(machine, &[TENSORRT_PROVIDER, CUDA_PROVIDER])
    }

    fn configure(&self, _: &Runtime, builder: SessionBuilder, options: &ProviderOptions<'_>) -> Result<SessionBuilder> {
        let engines = options.engines;
        let profile = Profile::of(&engines.inputs).map_err(|e| refused(self, &e))?;
        let options = TensorRtOptions { folder: engines.folder.clone(), profile, ..TensorRtOptions::default() };
        let trt = options.build().map_err(|e| refused(self, &e))?;
        // The CUDA provider computes its fallback nodes.
        with_providers(builder, [trt.build(), CudaOptions::default().build().build()], self)
    }
}
