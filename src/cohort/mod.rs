//! Cohorts: lists of scans, reports and labels.
//!
//! Layer 2. One reader of tables in all their dialects and the two kinds of lists: [`read_list`] for prediction (no
//! labels needed), [`read_labelled`] for training and evaluation, with the splits and the people.
//!
//! ```text
//! bytes ─ dialect (encoding, delimiter) ─ csv (rows, lines) ─┬─ list: rows and bad rows
//!                                                            └─ labelled ─ person, people ─ cases ─ assign
//! ```
//!
//! ```
//! use brain_adapter::cohort::read_list;
//!
//! let dir = tempfile::tempdir().unwrap();
//! let path = dir.path().join("cohort.csv");
//! std::fs::write(&path, "scan;report\na.nii.gz;a.txt\nb.nii.gz;n/a\n;c.txt\n").unwrap();
//!
//! let list = read_list(&path)?;
//! assert_eq!(list.rows[0].scan_path(), dir.path().join("a.nii.gz")); // relative to the list
//! assert!(list.rows[1].report_path().is_none());
//! assert_eq!(list.bad[0].line, 4); // names no scan
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod alike;
mod assign;
mod cells;
mod csv;
mod dialect;
mod header;
mod labelled;
mod list;
mod people;
mod person;
mod split;

pub use alike::subject_warnings;
pub use assign::assign_splits;
pub use cells::explain;
pub use labelled::{Case, parse_labelled, read_labelled};
pub use list::{BadRow, List, Row, parse_list, read_list};
pub use split::Split;
