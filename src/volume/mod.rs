//! Brain scans in, model volumes out: NIfTI-1, NIfTI-2, MGH and Analyze 7.5 to a conformed, normalised volume.
//!
//! ```text
//! path ─ file ─ stream ─(blocks of rows)─ datatype ─ conform ─► Conformed ─ intensity ─► Volume
//!         └ mgh ─ header ─ geometry ─ axis ───────────┘   │          └─ output: .nii.gz, .png
//!                            └────────── quality ─────────┴─► figures and warnings
//! ```
//!
//! *Conform* is FreeSurfer's word: permute and flip the file's axes to the nearest right–anterior–superior order and
//! resample, trilinear, to a grid of fixed size and spacing about the same centre; 0 outside the scan. An oblique scan
//! keeps its rotation, as with nibabel's `processing.conform(order=1, cval=0)`, whose values this module reproduces
//! to f32 accuracy (integer scans are *not* rounded back to integers).
//!
//! Voxels are f32 in the model's order `[k][j][i]`: k runs inferior→superior and slowest, j posterior→anterior,
//! i left→right and fastest. That is also how NIfTI stores a RAS volume. Distances are millimetres.
//!
//! Files are untrusted: no allocation follows a claim, no panic follows a byte, and each error is one line
//! with one of the `nifti.*` codes. What is odd but usable becomes a [`Warning`]: `no_orientation`, `xform_code`,
//! `bitpix`, `extension`, `trailing_data`, `nonfinite`, `fov_cut`, `quaternion`. What makes a scan unfit for the model
//! becomes one of [`WarningCode::QUALITY`](crate::WarningCode::QUALITY), decided by the figures of [`Quality`].
//!
//! ```no_run
//! use brain_adapter::volume::{self, ReadOptions};
//!
//! let conformed = volume::read("scan.nii.gz".as_ref(), &ReadOptions::default())?;
//! let volume = conformed.normalize(None)?;
//! assert_eq!(volume.shape, [256, 256, 256]);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

#![cfg_attr(not(test), deny(clippy::as_conversions))]

mod axis;
mod conform;
mod datatype;
mod dims;
mod file;
mod folder;
mod geometry;
mod halves;
mod header;
mod intensity;
mod load;
mod mgh;
mod output;
mod peek;
mod quality;
mod recognize;
mod sniff;
mod stated;
mod stream;
mod units;
mod zstd;

use std::path::Path;

pub use quality::{Quality, TransformDifference};
pub use recognize::{is_saved_preview, is_saved_volume};
use serde::Serialize;
pub use stated::AxisCodes;

use crate::error::{Code, Error, Result, Warning};

/// How the names of scans end that are looked for in folders, in small letters. A scan that is named may have any name.
pub(crate) const SCAN_ENDINGS: [&str; 8] =
    [".nii.gz", ".nii.zst", ".nii", ".hdr", ".hdr.gz", ".mgz", ".mgh", ".mgh.gz"];

/// Voxels accepted in an output grid.
const MAX_GRID: usize = 1 << 28;

/// Size and spacing of the conformed volume, in right, anterior, superior order (`[i, j, k]`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Grid {
    /// Voxels along right, anterior, superior.
    pub shape: [usize; 3],
    /// Millimetres between voxels along right, anterior, superior.
    pub voxel_mm: [f64; 3],
}

impl Grid {
    /// A cube of `size` voxels a side, `mm` millimetres each.
    pub fn cube(size: usize, mm: f64) -> Self {
        Self { shape: [size; 3], voxel_mm: [mm; 3] }
    }

    fn check(&self) -> Result<()> {
        let voxels = self.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        let sized = voxels.is_some_and(|n| (1..=MAX_GRID).contains(&n));
        let spaced = self.voxel_mm.iter().all(|mm| (0.01..=100.0).contains(mm));
        if sized && spaced {
            return Ok(());
        }
        let Self { shape: [i, j, k], voxel_mm: [x, y, z] } = self;
        Err(Error::new(
            Code::CONFIG_VALUE,
            format!(
                "cannot conform to {i} × {j} × {k} voxels of {x} × {y} × {z} mm: \
                 expected 1 to {MAX_GRID} voxels in all, of 0.01 to 100 mm"
            ),
        ))
    }
}

