//! Bundles and graphs.

use std::collections::BTreeMap;

use brain_adapter::bundle::{FORMAT, Manifest};
use brain_adapter::onnx::{SegmentedModel, bundle_graph_in, external_files_in};

/// A `bundle.json`: a manifest that keeps its own rules, or a refusal.
pub fn bundle(data: &[u8]) {
    let Ok(manifest) = Manifest::from_bytes(data) else { return };
    assert!(manifest.format == FORMAT && manifest.config.validate().is_ok());
    assert!(manifest.labels == manifest.config.labels.0 && manifest.parts.len() >= 4);
}

/// An ONNX file: the files that it refers to, its blocks, what they take and each as a graph of its own, or a refusal.
pub fn onnx(data: &[u8]) {
    // What a bundle may have is a part of what can be read.
    let (all, bundle) = (external_files_in(data), bundle_graph_in(data));
    if let Ok(files) = bundle {
        assert_eq!(all.ok(), Some(files));
    }
    let Ok(model) = SegmentedModel::from_bytes(data) else { return };
    let count = model.segments().len();
    let extents = BTreeMap::from([("batch", u64::MAX), ("tokens", u64::MAX)]);
    for i in 0..count {
        let _ = model.live_bytes(i..i + 1, &extents);
        let _ = model.extract(i..i + 1);
    }
    let _ = model.live_bytes(0..count, &extents);
}
