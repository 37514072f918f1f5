//! Results of cohorts: a list of scans and reports in, a line a scan out, resumable.
//!
//! Results go to a JSON Lines file, one object a row; a row that failed has `error` instead of a label. Every line is
//! flushed as it is made: after an interruption the same call continues with the rows that are missing or failed.
//!
//! A line belongs to what was read, not to names: its `key` hashes the content of scan and report and all else that
//! the answer depends on ([`AnswerContext`]), and its `list` is the list that named them. A row is done only if a line
//! holds its names, its key and a label. So a file that was replaced since, or another list with the same relative
//! names, never takes over an answer; lines of other lists stay.
//!
//! ```text
//! Claim::new ─ lock, all lines are ours ─► Claim::open ─ rows that are done ─► Results ─ add, write_csv, missing
//! ```
//!
//! Files are read in a stream: memory grows with the rows, not with the file.

mod key;
mod line;
mod store;
mod table;

pub use key::{AnswerContext, CurrentKeys};
pub use line::is_results;
pub use store::{Claim, Results};
pub use table::is_table;

use serde_json::Value;

use super::Prediction;
use crate::cohort::Row;
use crate::error::{Error, Result};

/// One line of results: the prediction under the names of the list, or the error, and the list's other columns.
pub fn line(row: &Row, outcome: &Result<Prediction>) -> Value {
    let mut value = match outcome {
        Ok(prediction) => serde_json::to_value(prediction).unwrap_or_default(),
        Err(e) => serde_json::json!({"scan": null, "report": null, "error": error_json(e)}),
    };
    value["scan"] = row.scan.clone().into();
    value["report"] = row.report.clone().into();
    if let Some(volume) = row.volume {
        value["volume"] = volume.into();
    }
    if let Some(columns) = columns(row) {
        value["columns"] = columns.into();
    }
    value
}

/// The other columns of a row's list, as its results have them; none where the list has none.
fn columns(row: &Row) -> Option<serde_json::Map<String, Value>> {
    let columns: serde_json::Map<_, _> = row.others().map(|(name, cell)| (name.to_owned(), cell.into())).collect();
    (!columns.is_empty()).then_some(columns)
}

/// `{"code", "message", "path"}`.
pub fn error_json(e: &Error) -> Value {
    let path = e.path().map(|p| p.display().to_string());
    serde_json::json!({"code": e.code().as_str(), "message": e.message(), "path": path})
}
