//! Phantoms of heads: scalp, skull, brain, ventricles and neck as ellipsoids in millimetres, with bias field, noise,
//! and all that differs between healthy scans (grid, orientation, element type, scaling, what was cut away). By a seed.

use crate::nifti_writer::{Datatype, Scan};

/// A small generator of random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number, in all bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in `low..high`.
    pub fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of `n`.
    pub fn index(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// About normal, mean 0 and deviation 1: the sum of twelve uniform numbers.
    pub fn normal(&mut self) -> f64 {
        let bits = [self.bits(), self.bits(), self.bits()];
        let sixteen = |word: u64, i: u32| ((word >> (16 * i)) & 0xffff) as f64 / 65_536.0;
        bits.iter().flat_map(|&word| (0..4).map(move |i| sixteen(word, i))).sum::<f64>() - 6.0
    }
}

/// Rows of a 3×3 matrix.
pub type Mat3 = [[f64; 3]; 3];

/// The product of two matrices.
pub fn product(a: &Mat3, b: &Mat3) -> Mat3 {
    std::array::from_fn(|r| std::array::from_fn(|c| (0..3).map(|k| a[r][k] * b[k][c]).sum()))
}

/// A rotation by an angle (radians) about a world axis.
pub fn rotation(axis: usize, angle: f64) -> Mat3 {
    let (u, v) = ((axis + 1) % 3, (axis + 2) % 3);
    let mut m = [[0.0; 3]; 3];
    m[axis][axis] = 1.0;
    (m[u][u], m[v][v], m[u][v], m[v][u]) = (angle.cos(), angle.cos(), -angle.sin(), angle.sin());
    m
}

/// What is left of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of it.
    Whole,
    /// The face is 0.
    Defaced,
    /// Only the brain; the rest is 0.
    Stripped,
}

/// A head to be scanned.
#[derive(Clone, Debug)]
pub struct Head {
    /// Half axes of the scalp, mm.
    pub radii: [f64; 3],
    /// What is left of it.
    pub cut: Cut,
    /// Strength of the bias field.
    pub bias: f64,
    /// Deviation of the noise, as a share of white matter.
    pub noise: f64,
    /// Phase of the folds.
    pub phase: f64,
}

/// White matter.
const WHITE: f64 = 600.0;

impl Head {
    /// A head of usual size.
    pub fn new(random: &mut Random) -> Self {
        let size = random.within(0.92, 1.08);
        Self {
            radii: [78.0, 97.0, 90.0].map(|mm| mm * size * random.within(0.96, 1.04)),
            cut: Cut::Whole,
            bias: random.within(0.0, 0.35),
            noise: random.within(0.005, 0.06),
            phase: random.within(0.0, 6.0),
        }
    }

    /// Half axes of the brain, mm.
    pub fn brain(&self) -> [f64; 3] {
        self.radii.map(|mm| mm - 13.0)
    }

    /// The tissue at a point: a label from 0 (air), and its intensity without bias and noise.
    pub fn tissue(&self, p: [f64; 3]) -> (u8, f64) {
        let r = |radii: [f64; 3], c: [f64; 3]| (0..3).map(|a| ((p[a] - c[a]) / radii[a]).powi(2)).sum::<f64>().sqrt();
        let brain = r(self.brain(), [0.0, 0.0, 8.0]);
        if brain < 1.0 {
            let ventricles = r([7.0, 24.0, 12.0], [10.0, 4.0, 14.0]).min(r([7.0, 24.0, 12.0], [-10.0, 4.0, 14.0]));
            let fold = ((p[0] * 0.28 + self.phase).sin() + (p[1] * 0.25).sin() + (p[2] * 0.31).cos()) * 0.04;
            return match () {
                () if ventricles < 1.0 => (1, 150.0),
                () if brain > 0.96 => (1, 150.0),
                () if brain + fold > 0.84 => (2, 420.0),
                () => (3, WHITE),
            };
        }
        if self.cut == Cut::Stripped {
            return (0, 0.0);
        }
        let whole = r(self.radii, [0.0, 0.0, 8.0]);
        let neck = p[2] < -20.0 && ((p[0] / 55.0).powi(2) + ((p[1] + 15.0) / 60.0).powi(2)) < 1.0;
        let face = p[1] > 20.0 && p[2] < -5.0;
        match () {
            () if self.cut == Cut::Defaced && face => (0, 0.0),
            () if whole < 0.93 => (4, 60.0),
            () if whole < 1.0 => (5, 520.0),
            () if neck => (6, 380.0),
            () => (0, 0.0),
        }
    }

