//! The layers of a reduced model as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::render::{size, table};
use crate::bundle::{LayerRecord, Quantization};

/// Most layers that are listed unasked.
const LISTED: usize = 48;
/// Layers with the largest errors that are listed of more.
const WORST: usize = 10;

/// What was reduced, and how close it comes.
pub(super) fn quantization(q: &Quantization, slowdowns: &BTreeMap<String, f64>, verbose: bool) -> String {
    let mut text = String::new();
    let c = &q.calibration;
    let _ = writeln!(
        text,
        "calibrated on {} scans and {} reports, judged on {} and {}",
        c.scans, c.reports, c.held_out_scans, c.held_out_reports
    );
    let measured = q.layers.iter().any(|l| l.error.is_some());
    if measured {
        let _ = writeln!(text, "error: relative, of a layer's result against fp32; allowed {}", q.max_error);
    } else {
        let _ = writeln!(text, "no layer was compared with fp32");
    }
    if let Some(p) = q.probabilities {
        let _ = writeln!(text, "largest difference of a probability from fp32: {p:.4}");
    }
    if q.flushed > 0 {
        let _ = writeln!(text, "{} weights other than 0 became 0 in half precision", q.flushed);
    }
    let mut counts: Vec<(String, usize)> = Vec::new();
    for layer in &q.layers {
        let name = layer.scheme.to_string();
        match counts.iter_mut().find(|(n, _)| *n == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let counts: Vec<String> = counts.into_iter().map(|(name, n)| format!("{n} {name}")).collect();
    let _ = writeln!(text, "layers: {}\n", counts.join(", "));
    let shown = chosen(&q.layers, verbose);
    text += &layers(&shown, slowdowns);
    if shown.len() < q.layers.len() {
        let _ = writeln!(
            text,
            "{} of {} layers: those that were treated and those of the largest errors; -v lists all",
            shown.len(),
            q.layers.len()
        );
    }
    if measured {
        let _ = writeln!(text, "picture: errors.svg in the bundle");
    }
    text
}

/// The layers worth a row.
fn chosen(all: &[LayerRecord], verbose: bool) -> Vec<&LayerRecord> {
    if verbose || all.len() <= LISTED {
        return all.iter().collect();
    }
    let mut errors: Vec<f64> = all.iter().filter_map(|l| l.error).collect();
    errors.sort_by(|a, b| b.total_cmp(a));
    let least = errors.get(WORST - 1).copied().unwrap_or(f64::INFINITY);
    all.iter().filter(|l| l.first.is_some() || l.error.is_some_and(|e| e >= least)).collect()
}

fn layers(shown: &[&LayerRecord], slowdowns: &BTreeMap<String, f64>) -> String {
    let head = ["layer", "scheme", "size", "error", "cosine", "before", "was", "time"];
    let treated = shown.iter().any(|l| l.first.is_some());
    let columns = if treated { head.len() } else { 5 };
    let mut rows = vec![head[..columns].iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()];
    for layer in shown {
        let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
        let scheme = if layer.smoothed { format!("{} smoothed", layer.scheme) } else { layer.scheme.to_string() };
        let cosine = layer.cosine.map_or("-".to_owned(), |c| format!("{c:.6}"));
        let mut row =
            vec![format!("{}/{}", layer.part, layer.layer), scheme, size(layer.bytes), number(layer.error), cosine];
        if let Some(first) = &layer.first {
            let before = first.error.map_or_else(|| first.scheme.to_string(), |e| format!("{} {e:.4}", first.scheme));
            let time = slowdowns.get(&layer.layer).map_or(String::new(), |t| format!("{t:.1}x"));
            row.extend([before, size(first.bytes), time]);
        }
        rows.push(row);
    }
    table(&rows)
}
