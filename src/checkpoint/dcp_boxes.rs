//! Boxes of a tensor, put together: what several processes hold of it, each a box of whole elements.
//!
//! Flows in: the whole shape `[..]` and boxes: offsets `[..]` and a lazy tensor of the box's sizes, all of one dtype.
//! Flows out: one lazy tensor, row-major. Boxes that are there twice (replicas) count once, empty ones not at all.
//!
//! # Errors
//! `checkpoint.corrupt` when a box reaches outside the shape, when boxes overlap, or when they leave a gap.
//!
//! # Safety
//! No `unsafe`. That boxes fill the shape is proved before a source is made: their elements are as many as the shape's,
//! and no cell between their cuts is taken twice. Cells are bounded by the number of boxes: shardings over a mesh have
//! one cell a box.

use std::borrow::Cow;
use std::sync::Arc;

use super::strided::advance;
use crate::error::{Code, Error, Result};
use crate::tensor::{CHUNK_BYTES, DType, LazyTensor, Sink, Source, numel, show};

/// Cells for each box. A box that does not lie in a mesh is cut by the edges of others.
const CELLS_PER_BOX: usize = 64;

/// A part of a tensor.
pub(super) struct Boxed {
    /// Where it begins on each axis.
    pub offsets: Vec<usize>,
    /// Its elements; its shape is the box's size.
    pub tensor: LazyTensor,
}

/// The tensor of shape `shape` that `boxes` make.
pub(super) fn assemble(dtype: DType, shape: &[usize], mut boxes: Vec<Boxed>) -> Result<LazyTensor> {
    let elements = numel(shape).filter(|n| n.checked_mul(dtype.size()).is_some());
    let elements = elements.ok_or_else(|| corrupt(format!("shape {} overflows", show(shape))))?;
    for part in &boxes {
        let (offsets, sizes) = (&part.offsets, part.tensor.shape());
        let inside = |(&whole, (&offset, &size)): (&usize, (&usize, &usize))| {
            offset.checked_add(size).is_some_and(|end| end <= whole)
        };
        let fits = offsets.len() == shape.len() && sizes.len() == shape.len();
        if !fits || !shape.iter().zip(offsets.iter().zip(sizes)).all(inside) {
            let (offsets, sizes, shape) = (show(offsets), show(sizes), show(shape));
            return Err(corrupt(format!("a chunk of shape {sizes} at {offsets} reaches outside its shape {shape}")));
        }
    }
    boxes.retain(|part| !part.tensor.is_empty());
    boxes.sort_by(|a, b| (&a.offsets, a.tensor.shape()).cmp(&(&b.offsets, b.tensor.shape())));
    boxes.dedup_by(|a, b| a.offsets == b.offsets && a.tensor.shape() == b.tensor.shape());
    if elements == 0 {
        return Ok(LazyTensor::new(dtype, shape.to_vec(), Arc::new(Vec::new())));
    }
    let held = boxes.iter().try_fold(0usize, |sum, part| sum.checked_add(part.tensor.len()));
    if held != Some(elements) {
        let (n, held) = (boxes.len(), held.map_or_else(|| "far more".to_owned(), |h| h.to_string()));
        let what = format!("its {n} chunks hold {held} elements, its shape {} has {elements}", show(shape));
        return Err(corrupt(format!("{what}: chunks overlap, or some are missing")));
    }
    if let [only] = boxes.as_slice() {
        return Ok(only.tensor.clone());
    }
    let cuts = cuts(shape, &boxes);
    let cells = cells(&cuts, &boxes)?;
    let last = cuts.iter().rposition(|cuts| cuts.len() > 2).unwrap_or(0);
    if last == 0 {
        let parts: Vec<LazyTensor> = boxes.into_iter().map(|part| part.tensor).collect();
        return Ok(LazyTensor::concat(&parts));
    }
    let mosaic = Mosaic { size: dtype.size(), shape: shape.to_vec(), last, cuts, cells, boxes };
    Ok(LazyTensor::new(dtype, shape.to_vec(), Arc::new(mosaic)))
}

/// Each axis's edges of boxes, sorted: 0 first and the axis's length last.
fn cuts(shape: &[usize], boxes: &[Boxed]) -> Vec<Vec<usize>> {
    let of_axis = |axis: usize| {
        let edges = boxes.iter().flat_map(|part| {
            let from = part.offsets[axis];
            [from, from + part.tensor.shape()[axis]]
        });
        let mut edges: Vec<usize> = edges.chain([0, shape[axis]]).collect();
        edges.sort_unstable();
        edges.dedup();
        edges
    };
    (0..shape.len()).map(of_axis).collect()
}

