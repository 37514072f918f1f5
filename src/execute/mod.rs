//! Runs a bundle's graphs within the memory that there is: selects a device, plans, loads, runs and verifies.
//!
//! Layer 5, feature `runtime`; shared by `export`, `infer` and `train`, of which it knows nothing. In flow a
//! [`Bundle`](crate::bundle::Bundle), [`Options`] and input tensors by name; out flow output tensors by name, and a
//! record of how each graph was run.
//!
//! ```text
//! Options ─► backend (device, ONNX Runtime) ─► memory_plan / gpu_plan (groups of blocks, bytes) ─► Stage, one a part
//! Pipeline::run: verification starts ─► Stage: loader (engines, session, warm-up) ─► run, group by group ─► values
//! Pipeline::verify: waits for the hashes of the weights, before a result leaves the program
//! ```
//!
//! ```no_run
//! use brain_adapter::execute::{Expected, Options, Pipeline};
//!
//! // Many scans: graphs stay loaded; at most 4 GiB; features of known scans come from the cache.
//! let options = Options {
//!     expected: Expected { scans: 100, reports: 100 },
//!     max_memory: Some(4 << 30),
//!     cache: Some("cache".into()),
//!     ..Options::default()
//! };
//! let pipeline = Pipeline::open("onnx".as_ref(), &options)?;
//! println!("{}", pipeline.device());
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod backend;
pub(crate) mod cache;
mod gpu_plan;
mod host_memory;
mod loader;
mod memory_plan;
mod options;
mod pipeline;
mod planning;
mod profiles;
mod run_report;
mod stage;
mod verification;

#[doc(hidden)]
pub use cache::records_in;
pub(crate) use host_memory::peak as peak_memory;
pub use memory_plan::Mode;
pub use options::{Expected, Options};
pub use pipeline::Pipeline;
pub(crate) use run_report::milliseconds;
pub use run_report::{GpuMemory, Memory, Run, StageRun, Timing};

/// The warning that this process took more memory than `limit` bytes, if it did.
pub(crate) fn exceeded(limit: u64) -> Option<crate::error::Warning> {
    run_report::exceeded(limit, host_memory::peak()?, None)
}
