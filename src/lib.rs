//! Brain-Adapter: a brain-MRI model out of PyTorch and onto a hospital workstation.

pub mod checkpoint;
pub mod error;
pub mod tensor;

pub use error::{Code, Error, Result, Warning};
