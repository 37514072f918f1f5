//! The relative error of each layer of a reduced bundle: a table of 225 rows at a glance.

use std::fmt::Write;

use super::{Colour, palette};
use crate::bundle::{LayerRecord, Quantization};
use crate::passes::quantize::Scheme;

const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 56.0;

/// The colour of the limit.
const LIMIT: Colour = palette::VERMILION;

/// The kinds of schemes with their colours, in the order of the legend.
const KINDS: [(&str, Colour); 6] = [
    ("int8", palette::BLUE),
    ("int8 blocks", palette::GREEN),
    ("int4 blocks", palette::PURPLE),
    ("fp16", palette::ORANGE),
    ("fp32", palette::BLACK),
    ("int8 static", palette::SKY),
];

/// Index of a scheme in [`KINDS`].
fn kind(scheme: Scheme) -> usize {
    match scheme {
        Scheme::Int8 { .. } => 0,
        Scheme::Blocks { bits: 8, .. } => 1,
        Scheme::Blocks { .. } => 2,
        Scheme::Fp16 | Scheme::Fp16Weight => 3,
        Scheme::Fp32 => 4,
        Scheme::Int8Static | Scheme::Int8Tensor => 5,
    }
}

/// An SVG of the layers' relative errors on a logarithmic axis, with the limit of `--max-error`; `None` when no layer's
/// error was measured. A ring shows the error before a layer was smoothed or given a more exact scheme.
pub fn layer_errors(record: &Quantization) -> Option<String> {
    let layers: Vec<&LayerRecord> = record.layers.iter().filter(|l| l.error.is_some()).collect();
    let errors = layers.iter().flat_map(|l| [l.error, l.first.as_ref().and_then(|f| f.error)]).flatten();
    let (low, high) = errors
        .filter(|e| *e > 0.0 && e.is_finite())
        .chain([record.max_error])
        .fold((f64::INFINITY, 0f64), |(l, h), e| (l.min(e), h.max(e)));
    if layers.is_empty() {
        return None;
    }
    let bottom = low.log10().floor().max(-6.0);
    let axis = Axis { low: bottom, high: high.log10().ceil().max(bottom + 1.0) };
    let step = (900.0 / layers.len() as f64).clamp(4.0, 24.0);
    let width = LEFT + step * layers.len() as f64 + RIGHT;
    let width = width.max(640.0);
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {HEIGHT:.0}" font-family="sans-serif" font-size="11">"#
    );
    let _ = writeln!(svg, r#"<rect width="100%" height="100%" fill="white"/>"#);
    let _ = writeln!(
        svg,
        r#"<text x="{LEFT}" y="20" font-size="14">Relative error of each layer's result against fp32, on held-out tokens</text>"#
    );
    legend(&mut svg, &layers);
    grid(&mut svg, &axis, width, record.max_error);
    let (mut part, mut below) = ("", 32.0);
    for (i, layer) in layers.iter().enumerate() {
        let x = LEFT + step * (i as f64 + 0.5);
        if layer.part != part {
            part = &layer.part;
            let line = x - step / 2.0;
            let (top, bottom) = (TOP, HEIGHT - BOTTOM);
            let _ = writeln!(svg, r##"<line x1="{line:.1}" y1="{top}" x2="{line:.1}" y2="{bottom}" stroke="#999"/>"##);
            // In turn higher and lower: the adapter's column is narrower than its name.
            below = if below == 16.0 { 32.0 } else { 16.0 };
            let _ = writeln!(svg, r#"<text x="{:.1}" y="{:.1}">{part}</text>"#, line + 3.0, HEIGHT - BOTTOM + below);
        }
        point(&mut svg, &axis, x, layer);
    }
    let _ = writeln!(svg, "</svg>");
    Some(svg)
}

/// The vertical axis, in powers of ten.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn y(&self, error: f64) -> f64 {
        let at = (error.max(f64::MIN_POSITIVE).log10().clamp(self.low, self.high) - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - at * (HEIGHT - BOTTOM - TOP)
    }
}

fn grid(svg: &mut String, axis: &Axis, width: f64, limit: f64) {
    for power in axis.low as i32..=axis.high as i32 {
        let y = axis.y(10f64.powi(power));
        let _ = writeln!(svg, r##"<line x1="{LEFT}" y1="{y:.1}" x2="{width:.0}" y2="{y:.1}" stroke="#ddd"/>"##);
        let _ = writeln!(svg, r#"<text x="{}" y="{:.1}" text-anchor="end">1e{power}</text>"#, LEFT - 6.0, y + 4.0);
    }
    let y = axis.y(limit);
    let _ = writeln!(
        svg,
        r##"<line x1="{LEFT}" y1="{y:.1}" x2="{width:.0}" y2="{y:.1}" stroke="{LIMIT}" stroke-dasharray="5 3"/>"##
    );
    let _ = writeln!(
        svg,
        r##"<text x="{:.0}" y="{:.1}" text-anchor="end" fill="{LIMIT}">limit {limit}</text>"##,
        width - 4.0,
        y - 4.0
    );
}

fn legend(svg: &mut String, layers: &[&LayerRecord]) {
    let mut x = LEFT;
    for (i, (name, fill)) in KINDS.iter().enumerate() {
        if !layers.iter().any(|l| kind(l.scheme) == i) {
            continue;
        }
        let _ = writeln!(svg, r#"<circle cx="{:.0}" cy="38" r="4" fill="{fill}"/>"#, x + 4.0);
        let _ = writeln!(svg, r#"<text x="{:.0}" y="42">{name}</text>"#, x + 12.0);
        x += 30.0 + 7.0 * name.len() as f64;
    }
    if layers.iter().any(|l| l.first.as_ref().is_some_and(|f| f.error.is_some())) {
        let _ = writeln!(svg, r##"<circle cx="{:.0}" cy="38" r="3.5" fill="none" stroke="#555"/>"##, x + 4.0);
        let _ = writeln!(svg, r#"<text x="{:.0}" y="42">before it was treated</text>"#, x + 12.0);
    }
}

/// One layer: a dot, and a ring at its error under the first scheme. Hovering names it.
fn point(svg: &mut String, axis: &Axis, x: f64, layer: &LayerRecord) {
    let error = layer.error.unwrap_or(0.0);
    let (y, fill) = (axis.y(error), KINDS[kind(layer.scheme)].1);
    if let Some(before) = layer.first.as_ref().and_then(|f| f.error) {
        let high = axis.y(before);
        let _ = writeln!(svg, r##"<line x1="{x:.1}" y1="{high:.1}" x2="{x:.1}" y2="{y:.1}" stroke="#bbb"/>"##);
        let _ = writeln!(svg, r##"<circle cx="{x:.1}" cy="{high:.1}" r="3" fill="none" stroke="#555"/>"##);
    }
    let smoothed = if layer.smoothed { ", smoothed" } else { "" };
    let title = format!("{} {}: {} ({}{smoothed})", layer.part, escaped(&layer.layer), short(error), layer.scheme);
    let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{fill}"><title>{title}</title></circle>"#);
}

fn short(error: f64) -> String {
    format!("{error:.1e}")
}

/// `text` escaped for XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