/// Which box each cell between the cuts belongs to, row-major.
fn cells(cuts: &[Vec<usize>], boxes: &[Boxed]) -> Result<Vec<usize>> {
    let counts: Vec<usize> = cuts.iter().map(|cuts| cuts.len() - 1).collect();
    let limit = CELLS_PER_BOX * (boxes.len() + 1);
    let Some(total) = numel(&counts).filter(|&n| n <= limit) else {
        let n = boxes.len();
        return Err(corrupt(format!("its {n} chunks cut it into more than {limit} pieces: no sharding does")));
    };
    let mut cells = vec![usize::MAX; total];
    for (number, part) in boxes.iter().enumerate() {
        let first: Vec<usize> = part.offsets.iter().zip(cuts).map(|(o, cuts)| place(cuts, *o)).collect();
        let ends = part.offsets.iter().zip(part.tensor.shape()).zip(cuts).map(|((o, n), cuts)| place(cuts, o + n));
        let spans: Vec<usize> = ends.zip(&first).map(|(end, first)| end - first).collect();
        let mut index = vec![0; spans.len()];
        loop {
            let at = index.iter().zip(&first).zip(&counts).fold(0, |at, ((i, first), count)| at * count + first + i);
            if cells[at] != usize::MAX {
                return Err(corrupt("two of its chunks overlap".into()));
            }
            cells[at] = number;
            if !advance(&mut index, &spans) {
                break;
            }
        }
    }
    Ok(cells)
}

/// The number of the cut at `at`, or of the last one before it.
fn place(cuts: &[usize], at: usize) -> usize {
    cuts.partition_point(|&cut| cut <= at) - 1
}

/// Boxes that fill a shape which is cut along axis `last` (not the first) or more; later axes are whole.
struct Mosaic {
    size: usize,
    shape: Vec<usize>,
    last: usize,
    cuts: Vec<Vec<usize>>,
    cells: Vec<usize>,
    boxes: Vec<Boxed>,
}

impl Source for Mosaic {
    /// Runs along the last axis that is cut, box by box. Boxes lie in a mapping; one that does not is held whole.
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let bytes: Vec<Cow<'_, [u8]>> = self.boxes.iter().map(|part| part.tensor.bytes()).collect::<Result<_>>()?;
        let inner = self.shape[self.last + 1..].iter().product::<usize>() * self.size;
        let outer = &self.shape[..self.last];
        let runs: Vec<(usize, usize)> = self.cuts[self.last].windows(2).map(|w| (w[0], w[1] - w[0])).collect();
        let mut index = vec![0usize; outer.len()];
        let mut out = Vec::with_capacity(CHUNK_BYTES);
        loop {
            let row = index.iter().zip(&self.cuts);
            let row = row.fold(0, |at, (&i, cuts)| at * (cuts.len() - 1) + place(cuts, i)) * runs.len();
            for (cell, &(from, len)) in runs.iter().enumerate() {
                let number = self.cells[row + cell];
                let part = &self.boxes[number];
                let position = index.iter().chain([&from]).zip(part.offsets.iter().zip(part.tensor.shape()));
                let start = position.fold(0, |at, (i, (offset, size))| at * size + (i - offset)) * inner;
                for piece in bytes[number][start..start + len * inner].chunks(CHUNK_BYTES) {
                    if out.len() + piece.len() > CHUNK_BYTES {
                        sink(&out)?;
                        out.clear();
                    }
                    out.extend_from_slice(piece);
                }
            }
            if !advance(&mut index, outer) {
                break;
            }
        }
        self.boxes.iter().for_each(|part| part.tensor.release());
        sink(&out)
    }

    fn release(&self) {
        self.boxes.iter().for_each(|part| part.tensor.release());
    }
}

