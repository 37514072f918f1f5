//! Scan (and report) → CN / MCI / AD: the work of `ba-infer`.
//!
//! Layer 6, feature `runtime`. A [`Predictor`] holds a bundle, plans the memory of the run and opens each graph when it is
//! first needed. A [`ScanReader`] reads scans beside it.
//!
//! ```text
//! scan ── reader (another thread) ─ cache? ─ Scan ─────────► adapter ─ vision ┐
//! report ─ tokens ─ cache? ──────────────────────────────► text ──────────────┴ heads ─► Prediction
//! large files of the bundle ─ hashed beside (verification) ───────────────────── before anything is told ┘
//! ```
//!
//! On a GPU ([`Predictor::predict_both`]) report and image run at once, in two threads and two streams; graphs are planned for
//! the card's memory (`card`), TensorRT's engines are kept in the cache (`engines`), and every session is gone before a
//! `Predictor` is.
//!
//! ```no_run
//! use brain_adapter::infer::{Options, Predictor};
//!
//! let mut predictor = Predictor::open("onnx".as_ref(), Options::default())?;
//! let report = predictor.encode_report("Memory complaints for two years. MMSE 24.")?;
//! let scan = predictor.reader().read("scan.nii.gz".as_ref())?;
//! let prediction = predictor.predict(scan, Some(&report))?;
//! println!("{} {:?}", prediction.label, prediction.probabilities);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod encoding;
mod prediction;
mod predictor;
mod reader;
pub mod results;
mod running;

pub use encoding::EncodedReport;
pub use prediction::{BundleIdentity, Prediction};
pub use predictor::Predictor;
pub use reader::{Reading, Scan, ScanReader, ahead};

pub use crate::execute::{Expected, GpuMemory, Memory, Mode, Options, Run, StageRun, Timing};
