//! Writing a volume for people and other tools: NIfTI and a PNG preview.
//!
//! In: voxels in the model's order `[k][j][i]` and their grid. Out: a file that appears completely or not at all: it is
//! written under a temporary name in the same folder and then renamed. Errors: `io`, `disk.full`, and
//! `config.value` for a name of the wrong kind.

use std::io::Cursor;
use std::path::Path;

use image::{GrayImage, ImageFormat, Luma};
use ndarray::{ArrayView3, ShapeBuilder};
use nifti::NiftiHeader;
use nifti::writer::WriterOptions;

use super::geometry::Affine;
use super::intensity::percentiles;
use crate::error::{Code, Error, Result};
use crate::files::{Pending, replace};
use crate::tensor::number::{to_f32, to_u8, to_u64, to_usize};

/// Bytes before the voxels of a NIfTI-1 file without extensions.
const NIFTI_DATA_OFFSET: usize = 352;

/// Dark columns between the preview's panels.
const GAP: usize = 2;

/// Writes float32 NIfTI-1 with `affine` as its sform; `shape` is `[i, j, k]`.
pub(super) fn save_nifti(path: &Path, voxels: &[f32], shape: [usize; 3], affine: &Affine) -> Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let suffix = match name {
        n if n.ends_with(".nii.gz") => ".nii.gz",
        n if n.ends_with(".nii") => ".nii",
        _ => return Err(Error::new(Code::CONFIG_VALUE, "the name must end in .nii.gz or .nii").at(path)),
    };
    let [x, y, z] = [0, 1, 2].map(|r| affine[r].map(to_f32));
    let length = |c: usize| [x[c], y[c], z[c]].iter().map(|v| v * v).sum::<f32>().sqrt();
    let header = NiftiHeader {
        pixdim: [1.0, length(0), length(1), length(2), 0.0, 0.0, 0.0, 0.0],
        // millimetres, and a grid aligned to the source scan's world
        xyzt_units: 2,
        // the default header claims an identity qform, which some tools would prefer to the sform
        qform_code: 0,
        sform_code: 2,
        srow_x: x,
        srow_y: y,
        srow_z: z,
        ..NiftiHeader::default()
    };
    let [i, j, k] = shape;
    let view = ArrayView3::from_shape((i, j, k).f(), voxels)
        .map_err(|e| Error::internal(format!("{i} × {j} × {k} voxels to be written: {e}")).at(path))?;
    let pending = Pending::next_to(path, suffix)?;
    let failed = |e| Error::io(path, "cannot write", e);
    WriterOptions::new(pending.temporary()).reference_header(&header).write_nifti(&view).map_err(|e| match e {
        nifti::NiftiError::Io(e) => failed(e),
        e => failed(std::io::Error::other(e)),
    })?;
    // The crate's buffer for uncompressed files is dropped without its last error: a full disk shows in the length.
    let bytes = pending.file().metadata().map_err(failed)?.len();
    let expected = to_u64(NIFTI_DATA_OFFSET + size_of_val(voxels));
    if suffix == ".nii" && bytes != expected {
        let message = format!("cannot write: only {bytes} of {expected} bytes were written; is the disk full?");
        return Err(Error::new(Code::DISK_FULL, message).at(path));
    }
    pending.put()
}

/// One panel: its size and the voxel under each pixel, row 0 at the top.
struct Panel<F: Fn(usize, usize) -> usize> {
    width: usize,
    height: usize,
    voxel: F,
}

/// Writes the three middle slices side by side as an 8-bit PNG, one pixel per voxel; `shape` is `[i, j, k]`.
pub(super) fn save_preview(path: &Path, voxels: &[f32], shape: [usize; 3]) -> Result<()> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
        return Err(Error::new(Code::CONFIG_VALUE, "the name must end in .png").at(path));
    }
    let [ni, nj, nk] = shape;
    let (i, j, k) = (ni / 2, nj / 2, nk / 2);
    let at = move |i: usize, j: usize, k: usize| (k * nj + j) * ni + i;
    let axial = Panel { width: ni, height: nj, voxel: move |x: usize, y: usize| at(x, nj - 1 - y, k) };
    let coronal = Panel { width: ni, height: nk, voxel: move |x: usize, y: usize| at(x, j, nk - 1 - y) };
    let sagittal = Panel { width: nj, height: nk, voxel: move |x: usize, y: usize| at(i, x, nk - 1 - y) };

    let size = |n: usize| {
        u32::try_from(n).map_err(|_| Error::internal("the preview has more than 2^32 rows or columns").at(path))
    };
    let mut picture = GrayImage::new(size(2 * ni + nj + 2 * GAP)?, size(nj.max(nk))?);
    let mut left = 0;
    left += draw(&mut picture, left, &axial, voxels) + GAP;
    left += draw(&mut picture, left, &coronal, voxels) + GAP;
    draw(&mut picture, left, &sagittal, voxels);
    // Into memory first: the crate's buffer of a file is dropped without its last error, which is a full disk's.
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).map_err(|e| Error::internal(format!("the preview: {e}")).at(path))?;
    replace(path, png.get_ref())
}

/// A row or column of a picture, which was made large enough for its panels.
fn column(n: usize) -> u32 {
    u32::try_from(n).expect("pictures have fewer than 2^32 rows and columns")
}

/// Draws a panel at the column `left`, centred vertically, and returns its width.
fn draw<F: Fn(usize, usize) -> usize>(picture: &mut GrayImage, left: usize, panel: &Panel<F>, voxels: &[f32]) -> usize {
    let values: Vec<f32> = (0..panel.height)
        .flat_map(|y| (0..panel.width).map(move |x| (x, y)))
        .map(|(x, y)| voxels.get((panel.voxel)(x, y)).copied().unwrap_or(0.0))
        .collect();
    // A few bright vessels or spikes would leave the brain black: the window ends at a percentile.
    let [low, high] = percentiles(&values, [0.0, 99.5]);
    let scale = if high > low { 255.0 / (high - low) } else { 0.0 };
    let height = to_usize(picture.height());
    let top = (height - panel.height.min(height)) / 2;
    for (pixel, value) in values.iter().enumerate() {
        let (x, y) = (left + pixel % panel.width, top + pixel / panel.width);
        let grey = to_u8(((f64::from(*value) - low) * scale).round());
        picture.put_pixel(column(x), column(y), Luma([grey]));
    }
    panel.width
}
