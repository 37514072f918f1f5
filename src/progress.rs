//! How long work tells what it is doing. Layer 1.

use crate::error::Warning;

/// Hears of work as it goes on. All methods do nothing unless they are written.
pub trait Progress {
    /// A new step begins: what it is, and how many bytes it will handle where that is known.
    fn step(&mut self, what: &str, bytes: Option<u64>) {
        let _ = (what, bytes);
    }

    /// Of `of` items that take about as long as one another, number `index` (from 0) begins.
    fn item(&mut self, what: &str, index: usize, of: usize) {
        let _ = (what, index, of);
    }

    /// So many bytes more of the step are done.
    fn advance(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// A line of results worth seeing even when the work fails.
    fn line(&mut self, text: &str) {
        let _ = text;
    }

    /// Something to know that does not stop the work.
    fn warn(&mut self, warning: &Warning) {
        let _ = warning;
    }
}

/// Hears nothing.
pub struct Silent;

impl Progress for Silent {}
