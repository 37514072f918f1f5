//! Brain-Adapter: a brain-MRI model out of a PyTorch lab and onto a hospital workstation.
//!
//! The model (arXiv 2501.16282) reads a 3-D brain MRI and the clinical report and tells cognitively normal (CN), mild
//! cognitive impairment (MCI) and Alzheimer's disease (AD) apart. This crate turns its PyTorch checkpoints into an ONNX
//! bundle ([`export`]) and runs that with ONNX Runtime, without Python and without a network ([`infer`]); it fine-tunes
//! the adapter and heads there too ([`train`]). The commands `ba-export`, `ba-infer` and `ba-train` are thin over it.
//! **Research use only**: not a medical device.
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
//! The pieces stand alone too. Which tensors a checkpoint must hold, for instance:
//!
//! ```
//! use brain_adapter::{config::Config, model::keys};
//!
//! let (name, shape) = &keys::adapter(&Config::default())[0];
//! assert_eq!((name.as_str(), shape.as_slice()), ("adapter.reduce.conv.weight", &[64, 256, 1, 1][..]));
//! ```
//!
//! Modules by layer; each uses only those of lower layers:
//!
//! | layer | modules |
//! |---|---|
//! | 0 | [`error`] |
//! | 1 | [`tensor`], [`progress`], [`files`], [`metrics`] |
//! | 2 | [`config`], [`checkpoint`], [`volume`], [`text`], [`graph`], [`cohort`] |
//! | 3 | [`model`], [`passes`], [`onnx`], [`batch`] |
//! | 4 | [`bundle`], [`optimizer`], [`runtime`] |
//! | 5 | [`execute`], [`calibrate`], [`plot`] |
//! | 6 | [`export`], [`infer`] |
//! | 7 | [`train`] |
//! | 8 | [`cli`] |
//!
//! The features `runtime` and `cli` are on by default. Without them the library still reads checkpoints and scans, and
//! writes bundles (unchecked): it then needs no ONNX Runtime.

pub mod batch;
pub mod bundle;
#[cfg(feature = "runtime")]
pub mod calibrate;
pub mod checkpoint;
#[cfg(all(feature = "cli", feature = "runtime"))]
pub mod cli;
pub mod cohort;
pub mod config;
pub mod error;
#[cfg(feature = "runtime")]
pub mod execute;
pub mod export;
pub mod files;
pub mod graph;
#[cfg(feature = "runtime")]
pub mod infer;
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
#[cfg(feature = "runtime")]
pub mod train;
pub mod volume;

pub use error::{Code, Error, Result, Warning, WarningCode};