    /// The signal at a point, with bias field and Rician noise. Air that was cut away has none.
    pub fn signal(&self, p: [f64; 3], random: &mut Random) -> f64 {
        let (label, clean) = self.tissue(p);
        if label == 0 && self.cut == Cut::Stripped {
            return 0.0;
        }
        let bias = 1.0 + self.bias * ((p[0] / 110.0) * 0.5 + (p[1] / 110.0) * 0.4 - (p[2] / 130.0) * 0.5);
        let sigma = self.noise * WHITE;
        let (a, b) = (clean * bias + sigma * random.normal(), sigma * random.normal());
        (a * a + b * b).sqrt()
    }
}

/// The grid of a file: shape, and the matrix from index to world.
#[derive(Clone, Debug)]
pub struct Frame {
    pub shape: [usize; 3],
    /// Rotation and reflection: columns are the directions of the file's axes.
    pub axes: Mat3,
    /// Millimetres a voxel.
    pub spacing: [f64; 3],
    /// The world point in the middle of the grid.
    pub centre: [f64; 3],
}

impl Frame {
    /// A grid of `spacing` whose axes run along the world axes `world`, flipped or not, turned by `angles` (radians),
    /// with `margin` mm around a box of half axes `radii` about `centre`.
    pub fn around(
        radii: [f64; 3],
        centre: [f64; 3],
        (world, flips): ([usize; 3], [bool; 3]),
        (spacing, margin): ([f64; 3], f64),
        angles: [f64; 3],
    ) -> Self {
        let turn = product(&rotation(0, angles[0]), &product(&rotation(1, angles[1]), &rotation(2, angles[2])));
        let mut axes = [[0.0; 3]; 3];
        for a in 0..3 {
            axes[world[a]][a] = if flips[a] { -1.0 } else { 1.0 };
        }
        let size = |a: usize| ((2.0 * (radii[world[a]] + margin)) / spacing[a]).ceil().max(4.0) as usize;
        Self { shape: [size(0), size(1), size(2)], axes: product(&turn, &axes), spacing, centre }
    }

    /// Rows of the 4×4 matrix.
    pub fn affine(&self) -> [[f64; 4]; 3] {
        let half = self.shape.map(|n| (n as f64 - 1.0) / 2.0);
        std::array::from_fn(|r| {
            let row: [f64; 3] = std::array::from_fn(|c| self.axes[r][c] * self.spacing[c]);
            let shift = self.centre[r] - (0..3).map(|c| row[c] * half[c]).sum::<f64>();
            [row[0], row[1], row[2], shift]
        })
    }

    /// A value at every voxel, the first axis fastest, by the point in the world.
    pub fn scan(&self, mut value: impl FnMut([f64; 3]) -> f64) -> Vec<f64> {
        let affine = self.affine();
        let [n0, n1, n2] = self.shape;
        let mut values = Vec::with_capacity(n0 * n1 * n2);
        for at in 0..n0 * n1 * n2 {
            let index = [at % n0, at / n0 % n1, at / n0 / n1].map(|i| i as f64);
            values.push(value(std::array::from_fn(|r| {
                affine[r][3] + (0..3).map(|c| affine[r][c] * index[c]).sum::<f64>()
            })));
        }
        values
    }
}

