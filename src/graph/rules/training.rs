//! Rules of operators that only training uses.

use super::{Answer, Call};
use crate::graph::types::{Dim, ValueType};
use crate::tensor::DType;

impl Call<'_> {
    /// `com.microsoft.InPlaceAccumulatorV2` over a buffer, what is added to it, and a bool `[1]` that empties it
    /// before.
    pub(super) fn accumulate(&self) -> Answer<Vec<ValueType>> {
        let (buffer, value, reset) = (self.float(0)?, self.float(1)?, self.ty(2)?);
        let flag = ValueType::new(DType::Bool, [Dim::Known(1)]);
        if buffer.unify(value).is_none() || *reset != flag {
            return Err(format!("cannot add {value} to the buffer {buffer}, reset by {reset}"));
        }
        Ok(vec![flag, buffer.clone()])
    }
}
