//! Plots of an evaluation.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{self, Canvas, DrawResult, INK, TEXT, colour, legend};
use crate::metrics::{Bin, Confusion, Reliability};

/// A reliability diagram (Guo et al. 2017): accuracy against confidence, and below it the number of predictions in each
/// bin. `before` is the calibration without a temperature, if there is one.
pub fn reliability(now: &Reliability, before: Option<&Reliability>, title: &str) -> String {
    chart::svg((720, 720), |area| {
        let (upper, lower) = area.split_vertically(510);
        diagram(&upper, now, before, title)?;
        counts(&lower, &now.bins)
    })
}

fn filled(reliability: &Reliability) -> impl Iterator<Item = &Bin> {
    reliability.bins.iter().filter(|b| b.answers > 0)
}

fn diagram(area: &Canvas<'_>, now: &Reliability, before: Option<&Reliability>, title: &str) -> DrawResult {
    let mut chart = chart::builder(area, title).build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    chart::mesh(&mut chart, "confidence (probability of the answer)", "share of right answers")?;
    let bars = filled(now).map(|b| Rectangle::new([(b.low, 0.0), (b.high, b.accuracy)], colour(4).mix(0.5).filled()));
    let key = |(x, y)| Rectangle::new([(x, y - 5), (x + 20, y + 5)], colour(4).mix(0.5).filled());
    chart.draw_series(bars)?.label("right, of the bin's answers").legend(key);
    let ideal = LineSeries::new([(0.0, 0.0), (1.0, 1.0)], INK.stroke_width(1));
    let key = |(x, y)| PathElement::new([(x, y), (x + 20, y)], INK.stroke_width(1));
    chart.draw_series(ideal)?.label("calibrated").legend(key);
    let sets = [(before, 1, "without temperature"), (Some(now), 0, "as answered")];
    for (reliability, class, name) in sets.into_iter().filter_map(|(r, c, n)| Some((r?, c, n))) {
        let line =
            LineSeries::new(filled(reliability).map(|b| (b.confidence, b.accuracy)), colour(class).stroke_width(2));
        let key = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour(class).stroke_width(2));
        chart.draw_series(line.point_size(3))?.label(format!("{name}: ECE {:.3}", reliability.ece)).legend(key);
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

fn counts(area: &Canvas<'_>, bins: &[Bin]) -> DrawResult {
    let largest = bins.iter().map(|b| b.answers).max().unwrap_or(0).max(1) as f64;
    let mut chart = chart::builder(area, "").build_cartesian_2d(0.0..1.0, 0.0..largest * 1.05)?;
    chart::mesh_with(&mut chart, "confidence (probability of the answer)", "answers", 11, &|v| format!("{v:.1}"))?;
    let bars =
        bins.iter().map(|b| Rectangle::new([(b.low, 0.0), (b.high, b.answers as f64)], colour(0).mix(0.6).filled()));
    chart.draw_series(bars)?;
    Ok(())
}

/// A confusion matrix: rows are true classes, columns predictions; each cell has its count and its fraction of the row.
///
/// ```
/// use brain_adapter::metrics::{Confusion, LabelledPrediction};
/// use brain_adapter::plot;
///
/// let prediction = LabelledPrediction::new(0, vec![0.9, 0.1]);
/// let labels = ["CN", "AD"].map(String::from);
/// assert!(plot::confusion(&Confusion::of(&[&prediction], 2), &labels, "Confusion").contains("<svg"));
/// ```
pub fn confusion(matrix: &Confusion, labels: &[String], title: &str) -> String {
    let side = 160 + 110 * u32::try_from(labels.len().clamp(2, 12)).unwrap_or(12);
    chart::svg((side, side), |area| cells(&area, matrix, labels, title))
}

fn cells(area: &Canvas<'_>, matrix: &Confusion, labels: &[String], title: &str) -> DrawResult {
    let n = labels.len().max(2);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(56)
        .y_label_area_size(96)
        .caption(title, ("sans-serif", chart::TITLE).into_font().color(&INK))
        .build_cartesian_2d((0..n - 1).into_segmented(), (0..n - 1).into_segmented())?;
    let style = || ("sans-serif", TEXT).into_font().color(&INK);
    // Rows from the top, as in a table; the axis counts from the bottom.
    let name = |class: usize| labels.get(class).cloned().unwrap_or_default();
    let of = |v: &SegmentValue<usize>, down: bool| match v {
        SegmentValue::CenterOf(i) | SegmentValue::Exact(i) => name(if down { n - 1 - i } else { *i }),
        SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(INK)
        .label_style(style())
        .axis_desc_style(style())
        .x_desc("answer")
        .y_desc("true class")
        .x_label_formatter(&|v| of(v, false))
        .y_label_formatter(&|v| of(v, true))
        .x_labels(n)
        .y_labels(n)
        .draw()?;
    let centred = |size: u32, ink: RGBColor| {
        ("sans-serif", size).into_font().color(&ink).pos(Pos::new(HPos::Center, VPos::Center))
    };
    for (truth, row) in matrix.counts.iter().enumerate().take(n) {
        let total = row.iter().sum::<u64>().max(1) as f64;
        for (predicted, count) in row.iter().enumerate().take(n) {
            let share = *count as f64 / total;
            let ink = if share > 0.75 { WHITE } else { INK };
            let y = n - 1 - truth;
            let end = |i: usize| if i + 1 < n { SegmentValue::Exact(i + 1) } else { SegmentValue::Last };
            let corners = [(SegmentValue::Exact(predicted), SegmentValue::Exact(y)), (end(predicted), end(y))];
            chart.draw_series([Rectangle::new(corners, colour(0).mix(share).filled())])?;
            let middle = (SegmentValue::CenterOf(predicted), SegmentValue::CenterOf(y));
            let text = EmptyElement::at(middle)
                + Text::new(count.to_string(), (0, -9), centred(22, ink))
                + Text::new(format!("{:.0} %", 100.0 * share), (0, 14), centred(TEXT, ink));
            chart.draw_series([text])?;
        }
    }
    Ok(())
}
