//! Lines that are worth seeing while work takes long.

use std::sync::Arc;

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
