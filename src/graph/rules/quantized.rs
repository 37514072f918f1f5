//! Rules of operators over quantized numbers.

use super::{Answer, Call};
use crate::graph::op::Attribute;
use crate::graph::types::{Dim, ValueType};
use crate::tensor::DType;

impl Call<'_> {
    /// The type of operand `i` when it is an 8-bit integer.
    fn byte(&self, i: usize) -> Answer<&ValueType> {
        let ty = self.ty(i)?;
        if matches!(ty.dtype, DType::U8 | DType::I8) { Ok(ty) } else { Err(format!("operand {i} is {ty}, not 8 bits")) }
    }

    /// `QuantizeLinear` with one scale and one zero point; the zero point's type is the result's.
    pub(super) fn quantize_linear(&self) -> Answer<ValueType> {
        let (x, scale, zero) = (self.float(0)?, self.float(1)?, self.byte(2)?);
        if scale.dtype != x.dtype || !scale.shape.is_empty() || !zero.shape.is_empty() {
            return Err(format!("cannot quantize {x} with {scale} and {zero}"));
        }
        Ok(ValueType::new(zero.dtype, x.shape.clone()))
    }

    /// `DequantizeLinear` with one scale, or one for each index of `axis`.
    pub(super) fn dequantize_linear(&self) -> Answer<ValueType> {
        let (x, scale, zero) = (self.ty(0)?, self.float(1)?, self.ty(2)?);
        let fits = match scale.shape.as_slice() {
            [] => true,
            [n] => {
                let axis = self.axis(self.op.get_int("axis", 1), x.shape.len())?;
                x.shape[axis].unify(*n).is_some()
            }
            _ => false,
        };
        let integer = matches!(x.dtype, DType::U8 | DType::I8 | DType::I32);
        if !fits || !integer || zero.dtype != x.dtype || zero.shape != scale.shape {
            return Err(format!("cannot dequantize {x} with {scale} and {zero}"));
        }
        Ok(ValueType::new(scale.dtype, x.shape.clone()))
    }

    /// `MatMulInteger` of `[.., M, K]` and `[K, N]`, with one zero point for the first.
    pub(super) fn matmul_integer(&self) -> Answer<ValueType> {
        self.integer_product(2).map(|shape| ValueType::new(DType::I32, shape))
    }

    /// `com.microsoft.MatMulIntegerToFloat`: the same, times one scale and one scale a column.
    pub(super) fn matmul_integer_to_float(&self) -> Answer<ValueType> {
        let (a_scale, b_scale) = (self.float(2)?, self.float(3)?);
        let shape = self.integer_product(4)?;
        let column = shape.last().copied().unwrap_or(Dim::Any);
        if !a_scale.shape.is_empty() || *b_scale != ValueType::new(a_scale.dtype, [column]) {
            return Err(format!("cannot scale a product of {column} columns by {a_scale} and {b_scale}"));
        }
        Ok(ValueType::new(a_scale.dtype, shape))
    }

    /// Shape of the product of bytes `[.., M, K]` and `[K, N]`; operand `zero` is the first's zero point.
    fn integer_product(&self, zero: usize) -> Answer<Vec<Dim>> {
        let (a, b, zero) = (self.byte(0)?, self.byte(1)?, self.byte(zero)?);
        let fail = || format!("cannot multiply {a} (zero point {zero}) by {b}");
        let ([rows @ .., k], [k2, n]) = (a.shape.as_slice(), b.shape.as_slice()) else { return Err(fail()) };
        if rows.is_empty() || k.unify(*k2).is_none() || zero.dtype != a.dtype || !zero.shape.is_empty() {
            return Err(fail());
        }
        Ok([rows, &[*n]].concat())
    }

    /// `com.microsoft.MatMulNBits`: `[.., K]` by blocks of `[N, K]`, with scales and zero points of each block.
    pub(super) fn matmul_nbits(&self) -> Answer<ValueType> {
        let a = self.float(0)?;
        let size = |name: &str| usize::try_from(self.op.get_int(name, 0)).unwrap_or(0);
        let (k, n, bits, block) = (size("K"), size("N"), size("bits"), size("block_size"));
        if !matches!(bits, 4 | 8) || block < 16 || !block.is_power_of_two() || n == 0 {
            return Err(format!("no product of {bits}-bit blocks of {block}"));
        }
        if !matches!(self.op.get("accuracy_level"), Some(Attribute::Int(0..=4))) {
            return Err("MatMulNBits has no accuracy level".to_owned());
        }
        let blocks = k.div_ceil(block);
        let mut expected =
            vec![ValueType::known(DType::U8, &[n, blocks, block * bits / 8]), ValueType::known(a.dtype, &[n * blocks])];
        if self.inputs.len() > 3 {
            expected.push(ValueType::known(DType::U8, &[n * (blocks * bits).div_ceil(8)]));
        }
        for (i, expected) in expected.iter().enumerate() {
            if self.ty(i + 1)? != expected {
                return Err(format!("operand {} is {}, expected {expected}", i + 1, self.ty(i + 1)?));
            }
        }
        match a.shape.as_slice() {
            [rows @ .., last] if last.unify(Dim::Known(k)).is_some() && !rows.is_empty() => {
                Ok(ValueType::new(a.dtype, [rows, &[Dim::Known(n)]].concat()))
            }
            _ => Err(format!("cannot multiply {a} by blocks of [{n}, {k}]")),
        }
    }
}
