//! Predictions and exports as text for people.

use std::fmt::Write;

use super::layers;
use super::text::{
    FAILED, OK, count, duration, error, escaped, precision, provider, quoted, short, shown, size, table, thousands,
};
use crate::bundle::{INTENDED_USE, Parity, SourceRecord, Target};
use crate::export::{PartSummary, Raised, StageCheck, StageLimit, Summary};
use crate::infer::Prediction;

/// Width of the bar of probability 1, in characters.
const BAR: f64 = 40.0;
/// Length of a bundle's hash in the line below an answer.
const BUNDLE_ID: usize = 8;

/// One row per part: its size, number format and error.
pub(super) fn parts(parts: &[PartSummary]) -> String {
    let mut rows =
        vec![["part", "parameters", "format", "size", "max error", "cosine", "time"].map(str::to_owned).to_vec()];
    for part in parts {
        let (max_error, cosine) = parity(&part.record.parity);
        rows.push(vec![
            part.part.to_string(),
            thousands(part.record.parameters),
            part.record.precision.to_string(),
            size(part.record.bytes),
            max_error,
            cosine,
            duration(part.seconds),
        ]);
    }
    table(&rows)
}

/// The cells `max error` and `cosine`.
pub(super) fn parity(parity: &Parity) -> (String, String) {
    match parity {
        Parity::Checked { worst, .. } => (error(worst.max_abs), format!("{:.7}", worst.cosine)),
        Parity::NotChecked(_) => ("not checked".into(), "-".into()),
    }
}

/// Which parts were not compared, and why.
pub(super) fn unchecked(parts: &[PartSummary]) -> String {
    let mut text = String::new();
    for part in parts {
        if let Parity::NotChecked(why) = &part.record.parity {
            let _ = writeln!(text, "not checked: {} ({})", part.part, escaped(why));
        }
    }
    text
}

/// The result of an export.
pub(super) fn export(summary: &Summary, verbose: bool) -> String {
    let mut text = summary.raised.as_ref().map_or(String::new(), raised);
    text += &parts(&summary.parts);
    let against = match &summary.quantization {
        Some(_) => "against fp32, on held-out inputs where there are enough",
        None => "against the plain fp32 graphs, on the calibration inputs",
    };
    let _ = writeln!(text, "max error, cosine: {against}");
    text += &unchecked(&summary.parts);
    if summary.quantization.is_none() && summary.calibration.scans + summary.calibration.reports > 0 {
        let used = summary.calibration;
        let _ = writeln!(text, "calibration: {}, {}", count(used.scans, "scan"), count(used.reports, "report"));
    }
    if let Some(quantization) = &summary.quantization {
        let _ = write!(text, "\n{}", layers::quantization(quantization, &summary.slowdowns, verbose));
    }
    if !summary.verified.is_empty() {
        let _ = write!(text, "\n{}", stages(&summary.verified));
    }
    text.push('\n');
    text += &sources(&summary.sources);
    if !summary.skipped.is_empty() {
        let _ = writeln!(text, "{} checkpoint tensors are not part of the model: skipped", summary.skipped.len());
        if verbose {
            text.extend(summary.skipped.iter().map(|name| format!("  {}\n", escaped(name))));
        }
    }
    let target = if summary.target == Target::Cpu { String::new() } else { format!(", made for {}", summary.target) };
    let _ = writeln!(text, "bundle: {}{target} ({})", shown(&summary.output), duration(summary.seconds));
    let _ = writeln!(text, "\nnext: ba-infer scan.nii.gz --bundle {}", quoted(&summary.output));
    text
}

/// How many layers have a more precise scheme than was tried first, why, and what that costs.
fn raised(raised: &Raised) -> String {
    let mut why = Vec::new();
    if raised.by_layer_limit > 0 {
        why.push(format!("{} missed the error allowed of a layer (--max-error)", raised.by_layer_limit));
    }
    if raised.by_part_limit > 0 {
        why.push(format!("{} are in blocks whose part, or a probability, missed its limit", raised.by_part_limit));
    }
    let time = raised.slowdown.map_or("time not measured".to_owned(), |t| format!("{t:.1}× the time of these layers"));
    format!(
        "raised: {} of {} layers to a more precise scheme than was tried first: {}\ncost: {} more, {} in all; {time}\n\n",
        raised.layers,
        raised.of,
        why.join(", "),
        size(raised.more_bytes),
        size(raised.bytes)
    )
}

/// The files that weights came from.
pub(super) fn sources(sources: &[SourceRecord]) -> String {
    let mut text = String::new();
    for source in sources {
        let (bytes, hash) = (size(source.bytes), escaped(&short(&source.sha256)));
        let (role, name) = (escaped(&source.role), escaped(&source.name));
        let _ = writeln!(text, "from {role:<9} {name}  {bytes}  sha256 {hash}");
    }
    text
}