fn corrupt(message: String) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(offsets: &[usize], shape: &[usize], whole: &[usize]) -> Boxed {
        let mut values = Vec::new();
        let mut index = vec![0usize; shape.len()];
        if shape.iter().all(|&n| n > 0) {
            loop {
                let at = index
                    .iter()
                    .zip(offsets)
                    .zip(whole)
                    .fold(0usize, |at, ((i, o), n)| at.wrapping_mul(*n).wrapping_add(i.wrapping_add(*o)));
                values.push(at as f32);
                if !advance(&mut index, shape) {
                    break;
                }
            }
        }
        Boxed { offsets: offsets.to_vec(), tensor: LazyTensor::from_f32(shape, &values) }
    }

    fn message(shape: &[usize], boxes: Vec<Boxed>) -> String {
        let error = assemble(DType::F32, shape, boxes).unwrap_err();
        assert_eq!(error.code(), Code::CHECKPOINT_CORRUPT);
        error.message().to_owned()
    }

    proptest! {
        /// A mesh of uneven cuts along every axis, its boxes in any order, some of them twice.
        #[test]
        fn a_mesh_of_boxes_is_the_tensor(
            shape in prop::collection::vec(1usize..7, 0..5),
            seeds in prop::collection::vec(prop::collection::vec(0usize..7, 0..3), 5),
            turn in 0usize..99,
        ) {
            let cuts: Vec<Vec<usize>> = shape.iter().zip(&seeds).map(|(&n, seed)| {
                let mut cuts: Vec<usize> = seed.iter().map(|s| s % (n + 1)).chain([0, n]).collect();
                cuts.sort_unstable();
                cuts
            }).collect();
            let counts: Vec<usize> = cuts.iter().map(|c| c.len() - 1).collect();
            let mut boxes = Vec::new();
            let mut index = vec![0; shape.len()];
            loop {
                let offsets: Vec<usize> = index.iter().zip(&cuts).map(|(&i, c)| c[i]).collect();
                let sizes: Vec<usize> = index.iter().zip(&cuts).map(|(&i, c)| c[i + 1] - c[i]).collect();
                for _ in 0..1 + turn % 2 {
                    boxes.push(part(&offsets, &sizes, &shape));
                }
                if !advance(&mut index, &counts) {
                    break;
                }
            }
            let by = turn % boxes.len();
            boxes.rotate_left(by);
            let whole = assemble(DType::F32, &shape, boxes).unwrap();
            let n = shape.iter().product::<usize>();
            prop_assert_eq!(whole.to_f32().unwrap(), (0..n).map(|i| i as f32).collect::<Vec<_>>());
            prop_assert_eq!(whole.shape(), shape);
        }
    }

    #[test]
    fn a_pinwheel_is_no_mesh_and_fills_the_shape() {
        let shape = [3, 3];
        let boxes = [([0, 0], [1, 2]), ([0, 2], [2, 1]), ([1, 0], [2, 1]), ([1, 1], [1, 1]), ([2, 1], [1, 2])];
        let boxes = boxes.map(|(o, s)| part(&o, &s, &shape)).into();
        let whole = assemble(DType::F32, &shape, boxes).unwrap();
        assert_eq!(whole.to_f32().unwrap(), (0..9u8).map(f32::from).collect::<Vec<_>>());
    }

    #[test]
    fn gaps_overlaps_and_what_lies_outside_are_refused() {
        let shape = [4, 4];
        let two = |a: ([usize; 2], [usize; 2]), b: ([usize; 2], [usize; 2])| {
            vec![part(&a.0, &a.1, &shape), part(&b.0, &b.1, &shape)]
        };
        for (boxes, words) in [
            (two(([0, 0], [2, 4]), ([3, 0], [1, 4])), "hold 12 elements"),
            (two(([0, 0], [2, 4]), ([1, 0], [2, 4])), "overlap"),
            (two(([0, 0], [2, 4]), ([1, 0], [3, 4])), "hold 20 elements"),
            (two(([0, 0], [2, 4]), ([2, 0], [3, 4])), "outside"),
            (two(([0, 0], [2, 4]), ([usize::MAX, 0], [2, 4])), "outside"),
            (Vec::new(), "0 chunks"),
        ] {
            assert!(message(&shape, boxes).contains(words), "{words}");
        }
        assert!(message(&[4], vec![part(&[0, 0], &[2, 2], &shape)]).contains("outside"));
        assert!(message(&[usize::MAX, 2], Vec::new()).contains("overflows"));
    }

    /// 40 boxes along the diagonal of five axes would be 40^5 cells.
    #[test]
    fn boxes_that_cut_each_other_to_dust_are_refused() {
        let shape = [40; 5];
        let boxes = (0..40).map(|i| Boxed { offsets: vec![i; 5], tensor: LazyTensor::zeros(&[1; 5]) });
        // As many elements as the shape has, which it takes boxes that overlap for.
        let slab = |n: usize| Boxed { offsets: vec![0; 5], tensor: LazyTensor::zeros(&[n, 40, 40, 40, 40]) };
        let mut boxes: Vec<Boxed> = boxes.chain([slab(39)]).collect();
        boxes.push(Boxed { offsets: vec![39, 0, 0, 0, 0], tensor: LazyTensor::zeros(&[1, 39, 40, 40, 40]) });
        let left = 40usize.pow(3) - 40;
        boxes.push(Boxed { offsets: vec![39, 39, 0, 0, 0], tensor: LazyTensor::zeros(&[1, 1, 39, 40, 40]) });
        boxes.push(Boxed { offsets: vec![39, 39, 39, 0, 0], tensor: LazyTensor::zeros(&[1, 1, 1, 39, 40]) });
        assert_eq!(left - 39 * 40 * 40 - 39 * 40, 0);
        assert!(message(&shape, boxes).contains("pieces"));
    }

    #[test]
    fn a_large_tensor_streams_in_bounded_chunks() {
        let half = CHUNK_BYTES / 2;
        let boxes = [0, half].map(|at| Boxed { offsets: vec![0, at], tensor: LazyTensor::zeros(&[3, half]) });
        let whole = assemble(DType::F32, &[3, 2 * half], boxes.into()).unwrap();
        let mut longest = 0;
        whole
            .stream(&mut |bytes| {
                longest = longest.max(bytes.len());
                Ok(())
            })
            .unwrap();
        assert!(longest <= CHUNK_BYTES);
    }
}
