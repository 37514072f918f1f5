//! What was measured, as Markdown.

use std::fmt::Write;

use super::process::Outcome;

/// One row: somebody's way of doing something.
pub struct Figure {
    /// What is done.
    pub what: String,
    /// By whom. The first of a `what` is what the others are compared with.
    pub with: String,
    pub outcome: Outcome,
    /// Of the file that comes out, or goes in.
    pub bytes: Option<u64>,
    /// Of the result to float32's.
    pub cosine: Option<f64>,
    /// Least that the machine takes.
    pub floor: Option<Floor>,
}

/// What a row can't be faster than.
#[derive(Clone, Copy)]
pub enum Floor {
    Seconds(f64),
    /// Operations of products in float32 and in 8-bit integers, at the best rates that the run saw.
    Products([f64; 2]),
}

/// What the two rates of [`Floor::Products`] are called.
pub const PRODUCTS: [&str; 2] = ["fp32 products", "int8 products"];

/// A rate of the machine.
pub struct Rate {
    pub what: String,
    pub with: String,
    /// Per second, in `unit`.
    /// The best seen.
    pub rate: Result<f64, String>,
    pub unit: &'static str,
}

/// What a whole `ba-infer` call says of itself, in seconds.
pub struct Call {
    /// The row that it belongs to.
    pub with: String,
    /// Of the whole process.
    pub seconds: f64,
    /// Of the graphs' runs.
    pub passes: f64,
    /// Of loading graphs.
    pub loading: f64,
    /// Of waiting for hashes after a pass.
    pub waiting: f64,
    /// From opening the bundle to the first run of a graph.
    pub started: Option<f64>,
    /// Graphs, and in how many groups of blocks each was run.
    pub groups: Vec<String>,
    /// Whether passes were left out.
    pub from_cache: bool,
}

impl Call {
    /// Time beyond the passes, in percent of them; none where passes were left out.
    pub fn overhead(&self) -> Option<f64> {
        (self.passes > 0.0 && !self.from_cache).then(|| 100.0 * (self.seconds / self.passes - 1.0))
    }
}

/// Which way a target lies.
#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// What was aimed at.
pub struct Target {
    pub what: String,
    /// `None` where it wasn't measured.
    pub found: Option<f64>,
    pub bound: Bound,
    pub unit: &'static str,
}

/// All that a run of the suite found.
#[derive(Default)]
pub struct Report {
    pub rates: Vec<Rate>,
    pub figures: Vec<Figure>,
    pub calls: Vec<Call>,
    pub targets: Vec<Target>,
    /// What the numbers mean, a sentence each.
    pub notes: Vec<String>,
}

impl Report {
    fn find(&self, what: &str, with: &str) -> Option<&super::process::Run> {
        let figure = self.figures.iter().find(|f| f.what == what && f.with == with)?;
        figure.outcome.as_ref().ok()
    }

    /// Seconds of a row.
    pub fn seconds(&self, what: &str, with: &str) -> Option<f64> {
        self.find(what, with).map(|run| run.seconds)
    }

    /// Highest memory of a row, in MB.
    pub fn peak_mb(&self, what: &str, with: &str) -> Option<f64> {
        self.find(what, with).map(|run| run.peak_kib * 1024e-6)
    }

    /// Highest anonymous memory of a row, in MB.
    pub fn anon_mb(&self, what: &str, with: &str) -> Option<f64> {
        self.find(what, with).map(|run| run.anon_kib * 1024e-6)
    }

    /// How many times as fast `ours` is as `theirs`.
    pub fn speedup(&self, what: &str, ours: &str, theirs: &str) -> Option<f64> {
        Some(self.seconds(what, theirs)? / self.seconds(what, ours)?)
    }

    /// Seconds of a floor.
    fn seconds_of(&self, floor: Floor) -> f64 {
        match floor {
            Floor::Seconds(seconds) => seconds,
            Floor::Products(operations) => PRODUCTS
                .iter()
                .zip(operations)
                .map(|(what, n)| if n > 0.0 { n / self.best_rate(what) } else { 0.0 })
                .sum(),
        }
    }

    /// Operations a second.
    fn best_rate(&self, what: &str) -> f64 {
        let rates = self.rates.iter().filter(|r| r.what == what).filter_map(|r| r.rate.as_ref().ok());
        rates.copied().fold(0.0, f64::max) * 1e9
    }

    /// Keeps a rate that was seen again, if it's better.
    pub fn seen(&mut self, what: &str, with: &str, rate: f64) {
        let old = self.rates.iter_mut().find(|r| r.what == what && r.with == with);
        if let Some(Rate { rate: Ok(old), .. }) = old {
            *old = old.max(rate);
        }
    }

