//! How long merging takes.

use std::collections::BTreeMap;

use brain_adapter::checkpoint::{Checkpoint, write_safetensors};
use brain_adapter::tensor::{DType, LazyTensor};

/// Merging against reading, on the sizes of a 7B model: `cargo test --release --test checkpoint merging_takes --
/// --ignored --nocapture`.
#[test]
#[ignore = "measures time"]
fn merging_takes_little_more_time_than_a_cast() {
    for [rows, cols] in [[4096, 4096], [11008, 4096], [4096, 11008]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let plain = LazyTensor::from_f32(&[rows, cols], &vec![0.5; rows * cols]).cast(DType::F16);
        write_safetensors(&path, [("w".to_owned(), plain)], &BTreeMap::new()).unwrap();
        let base = Checkpoint::open(&path).unwrap().get("w").unwrap().clone();
        let [left, right] = [[rows, 16], [16, cols]].map(|s| LazyTensor::from_f32(&s, &vec![0.25; s[0] * s[1]]));
        let seconds = |tensor: &LazyTensor| {
            let run = |_| {
                let started = std::time::Instant::now();
                let mut seen = 0;
                let mut sink = |chunk: &[u8]| {
                    seen += chunk.len();
                    Ok(())
                };
                tensor.stream(&mut sink).unwrap();
                assert_eq!(seen, 4 * rows * cols);
                started.elapsed().as_secs_f64()
            };
            (0..5).map(run).fold(f64::INFINITY, f64::min)
        };
        let sum = base.plus_low_rank(&left, &right, 2.0);
        let read = [seconds(&base.cast(DType::F32)), seconds(&base.cast(DType::F32).transposed())];
        let merged = [seconds(&sum), seconds(&sum.transposed())];
        eprintln!("[{rows}, {cols}] r 16: read {read:.3?} s, merged {merged:.3?} s (as it is, transposed)");
    }
}
