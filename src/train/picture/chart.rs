//! What all pictures have in common.

use std::ops::Range;

use plotters::chart::SeriesLabelPosition;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Colours that the colour-blind can tell apart (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(90, 90, 90),
];

/// Text and axes.
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
/// Lines behind the data.
const FAINT: RGBColor = RGBColor(225, 225, 225);
/// Sizes of text, in pixels.
pub(super) const TITLE: u32 = 20;
pub(super) const TEXT: u32 = 15;

/// A drawing on its way into a string.
pub(super) type Picture<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// A chart with two plain axes.
pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
/// Drawing into a string fails only when a coordinate cannot be shown.
pub(super) type Drawn = Result<(), Box<dyn std::error::Error>>;

/// The colour of a class.
pub(super) fn colour(class: usize) -> RGBColor {
    COLOURS[class % COLOURS.len()]
}

/// The text of a picture of that size in pixels.
pub(super) fn svg(size: (u32, u32), draw: impl FnOnce(Picture<'_>) -> Drawn) -> String {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    let drawn = area.fill(&WHITE).map_err(Into::into).and_then(|()| draw(area));
    drawn.expect("finite numbers are drawn into memory");
    // XML has no form for control characters, not even escaped.
    text.retain(|c| c == '\n' || !c.is_control());
    text
}

/// A chart with a title and room for the axes' texts.
pub(super) fn builder<'a, 'b>(area: &'a Picture<'b>, title: &str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(12).margin_right(24).x_label_area_size(48).y_label_area_size(64);
    builder.caption(title, ("sans-serif", TITLE).into_font().color(&INK));
    builder
}

/// Axes with names and a faint grid.
pub(super) fn mesh(chart: &mut Chart<'_, '_>, x: &str, y: &str) -> Drawn {
    mesh_with(chart, x, y, 11, &|v| short(*v))
}

/// A number of an axis, without digits that say nothing.
fn short(value: f64) -> String {
    let rounded = (value * 1e9).round() / 1e9;
    match rounded.abs() {
        0.0 => "0".into(),
        1e6.. => format!("{value:.1e}"),
        _ => format!("{rounded}"),
    }
}

/// The same with about so many numbers on the horizontal axis, written by `format`.
pub(super) fn mesh_with(
    chart: &mut Chart<'_, '_>,
    x: &str,
    y: &str,
    labels: usize,
    format: &dyn Fn(&f64) -> String,
) -> Drawn {
    let style = || ("sans-serif", TEXT).into_font().color(&INK);
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
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

/// The names of what was drawn.
pub(super) fn legend<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>, position: SeriesLabelPosition) -> Drawn {
    chart
        .configure_series_labels()
        .position(position)
        .label_font(("sans-serif", TEXT).into_font().color(&INK))
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .draw()?;
    Ok(())
}

/// The range of the finite `values`, wider by a share on each side and never empty.
pub(super) fn around(values: impl Iterator<Item = f64>, share: f64) -> Range<f64> {
    let finite = values.filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    // A width that the axis can be divided by, also far from 0.
    let width = (high - low).max(low.abs().max(high.abs()) * 1e-6).max(1e-9);
    low - width * share - (width - (high - low)) / 2.0..high + width * share + (width - (high - low)) / 2.0
}
