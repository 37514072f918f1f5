//! Streaming separable resampling: rows of the file in, the conformed volume out.
//!
//! In: decoded rows along the file's first axis, in file order, any number at a time. Out: f32 voxels in the model's
//! order `[k][j][i]` (k inferior→superior, j posterior→anterior, i left→right), 0 outside the file.
//!
//! Each row is resampled along axis 0, each complete slice along axis 1, and two neighbouring slices give the output
//! planes between them along axis 2. Held besides the output: one slice, three planes, and one tile of planes where
//! the scan's third axis runs left–right. That tile (and the blocks of `scatter`) exist for the cache: without
//! them a sagittal scan would write one 4-byte voxel to each of 65,536 cache lines per plane.

use super::axis::AxisMap;

/// One cache line of f32.
const TILE: usize = 16;

/// Smallest and largest value seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub min: f32,
    pub max: f32,
}

impl Range {
    pub(super) const EMPTY: Range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY };

    /// Takes in finite values. Lane by lane, so that it compiles to vector minima.
    pub(super) fn include(&mut self, values: &[f32]) {
        let (blocks, rest) = values.as_chunks::<TILE>();
        let (mut low, mut high) = ([self.min; TILE], [self.max; TILE]);
        for block in blocks {
            for lane in 0..TILE {
                low[lane] = if block[lane] < low[lane] { block[lane] } else { low[lane] };
                high[lane] = if block[lane] > high[lane] { block[lane] } else { high[lane] };
            }
        }
        self.min = rest.iter().chain(&low).copied().fold(self.min, f32::min);
        self.max = rest.iter().chain(&high).copied().fold(self.max, f32::max);
    }
}

/// The resampler of one volume.
pub(super) struct Resampler {
    axes: [AxisMap; 3],
    /// Output strides of the file's axes.
    strides: [usize; 3],
    /// The file axis that runs left–right, whose voxels lie side by side in the output.
    fast: usize,
    /// Rows in a slice of the file.
    rows: usize,
    row_length: usize,
    /// Position in the file: slice and row.
    slice: usize,
    row: usize,
    /// The slice being filled, resampled along axis 0.
    slice_x: Vec<f32>,
    previous: Vec<f32>,
    current: Vec<f32>,
    /// Output planes that wait to be written together.
    tile: Vec<f32>,
    /// The aligned group of outputs along axis 2 that the tile holds: first and end.
    held: Option<(usize, usize)>,
    /// Outputs along axis 2, as offsets into the taps, in the order their slices arrive.
    emitted: usize,
    out: Vec<f32>,
    range: Range,
}

impl Resampler {
    /// `axes` in file order, each landing on the axis `world` of an output of `grid` voxels; `out` holds its zeros.
    pub(super) fn new(
        shape: [usize; 3],
        axes: [AxisMap; 3],
        world: [usize; 3],
        grid: [usize; 3],
        out: Vec<f32>,
    ) -> Self {
        let strides = world.map(|w| [1, grid[0], grid[0] * grid[1]][w]);
        // not by the stride: in a grid one voxel wide several axes have stride 1
        let fast = world.iter().position(|&w| w == 0).unwrap_or(0);
        let (m0, m1) = (axes[0].len(), axes[1].len());
        let plane = m0 * m1;
        let mut range = Range::EMPTY;
        if plane * axes[2].len() < out.len() {
            range.include(&[0.0]);
        }
        Self {
            strides,
            fast,
            rows: shape[1],
            row_length: shape[0],
            slice: 0,
            row: 0,
            slice_x: vec![0.0; m0 * shape[1]],
            previous: vec![0.0; plane],
            current: vec![0.0; plane],
            tile: vec![0.0; if fast == 2 { plane * TILE } else { plane }],
            held: None,
            emitted: 0,
            out,
            range,
            axes,
        }
    }

    /// Accepts complete rows in file order.
    pub(super) fn push(&mut self, values: &[f32]) {
        let m0 = self.axes[0].len();
        for row in values.chunks_exact(self.row_length) {
            if let Some(out) = self.slice_x.get_mut(self.row * m0..(self.row + 1) * m0) {
                self.axes[0].apply(row, out);
            }
            self.row += 1;
            if self.row == self.rows {
                self.row = 0;
                self.finish_slice();
                self.slice += 1;
            }
        }
    }

    /// The output and its extremes.
    pub(super) fn finish(mut self) -> (Vec<f32>, Range) {
        self.flush();
        (self.out, self.range)
    }

    /// The next output along axis 2, as an offset into the taps, if slice `self.slice` completes it.
    fn due(&self) -> Option<usize> {
        let axis = &self.axes[2];
        let offset = if axis.flipped { axis.len().checked_sub(self.emitted + 1)? } else { self.emitted };
        axis.taps.get(offset).filter(|tap| tap.next() <= self.slice).map(|_| offset)
    }

    /// Whether any output still to come needs this slice.
    fn slice_is_needed(&self) -> bool {
        let axis = &self.axes[2];
        let next = if axis.flipped { axis.len().checked_sub(self.emitted + 1) } else { Some(self.emitted) };
        next.and_then(|offset| axis.taps.get(offset)).is_some_and(|tap| tap.at <= self.slice)
    }

    fn finish_slice(&mut self) {
        std::mem::swap(&mut self.previous, &mut self.current);
        if !self.slice_is_needed() {
            return;
        }
        let m0 = self.axes[0].len();
        for (tap, out) in self.axes[1].taps.iter().zip(self.current.chunks_exact_mut(m0)) {
            let (a, b) = (&self.slice_x[tap.at * m0..][..m0], &self.slice_x[tap.next() * m0..][..m0]);
            mix(a, b, tap.weight, out);
        }
        while let Some(offset) = self.due() {
            self.emit(offset);
            self.emitted += 1;
        }
    }

