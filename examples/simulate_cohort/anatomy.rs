//! The positions of anatomical structures, and the smooth deformation that enlarges or shrinks them.
//!
//! Coordinates are millimetres of MNI space (right, anterior, superior). They were read off the ICBM 152 nonlinear
//! 2009a template, which is the demo's brain: voxels below 90 of 255 that are enclosed by brain form one component a
//! hemisphere, the lateral ventricle, with its mean at (±13, −14, 15) and reaching from (±2, −57, −2) to (±34, 29, 28).
//! The hippocampus is the grey body medial of the temporal horn; the centroid that the AAL atlas gives it, (±25…29,
//! −20, −10) (Tzourio-Mazoyer et al., NeuroImage 15 (2002) 273), lies inside the ellipsoid used here.

/// Right, anterior, superior in mm.
pub type Point = [f64; 3];

/// Centre of the template's brain: of the box around its non-zero voxels.
pub const CENTRE: Point = [0.0, -17.0, 5.0];

/// Ellipsoids of the lateral ventricle's parts, right side: centre, half axes. The third ventricle lies on the midline.
const VENTRICLES: [(Point, Point); 4] = [
    ([9.0, 13.0, 12.0], [9.0, 16.0, 12.0]),    // frontal horn
    ([12.0, -12.0, 23.0], [10.0, 17.0, 9.0]),  // body
    ([24.0, -40.0, 15.0], [11.0, 15.0, 13.0]), // atrium
    ([0.0, -18.0, 0.0], [5.0, 13.0, 11.0]),    // third ventricle
];
/// Ellipsoid of hippocampus, amygdala and entorhinal cortex, right side.
pub const TEMPORAL: (Point, Point) = ([25.0, -16.0, -17.0], [11.0, 19.0, 10.0]);
/// The temporal horn opens where the hippocampus shrinks.
const TEMPORAL_HORN: (Point, Point) = ([34.0, -16.0, -15.0], [6.0, 15.0, 8.0]);

/// One radial displacement: zero far away, a magnification of `1 / (1 - amount)` at the centre.
struct Bump {
    centre: Point,
    half_axes: Point,
    amount: f64,
}

/// Of the medial temporal lobe's middle, the part that is fluid at the strongest loss.
const FLUID: f64 = 0.5;

/// A smooth map from the simulated head to the template.
pub struct Deformation {
    bumps: Vec<Bump>,
    /// Part of the medial temporal lobe that is fluid, left and right, at its middle.
    fluid: [f64; 2],
}

/// How much a head's anatomy differs from the template's; zeros leave it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// Enlargement of the ventricles, up to 1; below 0 they are smaller than the template's.
    pub ventricles: f64,
    /// Loss of the medial temporal lobe, up to 1; below 0 it is larger than the template's.
    pub temporal: f64,
    /// Of each loss and enlargement, the part that the right side has more than the left.
    pub asymmetry: f64,
}

impl Deformation {
    /// The deformation that makes `change` in the template.
    pub fn new(change: Change) -> Self {
        let mut bumps = Vec::new();
        let mut both = |(centre, half_axes): (Point, Point), amount: f64| {
            let sides: &[f64] = if centre[0] == 0.0 { &[1.0] } else { &[1.0, -1.0] };
            for side in sides {
                let more = if sides.len() == 2 { side * change.asymmetry } else { 0.0 };
                let centre = [side * centre[0], centre[1], centre[2]];
                bumps.push(Bump { centre, half_axes, amount: amount * (1.0 + more) });
            }
        };
        // 0.46 and 0.7 at the strongest change keep the map one to one, see the test.
        VENTRICLES.into_iter().for_each(|ellipsoid| both(ellipsoid, 0.46 * change.ventricles));
        both(TEMPORAL, -0.7 * change.temporal);
        both(TEMPORAL_HORN, 0.3 * change.temporal);
        let fluid = [-1.0, 1.0].map(|side| FLUID * change.temporal.max(0.0) * (1.0 + side * change.asymmetry));
        Self { bumps, fluid }
    }

