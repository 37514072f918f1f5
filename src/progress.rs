//! How long work tells what it is doing. Layer 1.

use std::sync::Arc;

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

type Listener = dyn Fn(&str) + Send + Sync;

/// Who is told lines; by default nobody.
#[derive(Clone, Default)]
pub struct Tell(Option<Arc<Listener>>);

impl Tell {
    /// Tells `to`, on whatever thread the work is done.
    pub fn new(to: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(to)))
    }

    /// Tells a line.
    pub fn say(&self, line: &str) {
        if let Some(to) = &self.0 {
            to(line);
        }
    }
}

impl std::fmt::Debug for Tell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Tell(somebody)" } else { "Tell(nobody)" })
    }
}
