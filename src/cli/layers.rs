//! The layers of a quantized model as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::text::{count, error, probability_change, size, table};
use crate::bundle::{LayerRecord, Quantization};

/// Number of layers that are listed without `-v`: those of the largest errors.
const WORST: usize = 5;

/// What was quantized, and its error.
pub(super) fn quantization(q: &Quantization, slowdowns: &BTreeMap<String, f64>, verbose: bool) -> String {
    let mut text = String::new();
    let c = &q.calibration;
    let _ = writeln!(
        text,
        "calibration: {}, {}; held out: {}, {}",
        count(c.scans, "scan"),
        count(c.reports, "report"),
        count(c.held_out_scans, "scan"),
        count(c.held_out_reports, "report")
    );
    if let Some(p) = q.probabilities {
        let _ = writeln!(text, "max probability change from quantization: {}", probability_change(p));
    }
    if q.flushed > 0 {
        let weights = count(usize::try_from(q.flushed).unwrap_or(usize::MAX), "non-zero weight");
        let _ = writeln!(text, "{weights} underflowed to 0 in fp16");
    }
    let _ = writeln!(text, "layers: {}", schemes(&q.layers));
    let measured = q.layers.iter().any(|layer| layer.error.is_some());
    let shown = if verbose { q.layers.iter().collect() } else { worst(&q.layers) };
    if measured {
        let which = if verbose { "all layers".to_owned() } else { format!("the {} of largest error", shown.len()) };
        let _ = writeln!(
            text,
            "\n{which}; error: relative, of a layer's result against fp32, allowed {}",
            error(q.max_error)
        );
    } else {
        let _ = writeln!(text, "no layer was compared with fp32");
    }
    if !shown.is_empty() {
        text += &layers(&shown, slowdowns);
    }
    if measured {
        let more = if verbose { "" } else { "; -v lists all layers" };
        let _ = writeln!(text, "picture: errors.svg in the bundle{more}");
    }
    text
}

/// `41 int8, 2 fp32`: the number of layers of each scheme.
fn schemes(layers: &[LayerRecord]) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for layer in layers {
        let name = layer.scheme.to_string();
        match counts.iter_mut().find(|(n, _)| *n == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    counts.into_iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ")
}

/// The layers of the largest errors, the largest first.
fn worst(all: &[LayerRecord]) -> Vec<&LayerRecord> {
    let mut measured: Vec<(f64, &LayerRecord)> = all.iter().filter_map(|l| Some((l.error?, l))).collect();
    measured.sort_by(|a, b| b.0.total_cmp(&a.0));
    measured.into_iter().take(WORST).map(|(_, layer)| layer).collect()
}

fn layers(shown: &[&LayerRecord], slowdowns: &BTreeMap<String, f64>) -> String {
    let head = ["layer", "scheme", "size", "error", "cosine", "first scheme", "its size", "time"];
    let raised = shown.iter().any(|l| l.first.is_some());
    let columns = if raised { head.len() } else { 5 };
    let mut rows = vec![head[..columns].iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()];
    for layer in shown {
        let scheme = if layer.smoothed { format!("{} smoothed", layer.scheme) } else { layer.scheme.to_string() };
        let number = layer.error.map_or("-".to_owned(), error);
        let cosine = layer.cosine.map_or("-".to_owned(), |c| format!("{c:.6}"));
        let mut row = vec![format!("{}/{}", layer.part, layer.layer), scheme, size(layer.bytes), number, cosine];
        if let Some(first) = &layer.first {
            let scheme = first.scheme.to_string();
            let before = first.error.map_or(scheme.clone(), |e| format!("{scheme} {}", error(e)));
            let time = slowdowns.get(&layer.layer).map_or(String::new(), |t| format!("{t:.1}×"));
            row.extend([before, size(first.bytes), time]);
        }
        rows.push(row);
    }
    table(&rows)
}
