//! Any bytes as an ONNX file: the files that it refers to, or a refusal.
//!
//! `cargo +nightly fuzz run onnx fuzz/corpus/onnx`
#![no_main]

use brain_adapter::onnx::external_files_in;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = external_files_in(data);
});
