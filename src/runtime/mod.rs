//! Runs graphs with ONNX Runtime: the only module that knows the crate `ort`.
//!
//! Layer 4, feature `runtime`. ONNX Runtime's shared library is found and loaded at run time ([`Runtime::load`]);
//! a missing, too old or unusable library is an error, never a panic. A [`Session`] takes and returns
//! [`Tensor`](crate::tensor::Tensor)s by name. ONNX Runtime's log is collected, not printed: [`take_log`].
//!
//! ```no_run
//! use brain_adapter::runtime::{Runtime, Session, SessionOptions};
//! use brain_adapter::tensor::Tensor;
//!
//! let runtime = Runtime::load(None)?;
//! let mut session = Session::open(runtime, "onnx/text.onnx".as_ref(), &SessionOptions::default())?;
//! let ids = Tensor::i64(&[1, 3], vec![1, 306, 4658]).expect("three values");
//! let mask = Tensor::i64(&[1, 3], vec![1; 3]).expect("three values");
//! let text = session.run(&[("input_ids", &ids), ("attention_mask", &mask)], &["text"])?;
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod device;
mod ort_library;
mod pinned;
mod placement;
mod session;
mod session_options;
mod trt_options;
mod value;

use std::sync::{Mutex, OnceLock};

pub use device::{CPU, Device, Gpu, Machine, Nvidia, PassedOver, Provider, ProviderOptions, SelectedDevice};
pub use ort_library::{LIBRARY_NAME, PINNED_VERSION, search_order};
pub use pinned::LibraryFile;
pub use placement::{FallbackNode, Placement, ProviderNodes, SHAPE_OPS};
pub use session::Session;
pub use session_options::{SessionOptions, Source};
pub use trt_options::{EngineOptions, ProfiledInput, compute_libraries, engine_libraries};
pub use value::{DeviceTensor, Input, OutputPlacement, RuntimeValue};

use crate::error::{Code, Error, Result};

/// The loaded library. A process has one.
pub struct Runtime {
    environment: ort::environment::Environment,
    /// The file that was loaded.
    pub library: std::path::PathBuf,
    /// The library's own description of its build.
    pub build: &'static str,
    /// The files that were loaded, as they were before: the library, then those of its providers in use.
    files: Mutex<Vec<LibraryFile>>,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Maximum number of lines of ONNX Runtime's log that are kept.
const MAX_LOG_LINES: usize = 1000;

impl Runtime {
    /// The library that this process has loaded, if it has loaded one.
    pub fn loaded() -> Option<&'static Self> {
        RUNTIME.get()
    }

    /// Finds and loads ONNX Runtime, or returns the one that is loaded already (`explicit` is then ignored: a process
    /// has one library).
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
        // Before it is loaded: loading runs its code.
        let files = Mutex::new(vec![LibraryFile::read(&library)?]);
        let builder = ort::init_from(&library).map_err(|e| ort_library::load_error(&library, &e))?;
        let logger = std::sync::Arc::new(|level: ort::logging::LogLevel, _: &str, _: &str, _: &str, message: &str| {
            log(level, message);
        });
        let environment = builder.with_name("brain-adapter").with_telemetry(false).with_logger(logger).build();
        let environment = environment
            .map_err(|e| Error::new(Code::RUNTIME_MISSING, format!("ONNX Runtime does not start: {e}")).at(&library))?;
        Ok(RUNTIME.get_or_init(|| Self { environment, library, build: ort::info(), files }))
    }

    /// The files of ONNX Runtime that were loaded, as they were before: the library, then its providers in use.
    pub fn files(&self) -> Vec<LibraryFile> {
        self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Hashes the files of a provider, before ONNX Runtime loads them.
    fn record(&self, paths: &[std::path::PathBuf]) -> Result<()> {
        let mut files = self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for path in paths {
            if !files.iter().any(|file| file.path == *path) {
                files.push(LibraryFile::read(path)?);
            }
        }
        Ok(())
    }

    /// Configures a session for a provider, without a graph, to learn whether ONNX Runtime can use it.
    fn probe(&self, provider: &'static dyn Provider) -> Result<()> {
        let refused =
            |e: ort::Error| Error::new(Code::DEVICE_UNAVAILABLE, format!("ONNX Runtime creates no sessions: {e}"));
        let builder = ort::session::Session::builder(&self.environment).map_err(refused)?;
        let engines = EngineOptions::default();
        provider.configure(self, builder, &SessionOptions::DEFAULT.for_provider(&engines)).map(drop)
    }
}

fn log(level: ort::logging::LogLevel, message: &str) {
    let severity = match level {
        ort::logging::LogLevel::Warning => "warning",
        ort::logging::LogLevel::Error => "error",
        ort::logging::LogLevel::Fatal => "fatal",
        _ => return,
    };
    let mut lines = LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lines.len() < MAX_LOG_LINES {
        lines.push(format!("ONNX Runtime {severity}: {message}"));
    }
}

/// The warnings and errors that ONNX Runtime has logged since the last call, oldest first.
pub fn take_log() -> Vec<String> {
    std::mem::take(&mut LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}
