//! [`Graph`](crate::graph::Graph) → ONNX files, and the little that is read back from them.
//!
//! Layer 3. [`write()`] makes `NAME.onnx` and, when there are large weights, `NAME.onnx.data` next to it. Weights are
//! streamed from their sources, some chunks at a time, to a thread that takes the file's SHA-256 and writes it. Large
//! weights start at multiples of [`ALIGNMENT`], so that a runtime can map them. A [`SegmentedModel`] is a file that was
//! read to be run block by block. For Microsoft's training runtime, `functions` comes along with graphs that use its
//! operators; [`crate::optimizer`] makes the file that it optimizes with.
//!
//! ```
//! use brain_adapter::graph::{Builder, Dim};
//! use brain_adapter::onnx;
//! use brain_adapter::tensor::DType;
//!
//! let mut g = Builder::new("square");
//! let x = g.input("x", DType::F32, &[Dim::Symbol("batch")]);
//! let y = g.mul(x, x)?;
//! g.output("y", y)?;
//!
//! let dir = tempfile::tempdir().unwrap();
//! let files = onnx::write(&g.finish()?, dir.path(), "square", &mut |_bytes| ())?;
//! assert_eq!(files[0].name, "square.onnx");
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod encode;
mod fields;
mod file;
mod functions;
mod model;
mod proto;
mod read;
mod segments;
mod training;
mod write;

pub use file::Written;
pub use read::{bundle_graph, bundle_graph_in, check_graph_size, external_files, external_files_in};
pub use segments::{Extracted, SegmentInfo, SegmentedModel};
pub(crate) use training::optimizer_model;
#[cfg(test)]
pub(crate) use write::without_data;
pub use write::{DataLayout, to_bytes, write, write_companion, write_part_of, write_scratch, write_with_layout};

/// Large weights start at multiples of this many bytes: the page size, as ONNX Runtime's mapping wants it.
pub const ALIGNMENT: u64 = 4096;

/// Weights of at least this many bytes go to the data file; smaller ones stay in the graph's file.
pub const EXTERNAL_BYTES: usize = 16 << 10;

/// Version of the standard operator set that graphs are written in.
pub const OPSET: i64 = 20;

/// Version of the file format: the one that came with opset 20.
pub const IR_VERSION: i64 = 9;
