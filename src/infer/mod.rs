//! Scan (and report) → CN / MCI / AD: the work of `ba-infer`.
//!
//! Layer 6, feature `runtime`. A [`Predictor`] answers with a bundle's graphs ([`crate::execute::Pipeline`]); a
//! [`ScanReader`] reads scans, on another thread where wanted.
//!
//! ```text
//! scan ── ScanReader ─ feature cache? ─ Scan ───────────► adapter ─ vision ┐
//! report ─ tokens ─ feature cache? ─────────────────────► text ────────────┴ heads ─► Prediction
//! large files of the bundle ─ hashed in the background ──── before any result leaves ──────────┘
//! ```
//!
//! ```no_run
//! use brain_adapter::infer::{Options, Predictor};
//!
//! let predictor = Predictor::open("onnx".as_ref(), Options::default())?;
//! let report = predictor.encode_report("Memory complaints for two years. MMSE 24.")?;
//! let scan = predictor.reader().read("scan.nii.gz".as_ref())?;
//! let prediction = predictor.predict(scan, Some(&report))?;
//! println!("{} {:?}", prediction.label, prediction.probabilities);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod encoded_report;
mod prediction;
mod predictor;
mod report;
pub mod results;
mod scan;

pub use encoded_report::EncodedReport;
pub use prediction::{BundleIdentity, Prediction};
pub use predictor::Predictor;

pub use scan::{PendingScan, Scan, ScanReader, read_ahead};

pub use crate::execute::{Expected, GpuMemory, Memory, Mode, Options, Run, StageRun, Timing};