/// b, c, d and qfac of the qform with these axes (columns), as nifti1.h's `nifti_mat44_to_quatern`.
pub fn quaternion(axes: &Mat3) -> ([f64; 3], f64) {
    let determinant = (0..3).map(|c| {
        let (u, v) = ((c + 1) % 3, (c + 2) % 3);
        axes[0][c] * (axes[1][u] * axes[2][v] - axes[1][v] * axes[2][u])
    });
    let qfac = if determinant.sum::<f64>() < 0.0 { -1.0 } else { 1.0 };
    let m: Mat3 = std::array::from_fn(|r| [axes[r][0], axes[r][1], axes[r][2] * qfac]);
    let largest = |x: f64| 0.5 * x.max(0.0).sqrt();
    let (b, c, d) = (
        largest(1.0 + m[0][0] - m[1][1] - m[2][2]),
        largest(1.0 - m[0][0] + m[1][1] - m[2][2]),
        largest(1.0 - m[0][0] - m[1][1] + m[2][2]),
    );
    let a = largest(1.0 + m[0][0] + m[1][1] + m[2][2]);
    let found = match () {
        () if a > 0.3 => [(m[2][1] - m[1][2]), (m[0][2] - m[2][0]), (m[1][0] - m[0][1])].map(|x| x / (4.0 * a)),
        () if b >= c && b >= d => {
            let sign = if m[2][1] - m[1][2] < 0.0 { -1.0 } else { 1.0 };
            [b, (m[0][1] + m[1][0]) / (4.0 * b), (m[0][2] + m[2][0]) / (4.0 * b)].map(|x| x * sign)
        }
        () if c >= d => {
            let sign = if m[0][2] - m[2][0] < 0.0 { -1.0 } else { 1.0 };
            [(m[0][1] + m[1][0]) / (4.0 * c), c, (m[1][2] + m[2][1]) / (4.0 * c)].map(|x| x * sign)
        }
        () => {
            let sign = if m[1][0] - m[0][1] < 0.0 { -1.0 } else { 1.0 };
            [(m[0][2] + m[2][0]) / (4.0 * d), (m[1][2] + m[2][1]) / (4.0 * d), d].map(|x| x * sign)
        }
    };
    (found, qfac)
}

/// The bytes of a little-endian NIfTI-1 file with this sform, a qform of `axes` and `spacing` where there is one, and
/// an intent code.
pub fn file(scan: &Scan, qform: Option<(&Mat3, [f64; 3])>, intent: i16) -> Vec<u8> {
    assert!(scan.version == 1 && !scan.big, "the fields are patched at NIfTI-1's places");
    let mut bytes = scan.bytes();
    let mut put = |at: usize, v: &[u8]| bytes[at..at + v.len()].copy_from_slice(v);
    put(68, &intent.to_le_bytes());
    if let Some((axes, spacing)) = qform {
        let ([b, c, d], qfac) = quaternion(axes);
        put(252, &1i16.to_le_bytes());
        put(76, &(qfac as f32).to_le_bytes());
        for (i, v) in spacing.into_iter().enumerate() {
            put(80 + 4 * i, &(v as f32).to_le_bytes());
        }
        let shift = [0, 1, 2].map(|r| scan.affine[r][3]);
        for (i, v) in [b, c, d].into_iter().chain(shift).enumerate() {
            put(256 + 4 * i, &(v as f32).to_le_bytes());
        }
    }
    bytes
}

/// Values as integers or floats of a type, with the scaling that a file then has. `full` uses the type's whole range,
/// as programs do that store floats as integers.
pub fn stored(values: Vec<f64>, datatype: Datatype, full: bool) -> (Vec<f64>, (f64, f64)) {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    let range = match datatype {
        Datatype::U8 => Some((0.0, 255.0)),
        Datatype::I16 if full => Some((-32_768.0, 32_767.0)),
        Datatype::U16 if full => Some((0.0, 65_535.0)),
        _ => None,
    };
    match (range, datatype) {
        (Some((first, last)), _) => {
            let slope = (high - low) / (last - first);
            let inter = low - first * slope;
            // As in the file: NIfTI-1's scaling is float32.
            let (slope, inter) = (f64::from(slope as f32), f64::from(inter as f32));
            let code = |v: &f64| ((v - inter) / slope).round().clamp(first, last);
            (values.iter().map(code).collect(), (slope, inter))
        }
        (None, Datatype::F32 | Datatype::F64) => (values, (1.0, 0.0)),
        (None, _) => (values.iter().map(|v| v.round()).collect(), (1.0, 0.0)),
    }
}
