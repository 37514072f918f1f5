//! Results as text for people.

use std::fmt::Write;
use std::path::Path;

use super::layers;
use crate::bundle::{Parity, SourceRecord, Target};
use crate::export::{PartSummary, StageCheck, StageLimit, Summary};
use crate::infer::Prediction;

/// Width of the longest probability bar.
const BAR: f64 = 40.0;

/// A table with columns as wide as their longest cell; numbers (all columns but the first) are right-aligned.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(
                |(c, cell)| {
                    if c == 0 { format!("{cell:<w$}", w = widths[c]) } else { format!("{cell:>w$}", w = widths[c]) }
                },
            )
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// A path for a terminal: a name with control characters must not steer it.
pub(super) fn shown(path: &Path) -> String {
    path.display().to_string().replace(char::is_control, "\u{fffd}")
}

/// `1,234,567`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12.3 MB`, in powers of ten as disks are sold.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.2} GB")
}

/// A row a part: its size, number format and distance from float32.
pub(super) fn parts(parts: &[PartSummary]) -> String {
    let mut rows =
        vec![["part", "parameters", "precision", "size", "max error", "cosine", "seconds"].map(str::to_owned).to_vec()];
    for part in parts {
        let (error, cosine) = match &part.record.parity {
            Parity::Checked { worst, .. } => (format!("{:.1e}", worst.max_abs), format!("{:.7}", worst.cosine)),
            Parity::NotChecked(_) => ("not checked".into(), "-".into()),
        };
        rows.push(vec![
            part.part.to_string(),
            thousands(part.record.parameters),
            part.record.precision.to_string(),
            size(part.record.bytes),
            error,
            cosine,
            format!("{:.2}", part.seconds),
        ]);
    }
    table(&rows)
}

/// Which parts were not compared, and why.
pub(super) fn unchecked(parts: &[PartSummary]) -> String {
    let mut text = String::new();
    for part in parts {
        if let Parity::NotChecked(why) = &part.record.parity {
            let _ = writeln!(text, "not checked: {} ({why})", part.part);
        }
    }
    text
}

/// What an export made.
pub(super) fn export(summary: &Summary, verbose: bool) -> String {
    let mut text = parts(&summary.parts);
    let against = match &summary.quantization {
        Some(_) => "against fp32, on held-out inputs where there are enough",
        None => "against the plain fp32 graphs, on the calibration inputs",
    };
    if summary.target != Target::Cpu {
        let _ = writeln!(text, "\nmade for {}", summary.target);
    }
    let _ = writeln!(text, "\nmax error, cosine: {against}");
    text += &unchecked(&summary.parts);
    if let Some(quantization) = &summary.quantization {
        let _ = write!(text, "\n{}", layers::quantization(quantization, &summary.slowdowns, verbose));
    }
    if !summary.verified.is_empty() {
        let _ = write!(text, "\n{}", stages(&summary.verified));
    }
    text.push('\n');
    text += &sources(&summary.sources);
    if !summary.skipped.is_empty() {
        let _ = writeln!(
            text,
            "{} tensors of the checkpoints are not part of the model and were skipped",
            summary.skipped.len()
        );
        if verbose {
            text.extend(summary.skipped.iter().map(|name| format!("  {name}\n")));
        }
    }
    let _ = writeln!(text, "bundle: {} ({:.1} s)", shown(&summary.output), summary.seconds);
    text
}

/// The files that weights came from.
pub(super) fn sources(sources: &[SourceRecord]) -> String {
    let mut text = String::new();
    for source in sources {
        let (bytes, hash) = (size(source.bytes), short(&source.sha256));
        let _ = writeln!(text, "from {:<9} {}  {bytes}  sha256 {hash}", source.role, source.name);
    }
    text
}

/// The beginning of a hash.
pub(super) fn short(sha256: &str) -> String {
    sha256.chars().take(12).collect()
}

