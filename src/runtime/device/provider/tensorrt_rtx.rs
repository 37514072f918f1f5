//! NVIDIA RTX GPUs through TensorRT for RTX, a separate library that ONNX Runtime loads as a plugin.
//!
//! The plugin (PyPI's `onnxruntime-ep-nv-tensorrt-rtx-cu13`) ships its own TensorRT. It is registered with the
//! process's environment by path, once, and then offers devices, of which sessions use the first. It works with the
//! CPU's build of ONNX Runtime as well as with the GPU's: its fallback nodes run on the CPU. Types are the graph's own:
//! its networks are always strongly typed.
//!
//! Tried on machines without a GPU, ONNX Runtime 1.31.1 (CPU build), plugin 0.5.0:
//!
//! | installed | registering | devices |
//! |---|---|---|
//! | only the plugin | error: libcudart.so.13: cannot open shared object file | none |
//! | and its libraries | error: libcuda.so.1: cannot open shared object file | none |
//! | and a driver whose `cuInit` finds no GPU | succeeds | none |
//!
//! It was not run with a GPU. [`unavailable`](Provider::unavailable) reports the first two before that; the third is an
//! error of `configure`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::session::builder::SessionBuilder;

use super::super::gpu_libraries::{self, RTX, RTX_PROVIDER};
use super::profile::Profile;
use super::{Provider, ProviderOptions, gpu, refused, tensorrt};
use crate::error::Result;
use crate::runtime::{Machine, Runtime, ort_library};

/// NVIDIA RTX GPUs through TensorRT for RTX.
#[derive(Debug)]
pub(super) struct TensorRtRtx;

/// ONNX Runtime's name of the provider; the plugin is registered under the same name.
const EP: &str = "NvTensorRTRTXExecutionProvider";

/// Compute capabilities below 12.0 that the plugin supports; from 12.0 on it supports all. (Source:
/// `IsComputeCapabilitySupported` in the plugin's header. TensorRT for RTX itself also compiles for 7.5, which the
/// plugin refuses.)
const CAPABILITIES: [(u32, u32); 2] = [(8, 6), (8, 9)];

/// Options of the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RtxOptions {
    /// Folder of the cache of kernels compiled for this GPU, which is also that of the engines; without one, every
    /// session compiles them again.
    pub folder: Option<PathBuf>,
    /// The shapes that engines are built for; without them, those of the first run.
    pub profile: Profile,
}

impl RtxOptions {
    /// The options as the plugin's keys and values.
    ///
    /// # Errors
    /// When the folder's name is not Unicode.
    pub fn pairs(&self) -> Result<Vec<(String, String)>, String> {
        let mut pairs = Vec::new();
        let mut set = |key: &str, value: &str| pairs.push((format!("{EP}.{key}"), value.to_owned()));
        if let Some(folder) = &self.folder {
            set("nv_runtime_cache_path", tensorrt::folder_text(folder)?);
        }
        if !self.profile.is_empty() {
            set("nv_profile_min_shapes", &self.profile.min);
            set("nv_profile_opt_shapes", &self.profile.opt);
            set("nv_profile_max_shapes", &self.profile.max);
        }
        Ok(pairs)
    }
}

/// The model that replaces a graph whose engines lie next to it (ONNX Runtime's "EP context").
const CONTEXT: &str = "context.onnx";

/// The result of registering the plugin, which a process does once.
static REGISTERED: OnceLock<Result<(), String>> = OnceLock::new();

