//! Rules of operators that move elements.

use super::{Answer, Call};
use crate::graph::types::{Dim, ValueType, broadcast};
use crate::tensor::DType;

impl Call<'_> {
    /// `Reshape`: 0 copies a dimension, one -1 is inferred from the rest.
    pub(super) fn reshape(&self) -> Answer<ValueType> {
        let (x, target) = (self.ty(0)?, self.ints(1)?);
        let mut shape = Vec::with_capacity(target.len());
        for (i, &t) in target.iter().enumerate() {
            shape.push(match t {
                0 => *x.shape.get(i).ok_or_else(|| format!("{x} has no axis {i} to copy"))?,
                -1 => Dim::Any,
                n => Dim::Known(usize::try_from(n).map_err(|_| format!("dimension {n} in {target:?}"))?),
            });
        }
        // Copied names cancel; what is left must be numbers, and as many elements on both sides.
        let copied: Vec<usize> = (0..target.len()).filter(|&i| target[i] == 0).collect();
        let rest = |dims: &[Dim]| -> Option<usize> {
            let others = dims.iter().enumerate().filter(|(i, _)| !copied.contains(i));
            others.map(|(_, d)| d.known()).try_fold(1usize, |n, d| n.checked_mul(d?))
        };
        let unknown = target.iter().position(|&t| t == -1);
        let have = match (rest(&x.shape), unknown) {
            (Some(have), _) => have,
            // A name goes into what is left, which then has no number.
            (None, Some(_)) if target.iter().filter(|&&t| t == -1).count() == 1 => {
                return Ok(ValueType::new(x.dtype, shape));
            }
            (None, _) => return Err(format!("cannot reshape {x} to {target:?}")),
        };
        let want = shape.iter().enumerate().filter(|(i, _)| Some(*i) != unknown && !copied.contains(i));
        let want = want.filter_map(|(_, d)| d.known()).try_fold(1usize, usize::checked_mul);
        let want = want.ok_or_else(|| format!("cannot reshape {x} to {target:?}"))?;
        match unknown {
            Some(_) if target.iter().filter(|&&t| t == -1).count() > 1 => {
                return Err(format!("more than one -1 in {target:?}"));
            }
            Some(i) if want > 0 && have % want == 0 => shape[i] = Dim::Known(have / want),
            None if have == want => {}
            _ => return Err(format!("cannot reshape {x} to {target:?}")),
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    pub(super) fn transpose(&self) -> Answer<ValueType> {
        let (x, perm) = (self.ty(0)?, self.op.get_ints("perm"));
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if sorted != (0..x.shape.len() as i64).collect::<Vec<_>>() {
            return Err(format!("{perm:?} does not permute the axes of {x}"));
        }
        Ok(ValueType::new(x.dtype, perm.iter().map(|&p| x.shape[p as usize]).collect::<Vec<_>>()))
    }

    pub(super) fn concat(&self) -> Answer<ValueType> {
        let first = self.ty(0)?;
        let axis = self.axis(self.op.get_int("axis", 0), first.shape.len())?;
        let (mut shape, mut joined) = (first.shape.clone(), 0usize);
        for i in 0..self.inputs.len() {
            let part = self.ty(i)?;
            let fits = part.dtype == first.dtype && part.shape.len() == shape.len();
            if !fits || (0..shape.len()).any(|a| a != axis && part.shape[a].unify(shape[a]).is_none()) {
                return Err(format!("cannot join {part} to {first} along axis {axis}"));
            }
            joined +=
                part.shape[axis].known().ok_or_else(|| format!("the size of axis {axis} of {part} is not known"))?;
        }
        shape[axis] = Dim::Known(joined);
        Ok(ValueType::new(first.dtype, shape))
    }

    pub(super) fn split(&self) -> Answer<Vec<ValueType>> {
        let (x, sizes) = (self.ty(0)?, self.ints(1)?);
        let axis = self.axis(self.op.get_int("axis", 0), x.shape.len())?;
        let total = sizes.iter().try_fold(0i64, |n, &s| n.checked_add(s)).filter(|_| sizes.iter().all(|&s| s >= 0));
        if sizes.len() != self.outputs || total.is_none() || x.shape[axis].known().map(|n| n as i64) != total {
            return Err(format!("cannot split {x} into {sizes:?} along axis {axis}"));
        }
        let part = |&size: &i64| {
            let mut shape = x.shape.clone();
            shape[axis] = Dim::Known(size as usize);
            ValueType::new(x.dtype, shape)
        };
        Ok(sizes.iter().map(part).collect())
    }

    /// `Slice` along constant axes by steps of at least 1. Where a bound is computed, or the dimension has no number,
    /// the result's has none either.
    pub(super) fn slice(&self) -> Answer<ValueType> {
        let (x, axes) = (self.ty(0)?, self.ints(3)?);
        let steps = if self.inputs.len() > 4 { self.ints(4)? } else { vec![1; axes.len()] };
        let counts = [1, 2].map(|i| self.ty(i).map(|ty| ty.shape.clone()));
        let vector = [Dim::Known(axes.len())];
        if steps.len() != axes.len() || steps.iter().any(|&step| step < 1) {
            return Err(format!("slice along axes {axes:?} by {steps:?}"));
        }
        for count in counts {
            let count = count?;
            if count.len() != 1 || count[0].unify(vector[0]).is_none() {
                return Err(format!("slice along axes {axes:?} with bounds of another number"));
            }
        }
        let bounds = self.ints(1).ok().zip(self.ints(2).ok());
        let mut shape = x.shape.clone();
        for (i, &axis) in axes.iter().enumerate() {
            let axis = self.axis(axis, shape.len())?;
            let (Some(n), Some((starts, ends))) = (shape[axis].known(), &bounds) else {
                shape[axis] = Dim::Any;
                continue;
            };
            let clamp = |v: i64| (if v < 0 { v.saturating_add(n as i64) } else { v }).clamp(0, n as i64);
            let span = (clamp(ends[i]) - clamp(starts[i])).max(0) as usize;
            shape[axis] = Dim::Known(span.div_ceil(steps[i] as usize));
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    pub(super) fn pad(&self) -> Answer<ValueType> {
        let (x, pads) = (self.float(0)?, self.ints(1)?);
        let rank = x.shape.len();
        if pads.len() != 2 * rank || pads.iter().any(|&p| p < 0) {
            return Err(format!("pads {pads:?} do not fit {x}"));
        }
        let grow = |i: usize| match (pads[i] + pads[i + rank], x.shape[i]) {
            (0, dim) => Ok(dim),
            (n, Dim::Known(k)) => Ok(Dim::Known(k + n as usize)),
            (_, dim) => Err(format!("cannot pad the dimension {dim}")),
        };
        Ok(ValueType::new(x.dtype, (0..rank).map(grow).collect::<Answer<Vec<_>>>()?))
    }

    pub(super) fn unsqueeze(&self) -> Answer<ValueType> {
        let (x, axes) = (self.ty(0)?, self.ints(1)?);
        let mut shape = x.shape.clone();
        // Axes are those of the result; put in from the first to the last.
        let rank = shape.len() + axes.len();
        let mut axes = axes.iter().map(|&axis| self.axis(axis, rank)).collect::<Answer<Vec<_>>>()?;
        axes.sort_unstable();
        if axes.windows(2).any(|w| w[0] == w[1]) {
            return Err(format!("an axis of {axes:?} comes twice"));
        }
        axes.into_iter().for_each(|axis| shape.insert(axis, Dim::Known(1)));
        Ok(ValueType::new(x.dtype, shape))
    }

    /// `Squeeze` of these axes; without them of all of size 1, where each size is a number.
    pub(super) fn squeeze(&self) -> Answer<ValueType> {
        let x = self.ty(0)?;
        if self.inputs.len() < 2 {
            if x.shape.iter().any(|dim| dim.known().is_none()) {
                return Err(format!("the axes of size 1 of {x} are not known"));
            }
            let shape = x.shape.iter().copied().filter(|dim| *dim != Dim::Known(1));
            return Ok(ValueType::new(x.dtype, shape.collect::<Vec<_>>()));
        }
        let axes = self.ints(1)?;
        let mut shape = x.shape.clone();
        let mut axes = axes.iter().map(|&axis| self.axis(axis, shape.len())).collect::<Answer<Vec<_>>>()?;
        axes.sort_unstable();
        axes.dedup();
        for axis in axes.into_iter().rev() {
            if shape.remove(axis).unify(Dim::Known(1)).is_none() {
                return Err(format!("axis {axis} of {x} is not 1"));
            }
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    /// `Size`: the number of elements.
    pub(super) fn size(&self) -> Answer<ValueType> {
        Ok(ValueType::new(DType::I64, []))
    }

    /// `Range`, whose length is known to the run alone.
    pub(super) fn range(&self) -> Answer<ValueType> {
        Ok(ValueType::new(self.ty(0)?.dtype, [Dim::Any]))
    }

    pub(super) fn shape_of(&self) -> Answer<ValueType> {
        let rank = self.ty(0)?.shape.len() as i64;
        let (start, end) = (self.op.get_int("start", 0), self.op.get_int("end", rank));
        if !(0 <= start && start <= end && end <= rank) {
            return Err(format!("axes {start} to {end} of a rank {rank} value"));
        }
        Ok(ValueType::new(DType::I64, [Dim::Known((end - start) as usize)]))
    }

    /// `Gather` along one axis.
    pub(super) fn gather(&self) -> Answer<ValueType> {
        let (table, indices) = (self.ty(0)?, self.ty(1)?);
        if indices.dtype != DType::I64 || table.shape.is_empty() {
            return Err(format!("cannot gather {indices} from {table}"));
        }
        let axis = self.axis(self.op.get_int("axis", 0), table.shape.len())?;
        let (before, after) = (&table.shape[..axis], &table.shape[axis + 1..]);
        Ok(ValueType::new(table.dtype, [before, indices.shape.as_slice(), after].concat()))
    }

    /// `Expand` to a constant shape, or to one that is computed: then only its rank is known, and dimensions that
    /// cannot grow.
    pub(super) fn expand(&self) -> Answer<ValueType> {
        let (x, target) = (self.ty(0)?, self.ty(1)?);
        let fail = || format!("cannot expand {x} to a shape held by {target}");
        let [Dim::Known(rank)] = target.shape[..] else { return Err(fail()) };
        if target.dtype != DType::I64 || x.shape.len() > rank {
            return Err(fail());
        }
        let Ok(sizes) = self.ints(1) else {
            let kept = x.shape.iter().map(|&dim| if dim.known().is_some_and(|n| n != 1) { dim } else { Dim::Any });
            let grown = std::iter::repeat_n(Dim::Any, rank - x.shape.len());
            return Ok(ValueType::new(x.dtype, grown.chain(kept).collect::<Vec<_>>()));
        };
        let sizes: Option<Vec<Dim>> = sizes.iter().map(|&n| usize::try_from(n).ok().map(Dim::Known)).collect();
        let shape = sizes.and_then(|sizes| broadcast(&sizes, &x.shape));
        Ok(ValueType::new(x.dtype, shape.ok_or_else(fail)?))
    }
}
