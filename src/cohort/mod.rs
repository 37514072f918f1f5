//! Cohorts: lists of scans, reports and labels.
//!
//! Layer 2. One CSV reader and the two kinds of lists: [`read_list`] for prediction (no labels needed),
//! [`read_labelled`] for training and evaluation, with the splits.

mod csv;
mod labelled;
mod list;

pub use labelled::{Case, Split, assign_splits, read_labelled};
pub use list::{Row, read_list};