impl Provider for TensorRtRtx {
    fn name(&self) -> &'static str {
        "tensorrt-rtx"
    }

    fn ep(&self) -> &'static str {
        EP
    }

    fn on_gpu(&self) -> bool {
        true
    }

    fn makes_engines(&self) -> bool {
        true
    }

    fn context(&self) -> Option<&'static str> {
        Some(CONTEXT)
    }

    fn unavailable(&self, machine: &Machine) -> Option<String> {
        let check = || {
            let gpu = gpu::gpu(machine)?;
            if gpu.capability < (12, 0) && !CAPABILITIES.contains(&gpu.capability) {
                let (major, minor) = gpu.capability;
                return Err(format!(
                    "TensorRT for RTX supports compute capabilities 8.6, 8.9 and 12.0 or later; {} has {major}.{minor}",
                    gpu.name
                ));
            }
            let folder = plugin(machine.loaded.as_ref().or(machine.library.as_ref()), &machine.folders)?;
            gpu_libraries::load(RTX.iter(), &folder, machine.system_loader)
        };
        check().err()
    }

    fn library(&self, machine: &Machine) -> Option<PathBuf> {
        let named = machine.loaded.clone().or_else(|| machine.library.clone());
        // The build next to the plugin; without one, whatever the search finds.
        named.or_else(|| ort_library::in_folder(&plugin(None, &machine.folders).ok()?))
    }

    fn files(&self, machine: &Machine) -> Vec<PathBuf> {
        let named = machine.loaded.as_ref().or(machine.library.as_ref());
        plugin(named, &machine.folders).into_iter().map(|folder| folder.join(RTX_PROVIDER)).collect()
    }

    fn configure(
        &self,
        runtime: &Runtime,
        builder: SessionBuilder,
        options: &ProviderOptions<'_>,
    ) -> Result<SessionBuilder> {
        let refused = |reason: String| refused(self, &reason);
        let register = || {
            let folder = plugin(Some(&runtime.library), &ort_library::gpu_folders())?;
            let path = folder.join(RTX_PROVIDER);
            runtime.environment.register_ep_library(EP, &path).map_err(|e| e.to_string())
        };
        REGISTERED.get_or_init(register).clone().map_err(refused)?;
        let engines = options.engines;
        let profile = Profile::of(&engines.inputs).map_err(refused)?;
        let options = RtxOptions { folder: engines.folder.clone(), profile }.pairs().map_err(refused)?;
        let device = runtime.environment.devices().find(|device| device.ep().is_ok_and(|ep| ep == EP));
        let device = device.ok_or_else(|| {
            let reason = "its plugin finds no GPU that it supports, or may not access it (was the container started \
                          with the GPU?)";
            refused(reason.to_owned())
        })?;
        let builder = builder.with_devices([device], Some(&options)).map_err(|e| refused(e.to_string()))?;
        let Some(folder) = engines.folder.as_deref().filter(|_| engines.make) else { return Ok(builder) };
        let context = folder.join(CONTEXT);
        let context = tensorrt::folder_text(&context).map_err(refused)?.to_owned();
        // Mode 0: engines are separate files; inside the model they could exceed protobuf's 2 GB.
        let entries =
            [("ep.context_enable", "1"), ("ep.context_embed_mode", "0"), ("ep.context_file_path", context.as_str())];
        let mut builder = builder;
        for (key, value) in entries {
            builder = builder.with_config_entry(key, value).map_err(|e| refused(e.to_string()))?;
        }
        Ok(builder)
    }
}

/// The folder of the plugin: next to a library that was named or loaded, in `gpu/` there, or one of `folders`.
fn plugin(library: Option<&PathBuf>, folders: &[PathBuf]) -> Result<PathBuf, String> {
    let near = library.and_then(|path| path.parent()).map(Path::to_path_buf);
    let near = near.into_iter().flat_map(|folder| [folder.join(ort_library::GPU_FOLDER), folder]);
    near.chain(folders.iter().cloned()).find(|folder| folder.join(RTX_PROVIDER).is_file()).ok_or_else(|| {
        format!(
            "TensorRT for RTX's plugin {RTX_PROVIDER} is not next to the program or in a folder gpu there: install it \
             (from the program's source folder: `make gpu`)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ProfiledInput;

    #[test]
    fn options_name_the_provider() {
        assert_eq!(RtxOptions::default().pairs(), Ok(Vec::new()));
        let ids = ProfiledInput { name: "ids".into(), min: vec![1, 1], opt: vec![1, 256], max: vec![1, 512] };
        let options = RtxOptions { folder: Some("engines".into()), profile: Profile::of(&[ids]).unwrap() };
        let expected = [
            ("nv_runtime_cache_path", "engines"),
            ("nv_profile_min_shapes", "ids:1x1"),
            ("nv_profile_opt_shapes", "ids:1x256"),
            ("nv_profile_max_shapes", "ids:1x512"),
        ];
        let expected = expected.map(|(k, v)| (format!("NvTensorRTRTXExecutionProvider.{k}"), v.to_owned()));
        assert_eq!(options.pairs(), Ok(expected.to_vec()));
    }
}
