//! Any bytes: read or refused within bounds, and what is read is finite.
//!
//! `cargo +nightly fuzz run nifti fuzz/corpus/nifti tests/data/nifti-hostile tests/data/nifti`
#![no_main]

use brain_adapter::volume::{Grid, ReadOptions, read_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The grid's oddest shapes come from the data as well: its last byte.
    let side = 1 + usize::from(data.last().copied().unwrap_or(0) % 12);
    let options = ReadOptions { grid: Grid { shape: [side, 9, 13 - side], voxel_mm: [3.0, 2.0, 5.0] }, volume: None };
    if let Ok(conformed) = read_bytes(data, &options) {
        assert!(conformed.voxels.iter().all(|v| v.is_finite()));
        assert!(conformed.min < conformed.max);
        if let Ok(volume) = conformed.normalize(Some([2.0, 98.0])) {
            assert!(volume.voxels.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }
});
