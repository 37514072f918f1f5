//! Fine-tuning of adapter and heads: the work of `ba-train`.
//!
//! Layer 7, feature `runtime`.
//!
//! ```text
//! prepare  checkpoints → training artifacts (graphs, parameters, frozen weights)
//! fit      artifacts + cohort + a bundle's language model → best, last, history, adapter.safetensors
//! apply    best → a new version of the bundle
//! eval     bundle + cohort → metrics, a temperature, pictures
//! ```
//!
//! A program can also train in a loop of its own: [`TrainingGraphs`] are the model's stages, [`StagedModel`] runs them
//! forward and backward, [`Optimizer`] updates the parameters.
//!
//! ```no_run
//! use brain_adapter::config::AdamW;
//! use brain_adapter::model::Mode;
//! use brain_adapter::runtime::{Runtime, SessionOptions};
//! use brain_adapter::train::artifacts::Artifacts;
//! use brain_adapter::train::{Activations, Batch, GraphOptions, Optimizer, Parameters, moments};
//! use brain_adapter::train::{StagedModel, TrainingGraphs};
//!
//! # fn train(mut parameters: Parameters, batches: &[Batch]) -> brain_adapter::Result<()> {
//! let artifacts = Artifacts::open("training".as_ref())?;
//! let (config, mode) = (&artifacts.manifest.config, artifacts.manifest.mode);
//! let options = GraphOptions {
//!     mode,
//!     statistics: artifacts.manifest.statistics,
//!     activations: Activations::Recompute,
//!     class_weights: None,
//! };
//! let graphs = TrainingGraphs::new(config, &options, &|name| mode.trains(name))?;
//! let (runtime, session) = (Runtime::load(None)?, SessionOptions::default());
//! let mut model = StagedModel::new(runtime, session, &graphs, artifacts.frozen()?);
//! let mut moments = moments(&parameters, &|name| mode.trains(name));
//! let mut optimizer = Optimizer::new(runtime, &session, &AdamW::default(), &moments)?;
//! for (step, batch) in (1..).zip(batches) {
//!     let output = model.forward_backward(&parameters, batch, 1.0)?;
//!     parameters.extend(output.running_stats);
//!     optimizer.step(&mut parameters, &mut moments, &output.gradients, step, 1e-4)?;
//! }
//! # Ok(())
//! # }
//! ```

pub mod apply;
pub mod artifacts;
pub mod eval;
pub mod fit;
mod frozen_weights;
mod graphs;
mod monolith;
mod optimizer;
pub mod prepare;
mod saved_tensor;
mod stage;
mod staged_model;
mod tensors;

pub use frozen_weights::FrozenWeights;
pub use graphs::{Activations, GraphOptions, TrainingGraphs, Trunk, TrunkStage, parameters};
pub use monolith::{Monolith, Parameter};
pub use optimizer::{Moments, Optimizer, moments};
pub use staged_model::{Batch, HeadsOutput, Parameters, StagedModel, StepOutput};