    /// Resamples one output plane along axis 2 and hands it on.
    fn emit(&mut self, offset: usize) {
        let tap = self.axes[2].taps[offset];
        let output = self.axes[2].first + offset;
        let (first, end) = if self.fast == 2 {
            let first = (output - output % TILE).max(self.axes[2].first);
            (first, (output - output % TILE + TILE).min(self.axes[2].first + self.axes[2].len()))
        } else {
            (output, output + 1)
        };
        if self.held.is_some_and(|held| held != (first, end)) {
            self.flush();
        }
        self.held = Some((first, end));
        let plane = self.current.len();
        let out = &mut self.tile[(output - first) * plane..][..plane];
        // An output on a slice needs that slice alone, and it is the current one: outputs leave as soon as they can.
        let first_slice = if tap.at == self.slice { &self.current } else { &self.previous };
        mix(first_slice, &self.current, tap.weight, out);
        self.range.include(out);
        if self.fast != 2 {
            self.flush();
        }
    }

    /// Writes the waiting planes to the output.
    fn flush(&mut self) {
        let Some((first, end)) = self.held.take() else { return };
        let [s0, s1, s2] = self.strides;
        let (m0, m1) = (self.axes[0].len(), self.axes[1].len());
        let base = self.axes[0].first * s0 + self.axes[1].first * s1 + first * s2;
        if self.fast == 0 {
            for (y, row) in self.tile.chunks_exact(m0).take(m1).enumerate() {
                self.out[base + y * s1..][..m0].copy_from_slice(row);
            }
        } else if self.fast == 1 {
            for y in (0..m1).step_by(TILE) {
                let columns = Lanes { count: TILE.min(m1 - y), stride: m0 };
                scatter(&self.tile[y * m0..], &mut self.out[base + y..], columns, [(m0, 1, s0), (1, 0, 0)]);
            }
        } else {
            let planes = Lanes { count: end - first, stride: m0 * m1 };
            // The inner loop runs along the smaller output stride: fewer memory pages in flight.
            let (x, y) = ((m0, 1, s0), (m1, m0, s1));
            let loops = if s0 < s1 { [x, y] } else { [y, x] };
            scatter(&self.tile, &mut self.out[base..], planes, loops);
        }
    }
}

/// `a + weight · (b − a)`, voxel by voxel.
fn mix(a: &[f32], b: &[f32], weight: f32, out: &mut [f32]) {
    if weight == 0.0 {
        out.copy_from_slice(a);
    } else {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a + weight * (b - a);
        }
    }
}

/// Values that lie `stride` apart in the source and side by side in the output.
#[derive(Clone, Copy)]
struct Lanes {
    count: usize,
    stride: usize,
}

/// Gathers lanes and writes them contiguously, over two loops of `(count, source stride, output stride)`, the first
/// the inner one.
fn scatter(source: &[f32], out: &mut [f32], lanes: Lanes, loops: [(usize, usize, usize); 2]) {
    let [(inner, inner_from, inner_to), (outer, outer_from, outer_to)] = loops;
    for y in 0..outer {
        for x in 0..inner {
            let from = &source[y * outer_from + x * inner_from..];
            let to = &mut out[y * outer_to + x * inner_to..][..lanes.count];
            for (to, from) in to.iter_mut().zip(from.iter().step_by(lanes.stride)) {
                *to = *from;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resamples a whole volume, pushing `step` rows at a time.
    fn run(n: [usize; 3], world: [usize; 3], flipped: [bool; 3], shape: [usize; 3], step: usize) -> Vec<f32> {
        let axes = [0, 1, 2].map(|a| AxisMap::new(n[a], 1.0, flipped[a], shape[world[a]], 0.7));
        let values: Vec<f32> = (0..n.iter().product::<usize>()).map(|i| (i * 37 % 101) as f32).collect();
        let out = vec![0.0; shape.iter().product()];
        let mut resampler = Resampler::new(n, axes, world, shape, out);
        for rows in values.chunks(n[0] * step) {
            resampler.push(rows);
        }
        resampler.finish().0
    }

    #[test]
    fn every_axis_order_and_any_number_of_rows_at_a_time() {
        for shape in [[12, 20, 37], [1, 2, 1], [2, 1, 1], [1, 5, 30]] {
            every_axis_order(shape);
        }
    }

    fn every_axis_order(shape: [usize; 3]) {
        // Axis orders differ only in where values land: the RAS result, transposed, is the oracle.
        let n = [7, 9, 11];
        for world in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for flips in 0..8 {
                let flipped = [flips & 1 > 0, flips & 2 > 0, flips & 4 > 0];
                let got = run(n, world, flipped, shape, 1);
                assert_eq!(got, run(n, world, flipped, shape, 5));
                let straight = run(n, [0, 1, 2], flipped, world.map(|w| shape[w]), 63);
                let (a0, a1) = (shape[world[0]], shape[world[1]]);
                for (at, v) in straight.iter().enumerate() {
                    let index = [at % a0, at / a0 % a1, at / a0 / a1];
                    let mut ras = [0; 3];
                    (0..3).for_each(|a| ras[world[a]] = index[a]);
                    assert_eq!(got[ras[0] + shape[0] * (ras[1] + shape[1] * ras[2])], *v, "{world:?} {flipped:?}");
                }
            }
        }
    }

    #[test]
    fn range_matches_a_plain_fold() {
        let values: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 997) as f32 - 300.0).collect();
        let mut range = Range::EMPTY;
        values.chunks(37).for_each(|c| range.include(c));
        assert_eq!((range.min, range.max), (-300.0, 696.0));
    }
}
