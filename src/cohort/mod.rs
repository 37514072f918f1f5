//! Cohorts: lists of scans, reports and labels.
//!
//! Layer 2. One CSV reader and the two kinds of lists: [`read_list`] for prediction (no labels needed),
//! [`read_labelled`] for training and evaluation, with the splits.
//!
//! ```
//! use brain_adapter::cohort::read_list;
//!
//! let dir = tempfile::tempdir().unwrap();
//! let list = dir.path().join("cohort.csv");
//! std::fs::write(&list, "scan,report\na.nii.gz,a.txt\nb.nii.gz,\n").unwrap();
//!
//! let rows = read_list(&list)?;
//! assert_eq!(rows[0].scan_path(), dir.path().join("a.nii.gz")); // relative to the list
//! assert!(rows[1].report_path().is_none());
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod csv;
mod labelled;
mod list;

pub use labelled::{Case, Split, assign_splits, parse_labelled, read_labelled};
pub use list::{Row, parse_list, read_list};
