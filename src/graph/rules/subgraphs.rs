//! Rules of operators that run a graph of their own.

use super::{Answer, Call};
use crate::graph::op::Attribute;
use crate::graph::types::{Dim, ValueType};

impl Call<'_> {
    /// `Scan` without state: operands are read slice by slice along axis 0, and results are stacked along axis 0.
    pub(super) fn scan(&self) -> Answer<Vec<ValueType>> {
        let Some(Attribute::Graph(body)) = self.op.get("body") else { return Err("Scan has no body".to_owned()) };
        let body = body.graph();
        if self.op.get_int("num_scan_inputs", 0) != self.inputs.len() as i64 || self.inputs.is_empty() {
            return Err("only a Scan without state has a rule".to_owned());
        }
        if body.inputs.len() != self.inputs.len() {
            return Err(format!("the body takes {} operands, not {}", body.inputs.len(), self.inputs.len()));
        }
        let mut steps = Dim::Any;
        for (i, &inner) in body.inputs.iter().enumerate() {
            let (outer, inner) = (self.ty(i)?, &body.value(inner).ty);
            let [first, rest @ ..] = outer.shape.as_slice() else { return Err(format!("cannot scan {outer}")) };
            let slice = ValueType::new(outer.dtype, rest);
            steps = steps.unify(*first).ok_or_else(|| format!("{outer} has not {steps} slices"))?;
            if slice != *inner {
                return Err(format!("slices of {outer} are {slice}, the body takes {inner}"));
            }
        }
        let stacked = |id: &crate::graph::ValueId| {
            let ty = &body.value(*id).ty;
            ValueType::new(ty.dtype, [&[steps], ty.shape.as_slice()].concat())
        };
        Ok(body.outputs.iter().map(stacked).collect())
    }
}