impl Default for Grid {
    /// 256³ voxels of 1 mm.
    fn default() -> Self {
        Self::cube(256, 1.0)
    }
}

/// How to read a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// The grid to conform to.
    pub grid: Grid,
    /// The volume of a 4-D file, from 0. `None` accepts only files with one volume.
    pub volume: Option<usize>,
    /// The orientation of files that hold none: Analyze 7.5, which is refused without it, and NIfTI without an sform or
    /// qform. Files that hold another are refused ([`Code::NIFTI_ORIENTATION`]).
    pub orientation: Option<AxisCodes>,
}

/// The scan as it was stored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceInfo {
    /// `"NIfTI-1"`, `"NIfTI-2"`, `"MGH"` or `"Analyze 7.5"`.
    pub format: String,
    /// Whether the voxels were gzip-compressed.
    pub gzip: bool,
    /// Voxels along the file's axes, the first the fastest.
    pub shape: [usize; 3],
    /// Volumes in the file.
    pub volumes: u64,
    /// numpy's name of the stored type, such as `int16`.
    pub datatype: String,
    /// Where the orientation came from: `"sform"`, `"qform"`, `"mgh"` (direction cosines, voxel sizes and centre of an
    /// MGH header), `"stated"` ([`ReadOptions::orientation`]) or `"none"`.
    pub transform: String,
    /// Voxel index to world, mm, RAS+.
    pub affine: [[f64; 4]; 4],
    /// Directions the file's axes run towards, such as `LPS`.
    pub axcodes: String,
    /// Millimetres between voxels along the file's axes.
    pub spacing_mm: [f64; 3],
    /// What the file stores lengths in, where that is not the millimetre: `"metre"` or `"micrometre"`. Here they are
    /// mm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<&'static str>,
}

/// A scan on the model's grid, in its own intensities.
#[derive(Clone, Debug)]
pub struct Conformed {
    /// Values in `[k][j][i]` order, all finite.
    pub voxels: Vec<f32>,
    /// Size and spacing.
    pub grid: Grid,
    /// Index `(i, j, k)` to world, mm, RAS+.
    pub affine: [[f64; 4]; 4],
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Voxels of the scan that were NaN or infinite and became 0.
    pub nonfinite: u64,
    /// Figures that say whether it is a scan for the model.
    pub quality: Quality,
    /// What the scan was.
    pub source: SourceInfo,
    /// Oddities of the file.
    pub warnings: Vec<Warning>,
}

/// A scan ready for the model: values in `0..=1`.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Values in `[k][j][i]` order, `0..=1`.
    pub voxels: Vec<f32>,
    /// `[D, H, W]`: voxels along superior, anterior, right.
    pub shape: [usize; 3],
    /// Index `(i, j, k)` to world, mm, RAS+.
    pub affine: [[f64; 4]; 4],
    /// Figures that say whether it is a scan for the model.
    pub quality: Quality,
    /// What the scan was.
    pub source: SourceInfo,
    /// Oddities of the file.
    pub warnings: Vec<Warning>,
}

/// The files that the scan at `path` consists of: itself, or a `.hdr` and the `.img` that belongs to it, whichever of
/// the two is given. Only the header is read.
///
/// # Errors
/// One of the `nifti.*` codes, or `io`.
pub fn files(path: &Path) -> Result<Vec<std::path::PathBuf>> {
    file::files(path)
}

/// Checks the header of the scan at `path` as [`read`] does, without reading voxels.
///
/// # Errors
/// Those of [`read`] that concern the header, its transform excepted.
pub fn check(path: &Path, options: &ReadOptions) -> Result<()> {
    file::check(path, options)
}

