//! Any bytes as an ONNX file: the files that it refers to, its blocks, what they take and each as a graph of its own,
//! or a refusal.
//!
//! `cargo +nightly fuzz run onnx fuzz/corpus/onnx`
#![no_main]

use std::collections::BTreeMap;

use brain_adapter::onnx::{SegmentedModel, external_files_in};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = external_files_in(data);
    let Ok(model) = SegmentedModel::from_bytes(data) else { return };
    let count = model.segments().len();
    let extents = BTreeMap::from([("batch", u64::MAX), ("tokens", u64::MAX)]);
    for i in 0..count {
        let _ = model.live_bytes(i..i + 1, &extents);
        let _ = model.extract(i..i + 1);
    }
    let _ = model.live_bytes(0..count, &extents);
});
