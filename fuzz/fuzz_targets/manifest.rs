//! Any bytes as a `bundle.json`: a manifest that keeps its own rules, or a refusal.
//!
//! `cargo +nightly fuzz run manifest fuzz/corpus/manifest`
#![no_main]

use brain_adapter::bundle::{FORMAT, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(manifest) = Manifest::from_bytes(data) else { return };
    assert!(manifest.format == FORMAT && manifest.config.validate().is_ok());
    assert!(manifest.labels == manifest.config.labels.0 && manifest.parts.len() >= 4);
});
