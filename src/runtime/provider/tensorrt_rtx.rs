//! NVIDIA RTX cards through TensorRT for RTX, a library of its own that ONNX Runtime takes as a plugin.
//!
//! The plugin (PyPI's `onnxruntime-ep-nv-tensorrt-rtx-cu13`) brings its own TensorRT. It is registered with the process's
//! environment by path, once, and then offers devices, of which sessions take the first. It works with the CPU's build of ONNX
//! Runtime as with the GPU's: nodes that it leaves go to the CPU. Types are the graph's own: its networks are always strongly
//! typed.
//!
//! Tried on machines without a GPU, ONNX Runtime 1.31.1 (CPU build), plugin 0.5.0:
//!
//! | there is | registering | devices |
//! |---|---|---|
//! | the plugin alone | error: libcudart.so.13: cannot open shared object file | none |
//! | and its libraries | error: libcuda.so.1: cannot open shared object file | none |
//! | and a driver's libraries whose `cuInit` finds no GPU | succeeds | none |
//!
//! With a GPU it was not run. The first two are told by [`unavailable`](Provider::unavailable) before; the third is an error here.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::session::builder::SessionBuilder;

use super::profile::Profile;
use super::{Provider, gpu, refused, tensorrt};
use crate::error::Result;
use crate::runtime::gpu_libraries::{self, RTX, RTX_PROVIDER};
use crate::runtime::{EngineOptions, Machine, Runtime, SessionOptions, ort_library};

/// NVIDIA RTX cards through TensorRT for RTX, a library of its own that ONNX Runtime takes as a plugin.
#[derive(Debug)]
pub(super) struct TensorRtRtx;

/// The provider's name for ONNX Runtime, also that of the plugin when it is registered.
const EP: &str = "NvTensorRTRTXExecutionProvider";

/// Compute capabilities below 12.0 that the plugin takes; from there on it takes all. (Source: `IsComputeCapabilitySupported` in
/// the header that it comes with. TensorRT for RTX itself also compiles for 7.5, which the plugin refuses.)
const CAPABILITIES: [(u32, u32); 2] = [(8, 6), (8, 9)];

/// How the plugin is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RtxOptions {
    /// Where kernels that were compiled for this card are kept, beside the engines; without, every session compiles them anew.
    pub folder: Option<PathBuf>,
    /// The extents that engines are made for; without, the plugin goes by those of the first run.
    pub profile: Profile,
}

impl RtxOptions {
    /// Keys and values as the plugin reads them.
    ///
    /// # Errors
    /// When the folder's name is not Unicode.
    pub fn pairs(&self) -> Result<Vec<(String, String)>, String> {
        let mut pairs = Vec::new();
        let mut set = |key: &str, value: &str| pairs.push((format!("{EP}.{key}"), value.to_owned()));
        if let Some(folder) = &self.folder {
            set("nv_runtime_cache_path", tensorrt::name(folder)?);
        }
        if !self.profile.is_empty() {
            set("nv_profile_min_shapes", &self.profile.min);
            set("nv_profile_opt_shapes", &self.profile.opt);
            set("nv_profile_max_shapes", &self.profile.max);
        }
        Ok(pairs)
    }
}

/// The model that stands for a graph whose engines lie beside it (ONNX Runtime's "EP context").
const CONTEXT: &str = "context.onnx";

/// Whether the plugin was registered, or why not. A process does it once.
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
                    "TensorRT for RTX serves compute capabilities 8.6, 8.9 and 12.0 or later; {} has {major}.{minor}",
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
        // The build beside the plugin; without one, whatever the search finds.
        named.or_else(|| ort_library::in_folder(&plugin(None, &machine.folders).ok()?))
    }

    fn configure(
        &self,
        runtime: &Runtime,
        builder: SessionBuilder,
        _: &SessionOptions,
        engines: &EngineOptions,
    ) -> Result<SessionBuilder> {
        let refused = |reason: String| refused(self, &reason);
        let register = || {
            let folder = plugin(Some(&runtime.library), &ort_library::folders())?;
            let path = folder.join(RTX_PROVIDER);
            runtime.environment.register_ep_library(EP, &path).map_err(|e| e.to_string())
        };
        REGISTERED.get_or_init(register).clone().map_err(refused)?;
        let profile = Profile::of(&engines.inputs).map_err(refused)?;
        let options = RtxOptions { folder: engines.folder.clone(), profile }.pairs().map_err(refused)?;
        let device = runtime.environment.devices().find(|device| device.ep().is_ok_and(|ep| ep == EP));
        let device = device.ok_or_else(|| {
            refused("its plugin finds no GPU that it serves, or no access to one (in a container: was it started with the GPU?)".into())
        })?;
        let builder = builder.with_devices([device], Some(&options)).map_err(|e| refused(e.to_string()))?;
        let Some(folder) = engines.folder.as_deref().filter(|_| engines.make) else { return Ok(builder) };
        let context = folder.join(CONTEXT);
        let context = tensorrt::name(&context).map_err(refused)?.to_owned();
        // Mode 0: engines are files of their own; within the model they could pass protobuf's 2 GB.
        let entries =
            [("ep.context_enable", "1"), ("ep.context_embed_mode", "0"), ("ep.context_file_path", context.as_str())];
        let mut builder = builder;
        for (key, value) in entries {
            builder = builder.with_config_entry(key, value).map_err(|e| refused(e.to_string()))?;
        }
        Ok(builder)
    }
}

/// The folder of the plugin: beside a library that was named or loaded, in `gpu/` there, or in one of `folders`.
fn plugin(library: Option<&PathBuf>, folders: &[PathBuf]) -> Result<PathBuf, String> {
    let beside = library.and_then(|path| path.parent()).map(Path::to_path_buf);
    let beside = beside.into_iter().flat_map(|folder| [folder.join(ort_library::GPU_FOLDER), folder]);
    beside.chain(folders.iter().cloned()).find(|folder| folder.join(RTX_PROVIDER).is_file()).ok_or_else(|| {
        format!(
            "TensorRT for RTX's plugin {RTX_PROVIDER} is not beside the program or in a folder .ort/gpu here or above: run \
             `make gpu`"
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
