//! The scan: the template in a deformed head, imaged by an imperfect scanner.
//!
//! Each voxel is mapped back, from the grid through scanner and head to the template, which is sampled
//! trilinearly at 2 × 2 × 2 places a voxel: so a structure thinner than a voxel still changes its grey value.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use brain_adapter::files::Pending;
use brain_adapter::volume::{self, ReadOptions};
use ndarray::{ArrayView3, ShapeBuilder};
use nifti::NiftiHeader;
use nifti::writer::WriterOptions;
use rand_chacha::ChaCha8Rng;

use super::anatomy::{CENTRE, Deformation, Point};
use super::random::normal;
use super::subject::{Acquisition, Subject};

/// Edge of the simulated field of view in mm: the largest head, turned, lies within.
pub const FIELD_MM: f64 = 208.0;

/// Value of fluid in the template, of 1: the darkest part of its ventricles.
const FLUID_GREY: f64 = 0.2;

type Matrix = [[f64; 3]; 3];

/// The template.
pub struct Brain {
    /// Values from 0 to 1, 0 outside the brain, `[k][j][i]`.
    voxels: Vec<f32>,
    shape: [usize; 3],
    /// MNI coordinates of the first voxel, in mm; voxels are 1 mm apart.
    origin: Point,
    /// Bounds of the brain in MNI coordinates, with a margin for deformations.
    edges: [Point; 2],
}

impl Brain {
    /// Reads a skull-stripped brain in MNI space.
    pub fn read(path: &Path) -> Result<Self> {
        let conformed = volume::read(path, &ReadOptions::default())?;
        let affine = conformed.affine;
        let straight = (0..3).all(|r| (0..3).all(|c| (affine[r][c] - f64::from(r == c)).abs() < 1e-3));
        ensure!(straight, "{}: the axes are oblique: give a brain that was resampled to MNI space", path.display());
        let shape = conformed.grid.shape;
        let volume = conformed.normalize(None)?;
        let origin = [0, 1, 2].map(|r| affine[r][3]);
        let mut edges = [[f64::MAX; 3], [f64::MIN; 3]];
        for (at, _) in volume.voxels.iter().enumerate().filter(|(_, v)| **v > 0.0) {
            let index = [at % shape[0], at / shape[0] % shape[1], at / shape[0] / shape[1]];
            for a in 0..3 {
                let p = index[a] as f64 + origin[a];
                // Deformations displace deep structures; at the surface, far less than these 5 mm.
                edges[0][a] = edges[0][a].min(p - 5.0);
                edges[1][a] = edges[1][a].max(p + 5.0);
            }
        }
        Ok(Self { voxels: volume.voxels, shape, origin, edges })
    }

    /// Whether a brain, deformed or not, can be at `p`.
    fn reaches(&self, p: Point) -> bool {
        (0..3).all(|a| (self.edges[0][a]..=self.edges[1][a]).contains(&p[a]))
    }

    /// The value at MNI coordinates `p`, trilinear, 0 outside.
    fn at(&self, p: Point) -> f64 {
        let mut low = [0usize; 3];
        let mut part = [0.0; 3];
        for a in 0..3 {
            let x = p[a] - self.origin[a];
            // NaN fails this test too.
            if !(x >= 0.0 && x < (self.shape[a] - 1) as f64) {
                return 0.0;
            }
            low[a] = x as usize;
            part[a] = x - low[a] as f64;
        }
        let [ni, nj, _] = self.shape;
        let first = (low[2] * nj + low[1]) * ni + low[0];
        let row = |at: usize| {
            let (a, b) = (f64::from(self.voxels[at]), f64::from(self.voxels[at + 1]));
            a + part[0] * (b - a)
        };
        let plane = |at: usize| {
            let (a, b) = (row(at), row(at + ni));
            a + part[1] * (b - a)
        };
        let (a, b) = (plane(first), plane(first + ni * nj));
        a + part[2] * (b - a)
    }
}

/// A scan as it is stored.
pub struct Scan {
    /// `[k][j][i]`.
    pub voxels: Vec<i16>,
    /// Voxels along each edge.
    pub size: usize,
    /// Index to scanner, mm, right–anterior–superior.
    pub affine: [[f64; 4]; 3],
}

