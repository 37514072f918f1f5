//! Any bytes, read as calibration statistics: `cargo +nightly fuzz run statistics`. A `calibration.safetensors` of any
//! bundle is a good first member of `fuzz/corpus/statistics`.
//!
//! Whatever loads holds finite numbers, and as many of one kind as of the other.
#![no_main]

use brain_adapter::calibrate::Statistics;
use brain_adapter::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Checkpoint::from_bytes(data.to_vec(), "fuzz") else { return };
    let Ok(statistics) = Statistics::from_checkpoint(&file) else { return };
    for columns in statistics.activations.values() {
        assert!(columns.tokens > 0 && columns.largest.len() == columns.moment.len());
        assert!(columns.importance().iter().all(|i| i.is_finite() && *i >= 0.0));
        assert!(columns.zero_point() > 0);
    }
});
