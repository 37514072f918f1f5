//! Any bytes, opened as a training checkpoint: `cargo +nightly fuzz run training_checkpoint
//! fuzz/corpus/training_checkpoint tests/data/ort-training/ms tests/data/ort-training/portable`.
//!
//! Whatever loads must stream, all together no more than twice the file.
#![no_main]

use brain_adapter::checkpoint::TrainingState;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(state) = TrainingState::from_bytes(data.to_vec(), "fuzz") else { return };
    let moments = state.optimizer.iter().flat_map(|o| o.moments.values()).flat_map(|m| [&m.first, &m.second]);
    let mut total = 0;
    for tensor in state.trainable.values().chain(state.frozen.values()).chain(moments) {
        let count = &mut |chunk: &[u8]| {
            total += chunk.len();
            Ok(())
        };
        tensor.stream(count).expect("a loaded tensor streams");
    }
    assert!(total <= 2 * data.len());
});
