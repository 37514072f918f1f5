//! Learning curves.

use std::ops::Range;

use plotters::prelude::*;

use super::chart::{self, Canvas, Chart, DrawResult, colour, legend, padded_range};

/// The metrics of an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    /// Number of the epoch, from 1.
    pub epoch: u32,
    /// Mean training loss, in nats.
    pub train_loss: f64,
    /// Mean loss on the validation split in nats, if there is one.
    pub validation_loss: Option<f64>,
    /// Macro-F1 on the validation split, 0 to 1, if there is one.
    pub macro_f1: Option<f64>,
}

/// Loss (training and validation) and, where it was measured, macro-F1 over the epochs. The epoch with the best
/// macro-F1 is marked.
pub fn history(epochs: &[Epoch], title: &str) -> String {
    chart::svg((720, 640), |area| {
        if epochs.iter().any(|e| e.macro_f1.is_some_and(f64::is_finite)) {
            let (upper, lower) = area.split_vertically(340);
            losses(&upper, epochs, title)?;
            f1(&lower, epochs)
        } else {
            losses(&area, epochs, title)
        }
    })
}

/// The range of the epoch axis, with half an epoch on each side.
fn range(epochs: &[Epoch]) -> Range<f64> {
    let numbers = || epochs.iter().map(|e| f64::from(e.epoch));
    let (low, high) = numbers().fold((f64::INFINITY, 0f64), |(l, h), v| (l.min(v), h.max(v)));
    if low > high { 0.0..1.0 } else { low - 0.5..high + 0.5 }
}

fn losses(area: &Canvas<'_>, epochs: &[Epoch], title: &str) -> DrawResult {
    let train = series(epochs, |e| Some(e.train_loss));
    let validation = series(epochs, |e| e.validation_loss);
    let y = padded_range(train.iter().chain(&validation).map(|(_, loss)| *loss), 0.08);
    let mut chart = chart::builder(area, title).build_cartesian_2d(range(epochs), y)?;
    mesh(&mut chart, epochs, "loss (nats)")?;
    line(&mut chart, &train, 0, "training")?;
    if !validation.is_empty() {
        line(&mut chart, &validation, 1, "validation")?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

fn f1(area: &Canvas<'_>, epochs: &[Epoch]) -> DrawResult {
    let points = series(epochs, |e| e.macro_f1);
    let mut chart = chart::builder(area, "").build_cartesian_2d(range(epochs), 0.0..1.0)?;
    mesh(&mut chart, epochs, "macro-F1")?;
    line(&mut chart, &points, 1, "validation")?;
    let better = |best: Option<(f64, f64)>, point: &(f64, f64)| match best {
        Some(best) if best.1 >= point.1 => Some(best),
        _ => Some(*point),
    };
    if let Some((epoch, f1)) = points.iter().fold(None, better) {
        let ring = Circle::new((epoch, f1), 7, colour(5).stroke_width(2));
        let key = |(x, y)| Circle::new((x + 10, y), 6, colour(5).stroke_width(2));
        chart.draw_series([ring])?.label(format!("best: {f1:.3} in epoch {epoch}")).legend(key);
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}

/// The finite values, each with its epoch.
fn series(epochs: &[Epoch], value: impl Fn(&Epoch) -> Option<f64>) -> Vec<(f64, f64)> {
    let finite = |e: &Epoch| value(e).filter(|v| v.is_finite()).map(|v| (f64::from(e.epoch), v));
    epochs.iter().filter_map(finite).collect()
}

fn mesh(chart: &mut Chart<'_, '_>, epochs: &[Epoch], y: &str) -> DrawResult {
    // No more labels than epochs: there are no half epochs.
    let labels = epochs.len().clamp(1, 12);
    chart::mesh_with(chart, "epoch", y, labels, &|v| {
        if (v - v.round()).abs() < 1e-9 { format!("{v:.0}") } else { String::new() }
    })
}

fn line(chart: &mut Chart<'_, '_>, points: &[(f64, f64)], class: usize, name: &str) -> DrawResult {
    let style = colour(class).stroke_width(2);
    let key = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style);
    chart.draw_series(LineSeries::new(points.iter().copied(), style))?.label(name).legend(key);
    // A dot for each epoch, since a single epoch has no line; unless there are too many to distinguish.
    if points.len() <= 60 {
        chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour(class).filled())))?;
    }
    Ok(())
}