    /// Adds a target.
    pub fn target(&mut self, what: impl Into<String>, found: Option<f64>, bound: Bound, unit: &'static str) {
        self.targets.push(Target { what: what.into(), found, bound, unit });
    }

    /// Adds the rows of one comparison.
    pub fn extend(&mut self, figures: impl IntoIterator<Item = Figure>) {
        self.figures.extend(figures);
    }

    /// The tables.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).unwrap_or_default();
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "| what | with | seconds | times ours | peak MB | anonymous MB | file MB | cosine | times the floor |"
        )?;
        writeln!(out, "|---|---|--:|--:|--:|--:|--:|--:|--:|")?;
        for figure in &self.figures {
            writeln!(out, "{}", self.row(figure))?;
        }
        self.write_calls(out)?;
        if !self.rates.is_empty() {
            writeln!(out, "\nFloors, measured in the same run:\n\n| floor | with | rate |\n|---|---|--:|")?;
        }
        for Rate { what, with, rate, unit } in &self.rates {
            let rate = rate
                .as_ref()
                .map_or_else(Clone::clone, |rate| format!("{rate:.*} {unit}", if *rate < 100.0 { 2 } else { 0 }));
            writeln!(out, "| {what} | {with} | {rate} |")?;
        }
        if !self.targets.is_empty() {
            writeln!(out, "\nTargets:\n\n| target | aimed at | measured | met |\n|---|--:|--:|---|")?;
        }
        for target in &self.targets {
            writeln!(out, "{}", target.row())?;
        }
        for (i, note) in self.notes.iter().enumerate() {
            writeln!(out, "{}* {note}", if i == 0 { "\n" } else { "" })?;
        }
        Ok(())
    }

    fn write_calls(&self, out: &mut String) -> std::fmt::Result {
        if self.calls.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nWhere the time of `ba-infer` goes, in seconds:\n")?;
        writeln!(
            out,
            "| with | whole | passes | overhead | over the best passes | loading | waiting for hashes | first graph runs after | groups |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|--:|--:|--:|---|")?;
        let whole = self.calls.iter().filter(|call| call.overhead().is_some());
        let best = whole.map(|call| call.passes).fold(f64::INFINITY, f64::min);
        for call in &self.calls {
            let Call { with, seconds, passes, loading, waiting, started, groups, from_cache } = call;
            let percent = |p: Option<f64>| p.map_or("-".into(), |p| format!("{p:.1} %"));
            let overhead = percent(call.overhead());
            let over = percent((!from_cache).then(|| 100.0 * (seconds / best - 1.0)));
            let started = started.map_or("-".into(), |s| format!("{s:.3}"));
            let groups = groups.join(", ");
            writeln!(
                out,
                "| {with} | {seconds:.3} | {passes:.3} | {overhead} | {over} | {loading:.3} | {waiting:.3} | {started} | {groups} |"
            )?;
        }
        Ok(())
    }

    fn row(&self, figure: &Figure) -> String {
        let Figure { what, with, outcome, bytes, cosine, floor } = figure;
        let run = match outcome {
            Ok(run) => run,
            Err(reason) => return format!("| {what} | {with} | {reason} | | | | | | |"),
        };
        let first = self.figures.iter().find(|f| f.what == *what).and_then(|f| f.outcome.as_ref().ok());
        let cell = |value: Option<f64>, digits: usize| match value {
            Some(value) if value > 0.0 => format!("{value:.digits$}"),
            _ => "-".into(),
        };
        [
            what.clone(),
            with.clone(),
            cell(Some(run.seconds), 3),
            cell(first.map(|f| run.seconds / f.seconds), 2),
            cell(Some(run.peak_kib * 1024e-6), 0),
            cell(Some(run.anon_kib * 1024e-6), 0),
            cell(bytes.map(|b| b as f64 / 1e6), 1),
            cell(*cosine, 5),
            cell(floor.map(|f| run.seconds / self.seconds_of(f)), 2),
        ]
        .iter()
        .fold(String::from("|"), |row, cell| row + " " + cell + " |")
    }
}

impl Target {
    fn row(&self) -> String {
        let Self { what, found, bound, unit } = self;
        let (sign, limit) = match bound {
            Bound::AtLeast(limit) => ("≥", *limit),
            Bound::AtMost(limit) => ("≤", *limit),
        };
        let (found, met) = match found {
            None => ("not measured".into(), "not measured"),
            Some(found) => {
                let kept = match bound {
                    Bound::AtLeast(limit) => found >= limit,
                    Bound::AtMost(limit) => found <= limit,
                };
                let digits = if *found < 100.0 { 2 } else { 0 };
                (format!("{found:.digits$} {unit}"), if kept { "met" } else { "**not met**" })
            }
        };
        format!("| {what} | {sign} {limit} {unit} | {found} | {met} |")
    }
}