/// Stages against a record.
pub(super) fn stages(checks: &[StageCheck]) -> String {
    let mut rows = vec![["stage", "max error", "relative", "cosine", "allowed", ""].map(str::to_owned).to_vec()];
    for check in checks {
        rows.push(vec![
            check.stage.clone(),
            format!("{:.1e}", check.comparison.max_abs),
            format!("{:.1e}", check.comparison.max_rel),
            format!("{:.7}", check.comparison.cosine),
            match check.limit {
                StageLimit::Relative(most) => format!("relative ≤ {most:.0e}"),
                StageLimit::Cosine(least) => format!("cosine ≥ {least}"),
            },
            if check.passed { "ok" } else { "FAILED" }.into(),
        ]);
    }
    table(&rows)
}

/// A prediction as a person reads it.
pub(super) fn prediction(p: &Prediction, tokens: Option<usize>) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "scan        {}", shown(&p.scan));
    text += &match (&p.report, tokens) {
        (Some(report), Some(n)) => format!("report      {} ({n} tokens)\n", shown(report)),
        _ => "report      none: answered by the image-only classifier\n".to_owned(),
    };
    let _ = writeln!(text, "label       {}\n", p.label);
    let width = p.probabilities.iter().map(|(l, _)| l.chars().count()).max().unwrap_or(0);
    for (label, probability) in &p.probabilities {
        let bar = "█".repeat((probability * BAR).round() as usize);
        let _ = writeln!(text, "  {label:<width$}  {probability:.3}  {bar}");
    }
    text.push('\n');
    if let Some(similarity) = p.similarity {
        let _ = writeln!(text, "similarity  {similarity:+.3} (cosine of image and report)");
    }
    if let Some(temperature) = p.temperature {
        let _ = writeln!(text, "temperature {temperature:.3}: probabilities are softmax(logits / {temperature:.3})");
    }
    let stages: Vec<String> = p.timing_ms.iter().map(|(stage, ms)| format!("{stage} {ms:.0}")).collect();
    let _ =
        writeln!(text, "time        {:.0} ms ({})", p.run.wall_ms.unwrap_or(p.timing_ms.total()), stages.join(", "));
    let short: String = p.bundle.sha256.chars().take(12).collect();
    let device = p.run.chosen.as_ref().map_or(p.device.clone(), ToString::to_string);
    let _ = writeln!(text, "ran on      {device}, {}, bundle {short}", p.bundle.precision);
    text += &run(p);
    for warning in &p.warnings {
        let _ = writeln!(text, "warning     {} [{}]", warning.message, warning.code);
    }
    let _ = writeln!(text, "\n{}", super::RESEARCH_USE);
    text
}

/// How a run went: modes, groups, the cache and memory.
fn run(p: &Prediction) -> String {
    let mut stages = String::new();
    let modes: std::collections::BTreeSet<String> = p.run.stages.iter().map(|s| s.mode.to_string()).collect();
    let mixed = modes.len() > 1;
    for stage in &p.run.stages {
        if mixed {
            let _ = write!(stages, ", {} {}", stage.part, stage.mode);
        }
        if stage.groups > 1 {
            let _ = write!(stages, ", {} in {} groups of blocks", stage.part, stage.groups);
        }
    }
    if !mixed {
        stages.insert_str(0, &modes.into_iter().collect::<String>());
    }
    let mut text = format!("mode        {}", stages.trim_start_matches(", "));
    if !p.run.from_cache.is_empty() {
        let _ = write!(text, "; from the cache: {}", p.run.from_cache.join(", "));
    }
    let prepacked: Vec<&str> = p.run.stages.iter().filter(|s| s.prepacked).map(|s| s.part.as_str()).collect();
    if !prepacked.is_empty() {
        let _ = write!(text, "; weights laid out before: {}", prepacked.join(", "));
    }
    let memory = &p.run.memory_bytes;
    let peak = memory.peak.map_or("not known".to_owned(), size);
    let _ = write!(text, "\nmemory      {peak} at most (planned {}", size(memory.planned));
    if let Some(limit) = memory.limit {
        let _ = write!(text, ", allowed {}", size(limit));
    }
    text.push_str(")\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            ["0", "999", "1,000", "6,738,415,616"],
            [0, 999, 1000, 6_738_415_616].map(thousands).each_ref().map(String::as_str)
        );
        assert_eq!(
            ["0 B", "999 B", "1.0 kB", "350.5 MB", "13.48 GB"],
            [0, 999, 1000, 350_500_000, 13_480_000_000].map(size).each_ref().map(String::as_str)
        );
    }
}
