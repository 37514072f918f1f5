//! Cohorts: lists of scans, reports and labels.
//!
//! Layer 2. One CSV reader and the two kinds of lists: [`read_list`] for prediction (no labels needed),
//! [`read_labelled`] for training and evaluation, with the splits.
//!
//! ```no_run
//! use brain_adapter::cohort::read_list;
//!
//! for row in read_list("cohort.csv".as_ref())? {
//!     println!("line {}: {}, report: {}", row.line, row.scan_path().display(), row.report.is_some());
//! }
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod csv;
mod labelled;
mod list;

pub use labelled::{Case, Split, assign_splits, read_labelled};
pub use list::{Row, read_list};
