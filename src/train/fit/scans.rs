//! Scans on the model's grid, as the adapter's input.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::batch;
use crate::config::{Config, VolumeConfig};
use crate::error::{Result, Warning, WarningTally};
use crate::tensor::Tensor;
use crate::train::tensors::stack;
use crate::volume::{self, Grid, ReadOptions, Volume};

/// Maximum size of the volumes that stay in memory between epochs, in bytes: the whole cohort of a small model, and
/// only a few volumes of a large one.
const CACHED_BYTES: usize = 1 << 30;

/// A scan's path, and the volume of a 4-D one where the list names it.
pub(super) type ScanName = (PathBuf, Option<usize>);

/// Reads scans and conforms them to the model's grid. Small volumes are read once and stay in memory.
pub(super) struct Scans {
    config: VolumeConfig,
    cached: Mutex<BTreeMap<ScanName, Tensor>>,
    /// Maximum number of cached volumes.
    capacity: usize,
    /// Whether scans with a quality warning are refused.
    strict_quality: bool,
    warnings: Mutex<Warnings>,
}

/// The warnings of scans.
#[derive(Default)]
struct Warnings {
    /// Scans that were counted: a scan counts once, however often it is read.
    recorded: BTreeSet<ScanName>,
    /// What was not reported yet.
    pending: WarningTally,
}

impl Scans {
    pub fn new(config: &Config, strict_quality: bool) -> Self {
        let bytes = config.volume.size.pow(3) * 4;
        Self {
            config: config.volume.clone(),
            cached: Mutex::default(),
            capacity: CACHED_BYTES / bytes.max(1),
            strict_quality,
            warnings: Mutex::default(),
        }
    }

    /// `volume` f32 `[batch, D, H, W]` of scans.
    pub fn batch(&self, scans: &[(&Path, Option<usize>)]) -> Result<Tensor> {
        stack(&scans.iter().map(|(path, volume)| self.read(path, *volume)).collect::<Result<Vec<_>>>()?)
    }

    /// `volume` f32 `[1, D, H, W]` of a scan, of a 4-D one the volume that is named.
    pub fn read(&self, path: &Path, volume: Option<usize>) -> Result<Tensor> {
        let name = (path.to_path_buf(), volume);
        // After a panic on another thread the map lacks at most a volume: a poisoned lock is sound.
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        if let Some(tensor) = cached {
            return Ok(tensor);
        }
        let read = self.volume(path, volume)?;
        self.record_warnings(&name, &read.warnings);
        let tensor = batch::volume(read);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.len() < self.capacity {
            cached.insert(name, tensor.clone());
        }
        Ok(tensor)
    }

    /// A scan on the model's grid; nothing is cached or recorded.
    ///
    /// # Errors
    /// `nifti.*`, `io`; the code of a quality warning, where these are refused.
    pub fn volume(&self, path: &Path, volume: Option<usize>) -> Result<Volume> {
        let options =
            ReadOptions { grid: Grid::cube(self.config.size, self.config.voxel_mm), volume, ..ReadOptions::default() };
        let read = volume::read(path, &options)?.normalize(self.config.clip).map_err(|e| e.at(path))?;
        self.check(path, &read.warnings)?;
        Ok(read)
    }

    /// Refuses a scan with a quality warning, where that is asked for.
    ///
    /// # Errors
    /// The code of the warning.
    pub fn check(&self, path: &Path, warnings: &[Warning]) -> Result<()> {
        if self.strict_quality { Warning::refuse_quality(warnings).map_err(|e| e.at(path)) } else { Ok(()) }
    }

    /// Removes and returns the pending warnings, one a class.
    pub fn take_warnings(&self) -> Vec<Warning> {
        let pending = std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner).pending);
        pending.warnings("scans")
    }

    fn record_warnings(&self, name: &ScanName, warnings: &[Warning]) {
        let mut all = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if all.recorded.insert(name.clone()) {
            all.pending.add(&name.0, warnings);
        }
    }
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
        let (small, large) = (Scans::new(&config, false), Scans { capacity: 0, ..Scans::new(&config, false) });
        assert_eq!(small.capacity, CACHED_BYTES / (4 * 32 * 32 * 32));
        let twice = [(path.as_path(), None); 2];
        let volume = small.batch(&twice).unwrap();
        assert_eq!(volume.shape(), [2, 32, 32, 32]);
        assert_eq!(large.batch(&twice).unwrap().as_f32(), volume.as_f32());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(small.batch(&twice).unwrap().as_f32(), volume.as_f32());
        assert_eq!(large.read(&path, None).unwrap_err().code(), Code::NIFTI_NOT_FOUND);
    }
}
