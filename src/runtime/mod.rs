//! Runs graphs with ONNX Runtime: the only module that knows the crate `ort`.
//!
//! Layer 4, feature `runtime`. ONNX Runtime's shared library is found and loaded at run time ([`Runtime::load`]);
//! a missing, too old or unusable library is an error, never a panic. A [`Session`] takes and gives
//! [`Tensor`](crate::tensor::Tensor)s by name. What ONNX Runtime logs is collected, not printed: [`take_log`].

mod device;
mod gpu_libraries;
mod machine;
mod ort_library;
mod placement;
mod provider;
mod session;
mod trt_options;
mod value;
mod visible_devices;

use std::sync::{Mutex, OnceLock};

pub use device::{Chosen, Device, PassedOver};
pub use machine::{Gpu, Machine, Nvidia};
pub use ort_library::{LIBRARY_NAME, PINNED_VERSION, search_order};
pub use placement::{FallbackNode, Placed, Placement, SHAPE_OPS};
pub use provider::{CPU, Provider};
pub use session::{Session, SessionOptions, Source};
pub use trt_options::{EngineOptions, ProfiledInput, compute_libraries, engine_libraries};
pub use value::{DeviceTensor, Input, OutputPlacement, RuntimeValue};

use crate::error::{Code, Error, Result};

/// The loaded library. There is one a process.
pub struct Runtime {
    environment: ort::environment::Environment,
    /// Where the library was found.
    pub library: std::path::PathBuf,
    /// What the library says of its own build.
    pub build: &'static str,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Most lines of ONNX Runtime's log that are kept.
const MAX_LOG_LINES: usize = 1000;

impl Runtime {
    /// What this process has loaded, if it has.
    pub fn loaded() -> Option<&'static Self> {
        RUNTIME.get()
    }

    /// Finds and loads ONNX Runtime, or returns it where it was loaded before (`explicit` is then not looked at
    /// again: a process has one library).
    ///
    /// # Errors
    /// `runtime.missing` when no library is found or the one found cannot be loaded; `runtime.version` when it is
    /// too old.
    pub fn load(explicit: Option<&std::path::Path>) -> Result<&'static Self> {
        // A panic elsewhere cannot leave the unit value behind this lock broken.
        let _one_at_a_time = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(runtime) = RUNTIME.get() {
            return Ok(runtime);
        }
        let library = ort_library::find(explicit)?;
        let builder = ort::init_from(&library).map_err(|e| ort_library::load_error(&library, &e))?;
        let logger = std::sync::Arc::new(|level: ort::logging::LogLevel, _: &str, _: &str, _: &str, message: &str| {
            log(level, message);
        });
        let environment = builder.with_name("brain-adapter").with_telemetry(false).with_logger(logger).build();
        let environment = environment
            .map_err(|e| Error::new(Code::RUNTIME_MISSING, format!("ONNX Runtime does not start: {e}")).at(&library))?;
        Ok(RUNTIME.get_or_init(|| Self { environment, library, build: ort::info() }))
    }
}

impl Runtime {
    /// Has a provider taken as for a session, without a graph.
    fn takes(&self, provider: &'static dyn Provider) -> Result<()> {
        let refused =
            |e: ort::Error| Error::new(Code::DEVICE_UNAVAILABLE, format!("ONNX Runtime takes no sessions: {e}"));
        let builder = ort::session::Session::builder(&self.environment).map_err(refused)?;
        let options = SessionOptions { provider, ..SessionOptions::DEFAULT };
        provider.configure(self, builder, &options, &EngineOptions::default()).map(drop)
    }
}

fn log(level: ort::logging::LogLevel, message: &str) {
    if level >= ort::logging::LogLevel::Warning {
        let mut lines = LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() < MAX_LOG_LINES {
            lines.push(format!("{level:?}: {message}"));
        }
    }
}

/// The warnings and errors that ONNX Runtime has logged since the last call, oldest first.
pub fn take_log() -> Vec<String> {
    std::mem::take(&mut LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}
