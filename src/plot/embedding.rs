//! A scatter plot of an embedding.

use plotters::prelude::*;

use super::chart::{self, Canvas, DrawResult, colour, legend, padded_range};

/// A scatter plot of `points` in the plane (axes without units, as from t-SNE), each in the colour of its class:
/// `classes` holds an index into `labels` for each point.
pub fn embedding(points: &[[f64; 2]], classes: &[usize], labels: &[String], title: &str) -> String {
    chart::svg((720, 640), |area| scatter(&area, points, classes, labels, title))
}

fn scatter(area: &Canvas<'_>, points: &[[f64; 2]], classes: &[usize], labels: &[String], title: &str) -> DrawResult {
    let finite = || points.iter().zip(classes).filter(|(point, _)| point.iter().all(|v| v.is_finite()));
    // One scale for both axes: distances have a meaning, directions do not.
    let [x, y] = [0, 1].map(|axis| padded_range(finite().map(|(point, _)| point[axis]), 0.06));
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
