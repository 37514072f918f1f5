//! Cohorts: lists of scans, reports and labels.
//!
//! Layer 2. One CSV reader, and the lists that are made with it.

mod csv;
mod list;

pub(crate) use csv::read_rows;
pub use list::{Row, read_list};
