//! Makes the pictures of `docs/quality.md`: what the model reads of a healthy head and of each kind of broken scan.
//!
//! ```text
//! cargo run --release --example quality_pictures -- docs/images/quality
//! ```
//!
//! Phantoms of the tests, no patient's scans. A picture has the middle axial, coronal and sagittal slice of the
//! conformed volume, black to white as the model's input has 0 to 1.

#![allow(clippy::print_stdout)]

use std::path::Path;

use brain_adapter::volume::{self, Grid, ReadOptions, Volume};
use image::{GrayImage, Luma};
use support::drafts::{Draft, broken};

/// The kinds that can be seen. A transform or an intent that is wrong looks like a healthy scan.
const SHOWN: &[&str] = &[
    "numpy_eye",
    "tilted",
    "gantry",
    "slab",
    "shrunk",
    "cut_by_grid",
    "thick",
    "label_image",
    "hot_voxels",
    "hounsfield",
    "ratio_image",
    "overflowed",
    "offset",
    "inverted",
    "mask",
    "parcellation",
    "white_noise",
];
/// The seed of all pictures.
const SEED: u64 = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: quality_pictures FOLDER")?;
    std::fs::create_dir_all(&folder)?;
    let healthy = (SEED..).map(Draft::healthy).find(|draft| draft.what.contains("Whole")).ok_or("no whole head")?;
    picture(Path::new(&folder), "healthy", &healthy.bytes(), 80)?;
    for kind in broken::KINDS.iter().filter(|kind| SHOWN.contains(&kind.name)) {
        let (bytes, _, grid) = (kind.make)(SEED);
        picture(Path::new(&folder), kind.name, &bytes, grid.shape[0])?;
    }
    Ok(())
}

/// Reads a scan onto a grid of `size` voxels of 4 mm and draws it.
fn picture(folder: &Path, name: &str, bytes: &[u8], size: usize) -> Result<(), Box<dyn std::error::Error>> {
    let conformed = volume::read_bytes(bytes, &ReadOptions { grid: Grid::cube(size, 4.0), ..ReadOptions::default() })?;
    for warning in &conformed.warnings {
        println!("{name}: {}: {}", warning.code, warning.message);
    }
    let volume = conformed.normalize(None)?;
    draw(&volume).save(folder.join(name).with_extension("png"))?;
    Ok(())
}

fn draw(volume: &Volume) -> GrayImage {
    let [depth, height, width] = volume.shape;
    let at = |k: usize, j: usize, i: usize| Luma([(volume.voxels[(k * height + j) * width + i] * 255.0) as u8]);
    // The grids are cubes.
    GrayImage::from_fn((3 * width) as u32, height as u32, |x, y| {
        let (panel, x, y) = (x as usize / width, x as usize % width, y as usize);
        match panel {
            0 => at(depth / 2, height - 1 - y, x),
            1 => at(depth - 1 - y, height / 2, x),
            _ => at(depth - 1 - y, x, width / 2),
        }
    })
}