/// Reads the scan at `path` and conforms it to `options.grid`.
///
/// NIfTI-1 and NIfTI-2, single files and `.hdr`/`.img` pairs, either byte order; FreeSurfer's MGH; Analyze 7.5 whose
/// orientation is stated; gzip, zstd or neither. All is detected by content.
///
/// # Errors
/// One of the `nifti.*` codes, `io`, or `config.value` for an impossible grid. A volume without contrast is
/// `nifti.constant`.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Conformed> {
    read_and_measure(path, options, true)
}

/// As [`read`], without the figures of voxels and the warnings from them: what they cost is measured against this.
///
/// # Errors
/// Those of [`read`].
#[doc(hidden)]
pub fn read_unmeasured(path: &Path, options: &ReadOptions) -> Result<Conformed> {
    read_and_measure(path, options, false)
}

fn read_and_measure(path: &Path, options: &ReadOptions, measure: bool) -> Result<Conformed> {
    options.grid.check()?;
    let mut warnings = Vec::new();
    let scan = file::open(path, options, &mut warnings)?;
    let voxels_in = scan.path.clone();
    load::load(scan, options, warnings, measure).map_err(|e| e.at(voxels_in.as_deref().unwrap_or(path)))
}

/// Like [`read`], for a single-file scan in memory.
///
/// # Errors
/// Those of [`read`] that do not concern paths; a `.hdr`/`.img` header is `nifti.pair`.
pub fn read_bytes(bytes: &[u8], options: &ReadOptions) -> Result<Conformed> {
    options.grid.check()?;
    let mut warnings = Vec::new();
    let scan = file::open_bytes(bytes, options, &mut warnings)?;
    load::load(scan, options, warnings, true)
}

impl Conformed {
    /// Maps the intensities to `0..=1`, in place: min–max over the whole volume, padding included, after clipping to
    /// the percentiles `clip = [low, high]` (0 to 100, `numpy.percentile`'s linear kind) if given.
    ///
    /// # Errors
    /// `nifti.constant` when nothing is left between the percentiles, `config.value` for an impossible `clip`.
    pub fn normalize(mut self, clip: Option<[f64; 2]>) -> Result<Volume> {
        let range = intensity::normalize(&mut self.voxels, self.min, self.max, clip)?;
        if clip.is_some() {
            quality::clipped(&mut self.warnings, &self.quality, range);
        }
        let [i, j, k] = self.grid.shape;
        Ok(Volume {
            voxels: self.voxels,
            shape: [k, j, i],
            affine: self.affine,
            quality: self.quality,
            source: self.source,
            warnings: self.warnings,
        })
    }

    /// Writes the volume as float32 NIfTI-1 (`.nii.gz` or `.nii`), replacing `path` only when complete.
    ///
    /// # Errors
    /// `io`, `disk.full`, or `config.value` for another ending.
    pub fn save(&self, path: &Path) -> Result<()> {
        output::save_nifti(path, &self.voxels, self.grid.shape, &self.affine)
    }

    /// Writes a PNG of the middle axial, coronal and sagittal slices, one pixel per voxel, side by side.
    ///
    /// Upright: anterior (axial) or superior (coronal, sagittal) is up. The patient's left is on the picture's left in
    /// the first two (not the radiological habit), posterior is on the left of the third. The grey window ends at
    /// each slice's 99.5th percentile. A check that the scan is the right way up, not a picture to read.
    ///
    /// # Errors
    /// `io` or `disk.full`.
    pub fn save_preview(&self, path: &Path) -> Result<()> {
        output::save_preview(path, &self.voxels, self.grid.shape)
    }
}

impl Volume {
    /// Writes the same picture as [`Conformed::save_preview`].
    ///
    /// # Errors
    /// `io` or `disk.full`.
    pub fn save_preview(&self, path: &Path) -> Result<()> {
        let [k, j, i] = self.shape;
        output::save_preview(path, &self.voxels, [i, j, k])
    }
}
