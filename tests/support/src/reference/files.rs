//! Reading and writing safetensors as [`Weights`].

use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{Array, Weights};

/// Every tensor of a file, widened to `f64`.
pub fn read_safetensors(path: &Path) -> Weights {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(n, t)| (n.to_owned(), Array::new(t.shape(), widen(t.dtype(), t.data())))).collect()
}

/// Little-endian elements as `f64`.
fn widen(dtype: Dtype, b: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(b: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        b.chunks_exact(N).map(|c| f(c.try_into().unwrap())).collect()
    }
    match dtype {
        Dtype::F64 => each(b, f64::from_le_bytes),
        Dtype::F32 => each(b, |x| f32::from_le_bytes(x).into()),
        Dtype::F16 => each(b, |x| f16::from_le_bytes(x).into()),
        Dtype::BF16 => each(b, |x| bf16::from_le_bytes(x).into()),
        Dtype::I64 => each(b, |x| i64::from_le_bytes(x) as f64),
        d => panic!("dtype {d:?}"),
    }
}

/// The nearest value that `dtype` (F64, F32, F16 or BF16) stores.
pub fn round_to(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::F64 => x,
        Dtype::F32 => (x as f32).into(),
        Dtype::F16 => f16::from_f64(x).into(),
        Dtype::BF16 => bf16::from_f64(x).into(),
        d => panic!("dtype {d:?}"),
    }
}

/// Little-endian bytes of `x` in `dtype`.
fn narrow(dtype: Dtype, x: &[f64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(x.len() * 8);
    for &v in x {
        match dtype {
            Dtype::F64 => out.extend(v.to_le_bytes()),
            Dtype::F32 => out.extend((v as f32).to_le_bytes()),
            Dtype::F16 => out.extend(f16::from_f64(v).to_le_bytes()),
            Dtype::BF16 => out.extend(bf16::from_f64(v).to_le_bytes()),
            Dtype::I64 => out.extend((v as i64).to_le_bytes()),
            d => panic!("dtype {d:?}"),
        }
    }
    out
}

/// Writes tensors with a dtype each, under the metadata PyTorch's tools write.
pub fn write_safetensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (String, Dtype, &'a Array)>) {
    let raw: Vec<_> = tensors.into_iter().map(|(n, d, a)| (n, d, a.shape.clone(), narrow(d, &a.data))).collect();
    let views = raw.iter().map(|(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}
