//! Progress on stderr: a bar on a terminal, plain lines with `-v` elsewhere.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Warning;
use crate::progress::Progress;

/// Shows what an export does.
pub(super) struct Bar {
    bar: ProgressBar,
    quiet: bool,
    plain: bool,
}

impl Bar {
    pub fn new(quiet: bool, verbose: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal && !quiet { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        Self { bar, quiet, plain: verbose && !terminal }
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{text}");
            });
        }
    }
}

impl Progress for Bar {
    fn step(&mut self, what: &str, bytes: Option<u64>) {
        if self.plain {
            self.line(what);
        }
        self.bar.reset();
        let template = match bytes {
            Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left",
            None => "{spinner} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_length(bytes.unwrap_or(0));
        self.bar.set_message(what.to_owned());
        self.bar.enable_steady_tick(std::time::Duration::from_millis(100));
    }

    fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn warn(&mut self, warning: &Warning) {
        self.line(&format!("warning[{}]: {}", warning.code, warning.message));
    }

    fn line(&mut self, text: &str) {
        Bar::line(self, text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
