//! Pictures of training and evaluation, as SVG files that need nothing else.
//!
//! Each function gives the text of one file: dark ink on white, so that it reads the same on light and dark pages, in
//! colours that the colour-blind can tell apart. What comes in as text (labels, titles) is escaped. Numbers that are
//! not finite are left out.

mod chart;
mod evaluation;
mod history;

use plotters::prelude::*;

pub use evaluation::{confusion, reliability};
pub use history::{Epoch, history};

use chart::{Drawn, Picture, around, colour, legend};

/// A scatter of `points` (on two axes without units, as t-SNE gives) in the colour of their class: `classes` holds an
/// index into `labels` for each.
pub fn embedding(points: &[[f64; 2]], classes: &[usize], labels: &[String], title: &str) -> String {
    chart::svg((720, 640), |area| scatter(&area, points, classes, labels, title))
}

fn scatter(area: &Picture<'_>, points: &[[f64; 2]], classes: &[usize], labels: &[String], title: &str) -> Drawn {
    let finite = || points.iter().zip(classes).filter(|(point, _)| point.iter().all(|v| v.is_finite()));
    // One scale for both axes: distances mean something, directions do not.
    let [x, y] = [0, 1].map(|axis| around(finite().map(|(point, _)| point[axis]), 0.06));
    let half = ((x.end - x.start).max(y.end - y.start)) / 2.0;
    let square = |range: &std::ops::Range<f64>| {
        let middle = (range.start + range.end) / 2.0;
        middle - half..middle + half
    };
    let mut chart = chart::builder(area, title).build_cartesian_2d(square(&x), square(&y))?;
    chart::mesh(&mut chart, "t-SNE 1 (no unit)", "t-SNE 2 (no unit)")?;
    for (class, label) in labels.iter().enumerate() {
        let of = finite().filter(|(_, c)| **c == class);
        let dots = of.map(|(point, _)| Circle::new((point[0], point[1]), 4, colour(class).mix(0.8).filled()));
        let name = format!("{label} ({})", classes.iter().filter(|c| **c == class).count());
        let key = move |(x, y)| Circle::new((x + 10, y), 5, colour(class).filled());
        chart.draw_series(dots)?.label(name).legend(key);
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    Ok(())
}
