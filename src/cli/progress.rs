//! Progress on stderr: a bar on a terminal, plain lines with `-v` elsewhere.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Common, text, warning_line, write_stderr};
use crate::error::Warning;
use crate::progress::Progress;
use crate::threads;

/// Minimum time between two plain lines about one step.
const LINES: Duration = Duration::from_secs(5);
/// How often the bar moves by itself.
const TICK: Duration = Duration::from_millis(100);

/// Shows the progress of a command, and collects its warnings for `--json`.
pub(super) struct Bar {
    bar: ProgressBar,
    /// Its end stops the thread that moves the bar.
    _ticking: Sender<()>,
    quiet: bool,
    /// Whether steps are plain lines: with `-v`, where stderr is no terminal.
    plain: bool,
    pace: Pace,
    warnings: Vec<Warning>,
}

impl Bar {
    pub fn new(common: &Common) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal && !common.quiet { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let _ticking = tick(&bar);
        let (quiet, plain) = (common.quiet, common.verbose && !terminal);
        Self { bar, _ticking, quiet, plain, pace: Pace::begin("", 0), warnings: Vec::new() }
    }

    /// Removes the bar; returns the warnings of the run.
    pub fn finish(mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    /// Writes a line that is escaped already.
    fn write(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| write_stderr(text));
        }
    }

    fn show(&mut self, what: &str, bytes: Option<u64>) {
        let what = &text::escaped(what);
        if self.plain {
            self.write(what);
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
        self.bar.tick();
    }
}

impl Progress for Bar {
    fn step(&mut self, what: &str, bytes: Option<u64>) {
        self.pace = Pace::begin(what, bytes.unwrap_or(0));
        self.show(what, bytes);
    }

    fn item(&mut self, what: &str, index: usize, of: usize) {
        if index == 0 {
            self.pace = Pace::begin(what, of as u64);
        }
        self.pace.done = index as u64;
        let left = self.pace.left(self.pace.started.elapsed()).map(|left| format!(", {left} left"));
        self.show(&format!("{what} ({} of {of}{})", index + 1, left.unwrap_or_default()), None);
    }

    fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        self.pace.done += bytes;
        if self.plain && self.pace.last_line.elapsed() >= LINES {
            self.pace.last_line = Instant::now();
            self.write(&text::escaped(&self.pace.line(self.pace.started.elapsed())));
        }
    }

    fn warn(&mut self, warning: &Warning) {
        self.write(&warning_line(warning));
        self.warnings.push(warning.clone());
    }

    fn line(&mut self, line: &str) {
        self.write(&text::escaped(line));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Moves the bar until what is returned is dropped. Not indicatif's own way, which panics where no thread is to be had;
/// here the bar then moves only when something is reported, and nothing else changes.
fn tick(bar: &ProgressBar) -> Sender<()> {
    let (sender, receiver) = channel();
    if !bar.is_hidden() {
        let bar = bar.clone();
        let _ = threads::spawn("bar", move || {
            while receiver.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                bar.tick();
            }
        });
    }
    sender
}

/// How far a step has come, and since when.
struct Pace {
    what: String,
    done: u64,
    of: u64,
    started: Instant,
    /// When the last plain line about the step was written.
    last_line: Instant,
}

impl Pace {
    fn begin(what: &str, of: u64) -> Self {
        Self { what: what.to_owned(), done: 0, of, started: Instant::now(), last_line: Instant::now() }
    }

    /// The remaining time at the rate so far.
    fn left(&self, elapsed: Duration) -> Option<String> {
        if self.done == 0 {
            return None;
        }
        let rest = self.of.saturating_sub(self.done) as f64 / self.done as f64 * elapsed.as_secs_f64();
        // Rounded up: at the end of a step one second too many is better than none.
        let seconds = rest.ceil() as u64;
        Some(match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, s) => format!("{s} s"),
            (0, m, s) => format!("{m}:{s:02} min"),
            (h, m, _) => format!("{h}:{m:02} h"),
        })
    }

    /// Percentage, rate and remaining time of a step of bytes.
    fn line(&self, elapsed: Duration) -> String {
        let percent = self.done.min(self.of) * 100 / self.of.max(1);
        let rate = text::size((self.done as f64 / elapsed.as_secs_f64().max(1e-3)) as u64);
        let (done, of) = (text::size(self.done), text::size(self.of));
        let left = self.left(elapsed).unwrap_or_default();
        format!("{}: {percent} %, {done} of {of}, {rate}/s, {left} left", self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_rate_and_time_left() {
        let pace = |done, of| Pace { done, of, ..Pace::begin("writing", 0) };
        let line = pace(2_000_000_000, 8_000_000_000).line(Duration::from_secs(10));
        assert_eq!(line, "writing: 25 %, 2.00 GB of 8.00 GB, 200.0 MB/s, 30 s left");
        let left = |done, of, seconds| pace(done, of).left(Duration::from_secs(seconds));
        assert_eq!(left(0, 10, 5), None);
        assert_eq!(left(1, 11, 61).as_deref(), Some("10:10 min"));
        assert_eq!(left(1, 100, 110).as_deref(), Some("3:01 h"));
        // More than was announced is no reason to fail.
        assert_eq!(left(12, 10, 5).as_deref(), Some("0 s"));
        assert!(pace(3, 0).line(Duration::ZERO).contains("0 %"));
    }
}
