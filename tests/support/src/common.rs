//! What several integration tests share: the runtime, recorded fixtures, comparing.

use brain_adapter::runtime::Runtime;

/// ONNX Runtime. A test that needs it fails without it, saying how to get it: it is never skipped.
pub fn runtime() -> &'static Runtime {
    Runtime::load(None).unwrap_or_else(|e| panic!("this test needs ONNX Runtime (make ort): {e}"))
}

/// Holds `found` against `expected`: largest difference at most `tolerance` of the largest expected magnitude.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs())).max(1e-6);
    let far = |f: f32, e: f32| (f - e).is_nan() || (f - e).abs() > tolerance * scale;
    let mut bad = found.iter().zip(expected).enumerate().filter(|(_, (f, e))| far(**f, **e));
    let first: Vec<_> = bad.by_ref().take(3).collect();
    assert!(
        first.is_empty(),
        "{what}: {} values differ by more than {tolerance} of {scale}: {first:?}",
        first.len() + bad.count()
    );
}
