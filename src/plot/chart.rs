//! Charts of plotters with the style of all plots.

use std::ops::Range;

use plotters::chart::SeriesLabelPosition;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::{Colour, palette};

/// The colours of classes.
const CLASSES: [Colour; 7] =
    [palette::BLUE, palette::ORANGE, palette::GREEN, palette::PURPLE, palette::SKY, palette::VERMILION, palette::GREY];

/// Text and axes.
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
/// Grid lines.
const GRID: RGBColor = RGBColor(225, 225, 225);
/// Size of a title, in pixels.
pub(super) const TITLE: u32 = 20;
/// Size of other text, in pixels.
pub(super) const TEXT: u32 = 15;

/// A drawing area whose SVG goes into a string.
pub(super) type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// A chart with two linear axes.
pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
/// Drawing into a string fails only for a coordinate that is not finite.
pub(super) type DrawResult = Result<(), Box<dyn std::error::Error>>;

/// The colour of a class.
pub(super) fn colour(class: usize) -> RGBColor {
    let Colour { red, green, blue } = CLASSES[class % CLASSES.len()];
    RGBColor(red, green, blue)
}

/// The SVG of a drawing of that size in pixels.
pub(super) fn svg(size: (u32, u32), draw: impl FnOnce(Canvas<'_>) -> DrawResult) -> String {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    let drawn = area.fill(&WHITE).map_err(Into::into).and_then(|()| draw(area));
    drawn.expect("finite numbers are drawn into memory");
    // XML cannot represent control characters, not even escaped.
    text.retain(|c| c == '\n' || !c.is_control());
    text
}

/// A chart with a title and space for the labels of its axes.
pub(super) fn builder<'a, 'b>(area: &'a Canvas<'b>, title: &str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(12).margin_right(24).x_label_area_size(48).y_label_area_size(64);
    builder.caption(title, ("sans-serif", TITLE).into_font().color(&INK));
    builder
}

/// Draws axes with names and a grid.
pub(super) fn mesh(chart: &mut Chart<'_, '_>, x: &str, y: &str) -> DrawResult {
    mesh_with(chart, x, y, 11, &|v| short(*v))
}

/// An axis label, without the digits of rounding errors.
fn short(value: f64) -> String {
    let rounded = (value * 1e9).round() / 1e9;
    match rounded.abs() {
        0.0 => "0".into(),
        1e6.. => format!("{value:.1e}"),
        _ => format!("{rounded}"),
    }
}

/// As [`mesh`], with about so many labels on the horizontal axis, written by `format`.
pub(super) fn mesh_with(
    chart: &mut Chart<'_, '_>,
    x: &str,
    y: &str,
    labels: usize,
    format: &dyn Fn(&f64) -> String,
) -> DrawResult {
    let style = || ("sans-serif", TEXT).into_font().color(&INK);
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .label_style(style())
        .axis_desc_style(style())
        .x_desc(x)
        .y_desc(y)
        .x_labels(labels)
        .x_label_formatter(&|v| format(v))
        .y_label_formatter(&|v| short(*v))
        .draw()?;
    Ok(())
}

/// Draws the names of the series.
pub(super) fn legend<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>, position: SeriesLabelPosition) -> DrawResult {
    chart
        .configure_series_labels()
        .position(position)
        .label_font(("sans-serif", TEXT).into_font().color(&INK))
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .draw()?;
    Ok(())
}

/// The range of the finite `values`, wider by a fraction `margin` on each side, and never empty.
pub(super) fn padded_range(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let finite = values.filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    // Wide enough for distinct labels, also far from 0.
    let width = (high - low).max(low.abs().max(high.abs()) * 1e-6).max(1e-9);
    low - width * margin - (width - (high - low)) / 2.0..high + width * margin + (width - (high - low)) / 2.0
}
