//! Any bytes, opened as a checkpoint: `cargo +nightly fuzz run checkpoint fuzz/corpus/checkpoint
//! tests/data/checkpoint/extra`.
//!
//! Whatever loads must stream as many bytes as its shapes say, and no more than the file or 16 MB.
#![no_main]

use brain_adapter::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Checkpoint::from_bytes(data.to_vec(), "fuzz") else { return };
    for (name, tensor) in file.iter() {
        assert!(tensor.byte_len() <= data.len().max(16 << 20), "{name}");
        // Expanded views may stream 16 MB from a few bytes: not from every one of a thousand names.
        if tensor.byte_len() <= 1 << 16 {
            tensor.stream(&mut |_| Ok(())).expect("a loaded tensor streams");
        }
    }
});
