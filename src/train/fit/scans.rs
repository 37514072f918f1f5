//! Scans as the adapter takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::batch;
use crate::config::{Config, VolumeConfig};
use crate::error::{Result, Warning};
use crate::tensor::Tensor;
use crate::train::tensors::stack;
use crate::volume::{self, Grid, ReadOptions};

/// Most bytes of volumes that stay in memory between epochs: small models' whole cohorts, and nothing of large ones.
const KEPT_BYTES: usize = 1 << 30;

/// Reads scans onto the model's grid. Small volumes are read once.
pub(super) struct Scans {
    config: VolumeConfig,
    kept: Mutex<BTreeMap<PathBuf, Tensor>>,
    most: usize,
    found: Mutex<Found>,
}

/// What is to be known of the scans.
#[derive(Default)]
struct Found {
    /// Scans whose warnings were taken down.
    seen: BTreeSet<PathBuf>,
    /// What was not told yet.
    untold: Vec<(PathBuf, Warning)>,
}

impl Scans {
    pub fn new(config: &Config) -> Self {
        let bytes = config.volume.size.pow(3) * 4;
        Self {
            config: config.volume.clone(),
            kept: Mutex::default(),
            most: KEPT_BYTES / bytes.max(1),
            found: Mutex::default(),
        }
    }

    /// `volume` f32 `[batch, D, H, W]` of scans.
    pub fn batch(&self, paths: &[&Path]) -> Result<Tensor> {
        stack(&paths.iter().map(|path| self.read(path)).collect::<Result<Vec<_>>>()?)
    }

    /// `volume` f32 `[1, D, H, W]` of a scan.
    pub fn read(&self, path: &Path) -> Result<Tensor> {
        // A panic elsewhere leaves at most a volume out.
        let known = |kept: &Mutex<BTreeMap<PathBuf, Tensor>>| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
        };
        if let Some(tensor) = known(&self.kept) {
            return Ok(tensor);
        }
        let options = ReadOptions { grid: Grid::cube(self.config.size, self.config.voxel_mm), volume: None };
        let read = volume::read(path, &options)?.normalize(self.config.clip).map_err(|e| e.at(path))?;
        self.take_down(path, &read.warnings);
        let tensor = batch::volume(read);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.most {
            kept.insert(path.to_path_buf(), tensor.clone());
        }
        Ok(tensor)
    }

    /// What the scans' readings warned of since this was last asked, with the scan's path, once a scan.
    pub fn take_warnings(&self) -> Vec<(PathBuf, Warning)> {
        std::mem::take(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner).untold)
    }

    fn take_down(&self, path: &Path, warnings: &[Warning]) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.is_empty() && found.seen.insert(path.to_path_buf()) {
            found.untold.extend(warnings.iter().map(|w| (path.to_path_buf(), w.clone())));
        }
    }
}

/// A warning that names what it is about.
pub(super) fn named(path: &Path, warning: &Warning) -> Warning {
    warning.at(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn small_volumes_are_read_once_and_large_ones_each_time() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/tiny");
        let config = Config::load(&fixture.join("config.json")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scan.nii.gz");
        std::fs::copy(fixture.join("scan.nii.gz"), &path).unwrap();
        let (small, large) = (Scans::new(&config), Scans { most: 0, ..Scans::new(&config) });
        assert_eq!(small.most, KEPT_BYTES / (4 * 32 * 32 * 32));
        let volume = small.batch(&[&path, &path]).unwrap();
        assert_eq!(volume.shape(), [2, 32, 32, 32]);
        assert_eq!(large.batch(&[&path, &path]).unwrap().as_f32(), volume.as_f32());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(small.batch(&[&path, &path]).unwrap().as_f32(), volume.as_f32());
        assert_eq!(large.read(&path).unwrap_err().code(), Code::NIFTI_NOT_FOUND);
    }
}