/// Scans `subject` with `size` voxels along each edge of the field of view.
pub fn acquire(brain: &Brain, subject: &Subject, size: usize, rng: &mut ChaCha8Rng) -> Scan {
    let acquisition = &subject.acquisition;
    let affine = grid(acquisition, size);
    let deformation = Deformation::new(subject.change);
    let head = rotation(acquisition.turn);
    let template = |index: [f64; 3]| {
        let scanner = [0, 1, 2].map(|r| affine[r][3] + (0..3).map(|c| affine[r][c] * index[c]).sum::<f64>());
        let away = [0, 1, 2].map(|r| scanner[r] - CENTRE[r] - acquisition.shift[r]);
        // The transpose of a rotation is its inverse.
        let straight = [0, 1, 2].map(|c| (0..3).map(|r| head[r][c] * away[r]).sum::<f64>());
        let p = [0, 1, 2].map(|a| straight[a] / subject.scale[a] + CENTRE[a]);
        if !brain.reaches(p) {
            return 0.0;
        }
        let tissue = brain.at(deformation.source(p));
        tissue + deformation.fluid(p) * (FLUID_GREY - tissue).min(0.0)
    };
    let mut voxels = Vec::with_capacity(size.pow(3));
    for k in 0..size {
        for j in 0..size {
            for i in 0..size {
                let index = [i, j, k].map(|n| n as f64);
                let tissue = (0..8).map(|corner| template(within(index, corner))).sum::<f64>() / 8.0;
                let place = index.map(|n| 2.0 * n / (size - 1) as f64 - 1.0);
                voxels.push(grey(tissue, place, acquisition, rng));
            }
        }
    }
    Scan { voxels, size, affine }
}

/// The `corner`-th of the eight places in a voxel, a quarter of its edge from its middle.
fn within(index: [f64; 3], corner: usize) -> [f64; 3] {
    [0, 1, 2].map(|a| index[a] + if corner >> a & 1 == 1 { 0.25 } else { -0.25 })
}

/// The stored value of `tissue` (0 to 1) at `place` (-1 to 1 along each axis): contrast, bias field, gain, noise.
/// Outside the brain 0 stays 0, as after skull stripping.
fn grey(tissue: f64, place: [f64; 3], acquisition: &Acquisition, rng: &mut ChaCha8Rng) -> i16 {
    if tissue <= 0.0 {
        return 0;
    }
    let [x, y, z] = place;
    let shapes = [x, y, z, x * x - y * y, x * z, y * z];
    let bias: f64 = shapes.iter().zip(acquisition.bias).map(|(shape, b)| shape * b).sum();
    let clean = tissue.powf(acquisition.gamma) * bias.exp();
    // From 1: 0 is outside.
    (acquisition.gain * (clean + normal(rng, 0.0, acquisition.noise))).round().clamp(1.0, 32_000.0) as i16
}

/// Index to scanner: the slices are tilted, the middle of the grid is near the head's.
fn grid(acquisition: &Acquisition, size: usize) -> [[f64; 4]; 3] {
    let tilt = rotation(acquisition.tilt);
    let mm = FIELD_MM / size as f64;
    let steps = [if acquisition.flipped { -mm } else { mm }, mm, mm];
    let middle = (size - 1) as f64 / 2.0;
    [0, 1, 2].map(|r| {
        let [x, y, z] = [0, 1, 2].map(|c| tilt[r][c] * steps[c]);
        [x, y, z, CENTRE[r] + acquisition.offset[r] - middle * (x + y + z)]
    })
}

/// Rotation by the angles about right, then anterior, then superior.
fn rotation([x, y, z]: [f64; 3]) -> Matrix {
    let times =
        |a: Matrix, b: Matrix| [0, 1, 2].map(|r| [0, 1, 2].map(|c| (0..3).map(|n| a[r][n] * b[n][c]).sum::<f64>()));
    let about_x = [[1.0, 0.0, 0.0], [0.0, x.cos(), -x.sin()], [0.0, x.sin(), x.cos()]];
    let about_y = [[y.cos(), 0.0, y.sin()], [0.0, 1.0, 0.0], [-y.sin(), 0.0, y.cos()]];
    let about_z = [[z.cos(), -z.sin(), 0.0], [z.sin(), z.cos(), 0.0], [0.0, 0.0, 1.0]];
    times(about_z, times(about_y, about_x))
}

impl Scan {
    /// Writes int16 NIfTI-1, gzip-compressed, whose description says that it is simulated.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mm = (FIELD_MM / self.size as f64) as f32;
        let [x, y, z] = self.affine.map(|row| row.map(|v| v as f32));
        let mut header = NiftiHeader {
            pixdim: [1.0, mm, mm, mm, 0.0, 0.0, 0.0, 0.0],
            xyzt_units: 2,
            qform_code: 0,
            sform_code: 1,
            srow_x: x,
            srow_y: y,
            srow_z: z,
            ..NiftiHeader::default()
        };
        header.set_description_str("simulated: a deformed template, no real person")?;
        let view = ArrayView3::from_shape((self.size, self.size, self.size).f(), &self.voxels)?;
        let pending = Pending::next_to(path, ".nii.gz")?;
        WriterOptions::new(pending.temporary())
            .reference_header(&header)
            .write_nifti(&view)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(pending.put()?)
    }
}
