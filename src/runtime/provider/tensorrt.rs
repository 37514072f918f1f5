//! NVIDIA GPUs through TensorRT, for data-centre cards and wherever the user installed it.
//!
//! Types are the graph's own: without `trt_fp16_enable`, `trt_bf16_enable` and `trt_int8_enable` ONNX Runtime makes the network
//! strongly typed, and TensorRT then neither narrows nor widens what the graph says (source: ONNX Runtime,
//! `tensorrt_execution_provider.cc`, `kSTRONGLY_TYPED`). So a half-precision bundle is one because it was exported as one, with
//! its norms and softmax in float32, and `trt_layer_norm_fp32_fallback`, which works for narrowed networks alone, is not wanted.
//!
//! Weights go into the engine, so the bundle's folder is not needed again (`trt_onnx_model_folder_path` is for engines without
//! weights). A graph is handed to TensorRT as one protobuf message with its weights, of 2 GB at most.

use std::path::{Path, PathBuf};

use ort::session::builder::SessionBuilder;

use super::cuda::CudaOptions;
use super::profile::Profile;
use super::{Provider, gpu, refused, with_providers};
use crate::error::Result;
use crate::runtime::gpu_libraries::{self, CUDA, TENSORRT, TENSORRT_PROVIDER};
use crate::runtime::{EngineOptions, Machine, Runtime, SessionOptions};

/// NVIDIA GPUs through TensorRT, for data-centre cards and wherever the user installed it.
#[derive(Debug)]
pub(super) struct TensorRt;

/// How the TensorRT provider is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TensorRtOptions {
    /// CUDA's number of the GPU.
    pub device: i32,
    /// Where engines and what was timed are kept; without, every session makes its engines anew.
    pub folder: Option<PathBuf>,
    /// The extents that engines are made for; without, those of the first run, and an engine is made anew when others come.
    pub profile: Profile,
    /// Most bytes that an engine's making may take beside its weights; without, TensorRT takes what the card has.
    pub workspace: Option<usize>,
}

impl TensorRtOptions {
    /// The provider as `ort` takes it.
    ///
    /// # Errors
    /// When the folder's name is not Unicode.
    pub fn build(&self) -> Result<ort::ep::TensorRT, String> {
        let mut trt = ort::ep::TensorRT::default().with_device_id(self.device);
        if let Some(folder) = &self.folder {
            let folder = name(folder)?;
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

/// A folder as an option's value.
pub(super) fn name(folder: &Path) -> Result<&str, String> {
    folder.to_str().ok_or_else(|| format!("the name of the folder for engines is not Unicode: {}", folder.display()))
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

    fn configure(
        &self,
        _: &Runtime,
        builder: SessionBuilder,
        _: &SessionOptions,
        engines: &EngineOptions,
    ) -> Result<SessionBuilder> {
        let profile = Profile::of(&engines.inputs).map_err(|e| refused(self, &e))?;
        let options = TensorRtOptions { folder: engines.folder.clone(), profile, ..TensorRtOptions::default() };
        let trt = options.build().map_err(|e| refused(self, &e))?;
        // CUDA's provider behind it computes what it leaves.
        with_providers(builder, [trt.build(), CudaOptions::default().build().build()], self)
    }
}
