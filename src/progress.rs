//! How long work reports what it is doing. Layer 1.
//!
//! ```
//! use brain_adapter::progress::Progress;
//!
//! /// Keeps the names of the steps.
//! struct Steps(Vec<String>);
//!
//! impl Progress for Steps {
//!     fn step(&mut self, what: &str, _bytes: Option<u64>) {
//!         self.0.push(what.to_owned());
//!     }
//! }
//!
//! let mut steps = Steps(Vec::new());
//! steps.step("writing vision", None);
//! steps.advance(4096); // methods that are not written do nothing
//! assert_eq!(steps.0, ["writing vision"]);
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Warning;

/// Receives the progress of work. Every method does nothing by default.
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

/// Ignores all progress.
pub struct Silent;

impl Progress for Silent {}

/// A progress that several threads report to: cheap to clone, silent by default.
#[derive(Clone, Default)]
pub struct Shared(Option<Arc<Mutex<dyn Progress + Send>>>);

impl Shared {
    /// Reports to `progress`, from whatever thread the work is done on.
    pub fn new(progress: impl Progress + Send + 'static) -> Self {
        Self(Some(Arc::new(Mutex::new(progress))))
    }

    /// A note, as [`Progress::line`].
    pub fn note(&self, text: &str) {
        if let Some(progress) = &self.0 {
            progress.lock().unwrap_or_else(PoisonError::into_inner).line(text);
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Shared(a progress)" } else { "Shared(silent)" })
    }
}
