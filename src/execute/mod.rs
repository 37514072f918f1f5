//! Runs a bundle's graphs within the memory that there is: plans, loads, runs and verifies them.
//!
//! Layer 5, feature `runtime`. What `infer`, `export` and `train` share below their use cases.

mod backend;
pub(crate) mod cache;
mod gpu_plan;
mod loader;
mod memory_plan;
mod options;
mod pipeline;
mod profiles;
mod run_report;
mod stage;
mod verification;

pub(crate) use backend::*;
pub use memory_plan::Mode;
pub(crate) use memory_plan::{MemoryBudget, peak};
pub use options::{Expected, Options};
pub use pipeline::Graphs;
pub(crate) use run_report::milliseconds;
pub use run_report::{GpuMemory, Memory, Run, StageRun, Timing};
pub(crate) use stage::Stage;
pub(crate) use verification::Verification;
