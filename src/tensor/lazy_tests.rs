use super::*;
use crate::error::Code;
use proptest::prelude::*;

fn ramp(shape: &[usize]) -> LazyTensor {
    let values: Vec<f32> = (0..numel(shape).unwrap()).map(|i| i as f32).collect();
    LazyTensor::from_f32(shape, &values)
}

proptest! {
    #[test]
    fn transposition_moves_every_element(rows in 1usize..150, cols in 1usize..150, half in any::<bool>()) {
        let dtype = if half { DType::F16 } else { DType::F32 };
        // Small integers: exact in half precision.
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 2039) as f32).collect();
        let t = LazyTensor::from_f32(&[rows, cols], &values).cast(dtype).transposed();
        prop_assert_eq!(t.shape(), &[cols, rows]);
        let got = t.to_f32().unwrap();
        for r in 0..rows {
            for c in 0..cols {
                prop_assert_eq!(got[c * rows + r], values[r * cols + c]);
            }
        }
    }

    #[test]
    fn rows_and_concat_select(n in 1usize..40, width in 1usize..9, picks in prop::collection::vec(0usize..40, 1..30)) {
        let picks: Vec<usize> = picks.into_iter().map(|p| p % n).collect();
        let t = ramp(&[n, width]);
        let both = LazyTensor::concat(&[t.rows(picks.iter().copied()), t.clone()]);
        let expected: Vec<f32> = picks.iter().copied().chain(0..n)
            .flat_map(|r| (0..width).map(move |c| (r * width + c) as f32)).collect();
        prop_assert_eq!(both.to_f32().unwrap(), expected);
    }
}

#[test]
fn columns_are_laid_side_by_side() {
    let (a, b) = (ramp(&[2, 2]), LazyTensor::from_f32(&[2, 1], &[8.0, 9.0]));
    let both = LazyTensor::concat_columns(&[a, b]);
    assert_eq!(both.shape(), &[2, 3]);
    assert_eq!(both.to_f32().unwrap(), [0.0, 1.0, 8.0, 2.0, 3.0, 9.0]);
    let wide = ramp(&[3, 700_000]);
    let twice = LazyTensor::concat_columns(&[wide.clone(), wide]).to_f32().unwrap();
    assert_eq!((twice[700_000], twice[4_199_999]), (0.0, 2_099_999.0));
}

#[test]
fn casts_round_to_nearest_even() {
    let t = LazyTensor::from_f32(&[4], &[1.0, 65504.0, 2049.0, -0.1]);
    assert_eq!(t.cast(DType::F16).to_f32().unwrap(), [1.0, 65504.0, 2048.0, half::f16::from_f32(-0.1).to_f32()]);
    assert_eq!(t.cast(DType::F64).cast(DType::F32).to_f32().unwrap(), t.to_f32().unwrap());
    assert_eq!(LazyTensor::from_i64(&[2], &[-3, 1 << 24]).to_f32().unwrap(), [-3.0, 16_777_216.0]);
}

#[test]
fn large_tensors_stream_in_whole_bounded_chunks() {
    let t = ramp(&[700, 1001]).cast(DType::F16).cast(DType::F64);
    let mut total = 0;
    t.stream(&mut |chunk| {
        assert!(chunk.len() <= CHUNK_BYTES && chunk.len() % 8 == 0);
        total += chunk.len();
        Ok(())
    })
    .unwrap();
    assert_eq!(total, 700 * 1001 * 8);
}

#[test]
fn nonfinite_values_are_named_with_their_index() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let t = LazyTensor::from_f32(&[2, 3], &[0.0, 1.0, 2.0, 3.0, f32::NEG_INFINITY, 5.0]).cast(dtype);
        let error = t.checked_finite("w").to_f32().unwrap_err();
        assert_eq!(error.code(), Code::CHECKPOINT_NONFINITE);
        assert!(error.message().contains("`w`") && error.message().contains("[1, 1]"), "{error}");
    }
}

#[test]
fn a_source_that_yields_too_little_is_caught() {
    let t = LazyTensor::new(DType::F32, vec![3], Arc::new(vec![0u8; 8]));
    assert_eq!(t.to_f32().unwrap_err().code(), Code::INTERNAL);
    assert!(t.bytes().is_err());
}

#[test]
fn a_transposition_undoes_another_and_a_reshape_is_no_transposition() {
    let t = ramp(&[3, 4]).cast(DType::F16);
    assert!(t.transposed().transposed().contiguous().is_none(), "a cast has no bytes");
    assert_eq!(ramp(&[3, 4]).transposed().transposed().contiguous(), ramp(&[3, 4]).contiguous());
    let reshaped = t.reshaped(&[2, 6]).transposed();
    assert_eq!(reshaped.to_f32().unwrap(), ramp(&[2, 6]).transposed().to_f32().unwrap());
    let reshaped = t.transposed().reshaped(&[6, 2]).transposed();
    assert_eq!(reshaped.to_f32().unwrap(), [0.0, 8.0, 5.0, 2.0, 10.0, 7.0, 4.0, 1.0, 9.0, 6.0, 3.0, 11.0]);
}

