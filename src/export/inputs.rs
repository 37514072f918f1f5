//! Calibration inputs as the graphs take them.

use std::path::Path;

use crate::batch;
use crate::config::VolumeConfig;
use crate::error::{Code, Error, Result, WarningTally};
use crate::tensor::Tensor;
use crate::text::{Tokenizer, read_report};
use crate::volume::{self, Grid, ReadOptions};

/// The input `volume` of a scan.
///
/// # Errors
/// `calibration.input`, with what is wrong with the scan.
pub(super) fn scan(config: &VolumeConfig, path: &Path) -> Result<Tensor> {
    counted_scan(config, path, &mut WarningTally::default())
}

/// As [`scan`]; its warnings are counted in `tally`.
///
/// # Errors
/// As [`scan`].
pub(super) fn counted_scan(config: &VolumeConfig, path: &Path, tally: &mut WarningTally) -> Result<Tensor> {
    let options = ReadOptions { grid: Grid::cube(config.size, config.voxel_mm), ..ReadOptions::default() };
    let volume = volume::read(path, &options).and_then(|v| v.normalize(config.clip)).map_err(|e| unusable(path, e))?;
    tally.add(path, &volume.warnings);
    Ok(batch::volume(volume))
}

/// The inputs `input_ids` and `attention_mask` of a report, of at most `max_tokens` tokens.
///
/// # Errors
/// `calibration.input`, with what is wrong with the report.
pub(super) fn report(max_tokens: usize, tokenizer: &Tokenizer, path: &Path) -> Result<[Tensor; 2]> {
    let tokens = read_report(path).and_then(|text| tokenizer.encode(&text, max_tokens));
    tokens.map(|t| batch::report(&t)).map_err(|e| unusable(path, e))
}

fn unusable(path: &Path, error: Error) -> Error {
    // That is not the input's fault.
    if error.code() == Code::THREADS_UNAVAILABLE {
        return error;
    }
    Error::new(Code::CALIBRATION_INPUT, format!("{} ({})", error.message(), error.code())).at(path)
}