/// The comparison of stages with a record.
pub(super) fn stages(checks: &[StageCheck]) -> String {
    let mut rows = vec![["stage", "max error", "relative", "cosine", "allowed", ""].map(str::to_owned).to_vec()];
    for check in checks {
        rows.push(vec![
            check.stage.clone(),
            error(check.comparison.max_abs),
            error(check.comparison.max_rel),
            format!("{:.7}", check.comparison.cosine),
            match check.limit {
                StageLimit::Relative(most) => format!("relative ≤ {most:.0e}"),
                StageLimit::Cosine(least) => format!("cosine ≥ {least}"),
            },
            if check.passed { OK } else { FAILED }.into(),
        ]);
    }
    table(&rows)
}

/// A prediction: the label and its probabilities, then one line on how it was computed, or with `verbose` several.
pub(super) fn prediction(p: &Prediction, tokens: Option<usize>, verbose: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "scan        {}", shown(&p.scan));
    let _ = writeln!(text, "label       {}\n", escaped(&p.label));
    let labels: Vec<String> = p.probabilities.iter().map(|(label, _)| escaped(label)).collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    for (label, (_, probability)) in labels.iter().zip(&p.probabilities) {
        let bar = "█".repeat((probability * BAR).round() as usize);
        let _ = writeln!(text, "{}", format!("  {label:<width$}  {probability:.3}  {bar}").trim_end());
    }
    text.push('\n');
    text += &match (&p.report, tokens) {
        (Some(report), Some(n)) => format!("report      {} ({n} tokens)\n", shown(report)),
        _ => "report      none: the image-only classifier answered\n".to_owned(),
    };
    if let Some(similarity) = p.similarity {
        let _ = writeln!(text, "similarity  {similarity:+.3} (cosine of image and report)");
    }
    if let Some(temperature) = p.temperature {
        let _ = writeln!(text, "temperature {temperature:.3}: probabilities are softmax(logits / {temperature:.3})");
    }
    for warning in &p.warnings {
        let _ = writeln!(text, "warning     {} [{}]", escaped(&warning.message), warning.code);
    }
    text += &if verbose { details(p) } else { summary(p) };
    let _ = writeln!(text, "\n{INTENDED_USE}");
    text
}

/// `5.1 s on CPU, int8 (heads fp32), bundle 2ae14963`.
fn summary(p: &Prediction) -> String {
    let selected = p.run.chosen.as_ref();
    let gpu = selected.and_then(|s| s.gpu.as_ref()).map_or(String::new(), |gpu| format!(" ({})", gpu.name));
    let id: String = p.bundle.sha256.chars().take(BUNDLE_ID).collect();
    let (time, device) = (duration(wall_seconds(p)), provider(&p.device));
    format!("{}\n", escaped(&format!("{time} on {device}{gpu}, {}, bundle {id}", precision(&p.bundle.precision))))
}

fn wall_seconds(p: &Prediction) -> f64 {
    p.run.wall_ms.unwrap_or(p.timing_ms.total()) / 1e3
}

/// How a prediction was computed: time per stage, device, modes, cache and memory.
fn details(p: &Prediction) -> String {
    let mut text = String::new();
    let stages: Vec<String> = p.timing_ms.iter().map(|(stage, ms)| format!("{stage} {}", duration(ms / 1e3))).collect();
    let _ = writeln!(text, "time        {} ({})", duration(wall_seconds(p)), stages.join(", "));
    let device = p.run.chosen.as_ref().map_or(p.device.clone(), ToString::to_string);
    let _ = writeln!(text, "device      {}", escaped(&device));
    let _ = writeln!(text, "bundle      {}, {}", short(&p.bundle.sha256), precision(&p.bundle.precision));
    let _ = write!(text, "mode        {}", modes(p));
    if !p.run.from_cache.is_empty() {
        let _ = write!(text, "; from the cache: {}", p.run.from_cache.join(", "));
    }
    let prepacked: Vec<&str> = p.run.stages.iter().filter(|s| s.prepacked).map(|s| s.part.as_str()).collect();
    if !prepacked.is_empty() {
        let _ = write!(text, "; prepacked weights: {}", prepacked.join(", "));
    }
    let memory = &p.run.memory_bytes;
    let peak = memory.peak.map_or("unknown".to_owned(), size);
    let _ = write!(text, "\nmemory      peak {peak} (planned {}", size(memory.planned));
    if let Some(limit) = memory.limit {
        let _ = write!(text, ", limit {}", size(limit));
    }
    text.push_str(")\n");
    text
}

/// `resident`, or `vision one-shot, text resident`; with the number of groups where a part ran in several.
fn modes(p: &Prediction) -> String {
    let modes: std::collections::BTreeSet<String> = p.run.stages.iter().map(|s| s.mode.to_string()).collect();
    let mut all: Vec<String> = Vec::new();
    if modes.len() == 1 {
        all.extend(modes.iter().cloned());
    }
    for stage in &p.run.stages {
        if modes.len() > 1 {
            all.push(format!("{} {}", stage.part, stage.mode));
        }
        if stage.groups > 1 {
            all.push(format!("{} in {} groups of blocks", stage.part, stage.groups));
        }
    }
    all.join(", ")
}