#[test]
fn scaling_rows_is_scaling_the_columns_of_the_transpose() {
    let (t, factors): (_, Arc<[f32]>) = (ramp(&[3, 2]), Arc::from([1.0, 0.5, 4.0]));
    let scaled = t.scaled_rows(&factors);
    assert_eq!(scaled.to_f32().unwrap(), [0.0, 1.0, 1.0, 1.5, 16.0, 20.0]);
    assert_eq!(scaled.transposed().to_f32().unwrap(), [0.0, 1.0, 16.0, 1.0, 1.5, 20.0]);
    assert_eq!(t.transposed().scaled_columns(&factors).to_f32().unwrap(), [0.0, 1.0, 16.0, 1.0, 1.5, 20.0]);
    assert_eq!(ramp(&[3]).scaled_rows(&factors).to_f32().unwrap(), [0.0, 0.5, 8.0]);
}

/// Whatever lies under the values: bytes at hand, streamed ones, a rounding or a widening, wide types.
#[test]
fn bands_are_whole_rows() {
    let single = LazyTensor::from_f32(&[1000, 701], &(0..701_000).map(|i| i as f32 / 70.0).collect::<Vec<_>>());
    let stored =
        |dtype| LazyTensor::new(dtype, vec![1000, 701], Arc::new(single.cast(dtype).bytes().unwrap().into_owned()));
    let factors: Arc<[f32]> = (0..1000).map(|i| i as f32).collect();
    let mut sources = [DType::F16, DType::BF16, DType::F32, DType::F64].map(stored).to_vec();
    sources.push(LazyTensor::from_i64(&[1000, 701], &(0..701_000).map(|i| (i << 30) + 1).collect::<Vec<_>>()));
    for t in sources.clone() {
        sources.push(t.cast(DType::F16).cast(DType::F32));
        sources.push(LazyTensor::concat(&[t.rows(500..1000), t.rows(0..500)]));
        sources.push(t.scaled_rows(&factors));
        sources.push(t.transposed().transposed().checked_finite("t"));
    }
    for t in sources {
        let (mut rows, mut values, mut row) = (0, Vec::new(), Vec::new());
        t.for_each_band(64, &mut |first, band| {
            assert_eq!((first, band.len()), (rows, 64.min(1000 - rows)));
            rows += band.len();
            for i in 0..band.len() {
                band.row(i, &mut row);
                values.extend_from_slice(&row);
            }
            Ok(())
        })
        .unwrap();
        // By bits: an infinity or a NaN must be the same one too.
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(rows == 1000 && bits(&values) == bits(&t.to_f32().unwrap()), "{t:?}");
    }
}

#[test]
fn halves_are_converted_as_one_by_one() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let halves = LazyTensor::new(DType::F16, vec![1 << 16], Arc::new(all.clone()));
    for (i, wide) in halves.to_f32().unwrap().into_iter().enumerate() {
        let one = half::f16::from_bits(i as u16).to_f32();
        assert!(wide.to_bits() == one.to_bits() || wide.is_nan() && one.is_nan(), "{i:#x}");
    }
    // Halfway between fp16 values, next to it, beyond their range and below it.
    let singles: Vec<f32> = (0..1u32 << 20).map(|i| f32::from_bits(i.wrapping_mul(4097) ^ (i << 13))).collect();
    let narrow = LazyTensor::from_f32(&[singles.len()], &singles).cast(DType::F16);
    for (bytes, single) in narrow.bytes().unwrap().as_chunks::<2>().0.iter().zip(&singles) {
        let (found, one) = (half::f16::from_le_bytes(*bytes), half::f16::from_f32(*single));
        assert!(found.to_bits() == one.to_bits() || found.is_nan() && one.is_nan(), "{single:e}");
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_named() {
    // In a tensor long enough to be scanned by several threads, and in a short one.
    for rows in [3usize, 4_000_000] {
        let mut bytes = vec![0u8; rows * 4 * 2];
        let infinity = half::f16::INFINITY.to_le_bytes();
        for at in [rows * 4 - 1, rows * 2 + 1, rows * 3] {
            bytes[2 * at..][..2].copy_from_slice(&infinity);
        }
        let t = LazyTensor::new(DType::F16, vec![rows, 4], Arc::new(bytes)).checked_finite("w");
        let error = t.bytes().unwrap_err();
        assert_eq!(error.code(), Code::CHECKPOINT_NONFINITE);
        let index = show(&[(rows * 2 + 1) / 4, (rows * 2 + 1) % 4]);
        assert!(error.message().contains(&index), "{error} {index}");
    }
}