    /// The part of the tissue at `p` that fluid has replaced: the template, an average of many people, shows no
    /// fissures or temporal horns that could widen, so what widens there is mixed into the voxels.
    pub fn fluid(&self, p: Point) -> f64 {
        let (centre, half_axes) = TEMPORAL;
        let window = |side: f64| {
            let away = [side * p[0] - centre[0], p[1] - centre[1], p[2] - centre[2]];
            let squares: f64 = away.iter().zip(half_axes).map(|(away, half)| (away / half).powi(2)).sum();
            (-0.5 * squares).exp()
        };
        self.fluid[0] * window(-1.0) + self.fluid[1] * window(1.0)
    }

    /// The place in the template that appears at `p`: `p - Σ amount (p - centre) exp(-½ Σ ((p - centre) / half
    /// axis)²)`.
    pub fn source(&self, p: Point) -> Point {
        let mut source = p;
        for bump in &self.bumps {
            let away = [0, 1, 2].map(|a| p[a] - bump.centre[a]);
            let squares: f64 = [0, 1, 2].map(|a| (away[a] / bump.half_axes[a]).powi(2)).iter().sum();
            // Beyond five half axes a bump displaces nothing by a micrometre.
            if squares < 25.0 {
                let pull = bump.amount * (-0.5 * squares).exp();
                (0..3).for_each(|a| source[a] -= pull * away[a]);
            }
        }
        source
    }
}

/// Whether `p` lies in the box of the lateral ventricles, some mm wider than they are in the template: they grow. The
/// insula's fissures lie outside.
#[cfg(test)]
pub fn near_ventricles(p: Point) -> bool {
    p[0].abs() < 36.0 && (-62.0..36.0).contains(&p[1]) && (2.0..36.0).contains(&p[2])
}

/// Whether `p` lies in the ellipsoid of a medial temporal lobe.
#[cfg(test)]
pub fn in_temporal(p: Point) -> bool {
    let (centre, half_axes) = TEMPORAL;
    let q = [p[0].abs(), p[1], p[2]];
    (0..3).map(|a| ((q[a] - centre[a]) / half_axes[a]).powi(2)).sum::<f64>() < 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Determinant of the map's derivative at `p`, by central differences.
    fn jacobian(map: &Deformation, p: Point) -> f64 {
        let step = 1e-3;
        let column = |a: usize| {
            let at = |sign: f64| {
                let mut q = p;
                q[a] += sign * step;
                map.source(q)
            };
            let (high, low) = (at(1.0), at(-1.0));
            [0, 1, 2].map(|b| (high[b] - low[b]) / (2.0 * step))
        };
        let [x, y, z] = [column(0), column(1), column(2)];
        x[0] * (y[1] * z[2] - y[2] * z[1]) - x[1] * (y[0] * z[2] - y[2] * z[0]) + x[2] * (y[0] * z[1] - y[1] * z[0])
    }

    #[test]
    fn nothing_is_folded_even_by_the_strongest_change() {
        for (ventricles, temporal, asymmetry) in [(1.0, 1.0, 0.0), (1.0, 0.0, 0.3), (0.0, 1.0, -0.3), (1.0, 1.0, 0.3)] {
            let map = Deformation::new(Change { ventricles, temporal, asymmetry });
            for x in (-80..=80).step_by(4) {
                for y in (-110..=80).step_by(4) {
                    for z in (-72..=84).step_by(4) {
                        let p = [x, y, z].map(f64::from);
                        let j = jacobian(&map, p);
                        assert!(j > 0.02, "{j} at {p:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_change_moves_nothing() {
        let map = Deformation::new(Change::default());
        for p in [[0.0, 0.0, 0.0], [25.0, -16.0, -17.0], [-9.0, 13.0, 12.0]] {
            assert_eq!(map.source(p), p);
        }
    }

    #[test]
    fn ventricles_come_from_less_and_the_temporal_lobe_from_more() {
        let stretch = |change: Change, p: Point| jacobian(&Deformation::new(change), p);
        let ventricles = Change { ventricles: 0.5, ..Change::default() };
        let temporal = Change { temporal: 0.5, ..Change::default() };
        assert!(stretch(ventricles, [-12.0, -12.0, 23.0]) < 0.7);
        assert!(stretch(temporal, [-22.0, -16.0, -17.0]) > 1.5);
        assert!((stretch(temporal, [60.0, -100.0, 60.0]) - 1.0).abs() < 1e-3);
    }
}
