//! Brain-Adapter: a brain-MRI model out of a PyTorch lab and onto a hospital workstation.
//!
//! The model (arXiv 2501.16282) reads a 3-D brain MRI and the clinical report and distinguishes cognitively normal
//! (CN), mild cognitive impairment (MCI) and Alzheimer's disease (AD). This crate turns its PyTorch checkpoints into an
//! ONNX bundle ([`export`]) and runs it with ONNX Runtime, without Python and without a network ([`infer`]); it
//! fine-tunes adapter and heads there too ([`train`]). The commands `ba-export`, `ba-infer` and `ba-train` are thin
//! over it. **Research use only**: not a medical device.
//!
//! ```no_run
//! use brain_adapter::export::{self, Plan, Sources};
//! use brain_adapter::infer::{Options, Predictor};
//! use brain_adapter::progress::Silent;
//!
//! export::run(&Plan::new(Sources::in_folder("checkpoints".as_ref())?, "onnx"), &mut Silent)?;
//!
//! let predictor = Predictor::open("onnx".as_ref(), Options::default())?;
//! let report = predictor.encode_report("Memory complaints for two years. MMSE 24 of 30.")?;
//! let scan = predictor.reader().read("scan.nii.gz".as_ref())?;
//! println!("{}", predictor.predict(scan, Some(&report))?.label);
//! # Ok::<(), brain_adapter::Error>(())
//! ```
//!
//! The parts can be used alone. What users need, from files to results:
//!
//! | to | use |
//! |---|---|
//! | read and conform a scan | [`volume::read`] |
//! | read a checkpoint | [`checkpoint::Checkpoint`], which [`tensor::LazyTensor`]s belong to |
//! | export a checkpoint | [`export::run`] |
//! | open, verify and change a bundle | [`bundle::Bundle`], [`bundle::Versions`] |
//! | predict | [`infer::Predictor`] |
//! | fine-tune and evaluate | [`train`], [`metrics`], [`plot`] |
//! | run any graph with ONNX Runtime | [`runtime::Session`] |
//! | build and rewrite graphs | [`graph`], [`model`], [`passes`], [`onnx`] |
//!
//! # Errors and warnings
//!
//! Everything that can fail returns [`Error`], with a stable [`Code`] that programs match on. Long work reports its
//! steps and its [`Warning`]s to a [`progress::Progress`]. The library prints nothing.
//!
//! # Features
//!
//! | feature | adds | pulls in |
//! |---|---|---|
//! | `runtime` (default) | [`runtime`], [`infer`], [`train`], the checks of [`export`] | `ort`, which loads ONNX Runtime at run time, and NVML |
//! | `cli` (default) | the commands | `clap`, progress bars, colours |
//!
//! A program that embeds the library needs no command line:
//!
//! ```toml
//! brain-adapter = { version = "0.1", default-features = false, features = ["runtime"] }
//! ```
//!
//! Without either feature the library still reads checkpoints and scans and writes bundles, unchecked; it then needs no
//! ONNX Runtime.
//!
//! # Layers
//!
//! Each module uses only those of lower layers; a test holds this. Modules without a link are internal.
//!
//! | layer | modules |
//! |---|---|
//! | 0 | [`error`] |
//! | 1 | [`tensor`], [`progress`], [`metrics`], [`threads`], `files` |
//! | 2 | [`config`], [`checkpoint`], [`volume`], [`text`], [`graph`], [`cohort`] |
//! | 3 | [`model`], [`passes`], [`onnx`], `batch` |
//! | 4 | [`bundle`], [`runtime`], [`optimizer`] |
//! | 5 | [`plot`], [`execute`], `calibrate` |
//! | 6 | [`export`], [`infer`] |
//! | 7 | [`train`] |
//! | 8 | `cli` |

#[cfg(feature = "runtime")]
mod batch;
pub mod bundle;
#[cfg(feature = "runtime")]
#[doc(hidden)]
pub mod calibrate;
pub mod checkpoint;
#[cfg(all(feature = "cli", feature = "runtime"))]
#[doc(hidden)]
pub mod cli;
pub mod cohort;
pub mod config;
pub mod error;
#[cfg(feature = "runtime")]
pub mod execute;
pub mod export;
#[doc(hidden)]
pub mod files;
pub mod graph;
#[cfg(feature = "runtime")]
pub mod infer;
mod json;
pub mod metrics;
pub mod model;
pub mod onnx;
pub mod optimizer;
pub mod passes;
#[cfg(feature = "runtime")]
pub mod plot;
pub mod progress;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod tensor;
pub mod text;
pub mod threads;
#[cfg(feature = "runtime")]
pub mod train;
pub mod volume;

pub use error::{Code, Error, Result, Warning, WarningCode, WarningTally};
