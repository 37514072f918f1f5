//! The fuzz targets' bodies, one function each: libFuzzer calls them with its inputs (`src/bin`), the tests with the
//! stored ones (`corpus/TARGET/`).

mod files;
mod models;
mod records;
mod texts;

pub use files::*;
pub use models::*;
pub use records::*;
pub use texts::*;

/// A target: bytes in, a panic out if they break a promise.
pub type Target = fn(&[u8]);

/// Every target by name; `src/bin` and `corpus` have the same names.
pub const TARGETS: &[(&str, Target)] = &[
    ("bundle", bundle),
    ("cache", cache),
    ("checkpoint", checkpoint),
    ("config", config),
    ("dcp", dcp),
    ("list", list),
    ("mgh", mgh),
    ("nifti", nifti),
    ("onnx", onnx),
    ("report", report),
    ("results", results),
    ("statistics", statistics),
    ("tokenizer", tokenizer),
    ("training", training),
    ("training_checkpoint", training_checkpoint),
];
