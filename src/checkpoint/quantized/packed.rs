//! GPTQ's and AWQ's packed integers, as the formula that makes floats of them.
//!
//! Both hold, for a linear layer of `n` inputs and `m` outputs in groups of inputs, `scales [groups, m]`, `qzeros` and
//! `qweight` (int32 words), and mean `W[o, i] = scales[g, o] · (q[i, o] − zero[g, o])`, g being the group of input i.
//!
//! - GPTQ (AutoGPTQ's `QuantLinear`): `qweight [n · bits / 32, m]`, the bits of an output's inputs one after the other
//!   down its column; `qzeros [groups, m · bits / 32]` likewise along a row. What is stored is the zero less 1 (in 2,
//!   3, 4 or 8 bits, so that it wraps), but for `checkpoint_format: gptq_v2`. `g_idx [n]` is each input's group.
//! - AWQ (AutoAWQ's `gemm`): 4 bits, `qweight [n, m / 8]`, `qzeros [groups, m / 8]`; a word's nibbles, from the lowest
//!   on, are outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight. Zeros are stored as they are.
//!
//! The products are exact in float32: a scale has 11 bits, the difference at most 9.

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::Result;
use crate::tensor::number::to_usize;
use crate::tensor::{Fill, Formula, LazyTensor, computed};

/// Where an output's nibble lies in AWQ's word.
const AWQ_PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How integers lie in their words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Layout {
    /// GPTQ's; whether zeros are stored less 1.
    Gptq { less_one: bool },
    /// AWQ's `gemm`.
    Awq,
}

/// A packed layer, whose shapes the caller has compared.
#[derive(Clone)]
pub(super) struct Packed {
    pub layout: Layout,
    pub bits: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub group_size: usize,
    /// Each input's group, where it is not its number over the group size. Below the number of groups.
    pub groups: Option<Arc<[u32]>>,
    pub words: LazyTensor,
    pub zeros: LazyTensor,
    pub scales: LazyTensor,
    /// Whether rows are inputs: the transpose of a weight.
    pub by_input: bool,
}

impl Packed {
    /// The weight, `[outputs, inputs]` in float32.
    pub fn weight(self) -> LazyTensor {
        let (rows, cols) = if self.by_input { (self.inputs, self.outputs) } else { (self.outputs, self.inputs) };
        computed(rows, cols, Arc::new(self))
    }

    fn group(&self, input: usize) -> usize {
        self.groups.as_ref().map_or(input / self.group_size, |groups| to_usize(groups[input]))
    }

    fn mask(&self) -> u32 {
        (1 << self.bits) - 1
    }
}

impl Formula for Packed {
    fn prepare(&self) -> Result<Box<dyn Fill + '_>> {
        let (words, packed_zeros) = (self.words.bytes()?, self.zeros.bytes()?);
        let row = self.zeros.shape()[1];
        let groups = self.zeros.shape()[0];
        let less_one = self.layout == Layout::Gptq { less_one: true };
        let mut zeros = Vec::with_capacity(groups * self.outputs);
        for group in 0..groups {
            for output in 0..self.outputs {
                let stored = match self.layout {
                    Layout::Gptq { .. } => {
                        let at = output * self.bits;
                        bits(|word| word_at(&packed_zeros, group * row + word), at) & self.mask()
                    }
                    Layout::Awq => word_at(&packed_zeros, group * row + output / 8) >> (4 * AWQ_PLACE[output % 8]) & 15,
                };
                zeros.push(small(if less_one { (stored + 1) & self.mask() } else { stored }));
            }
        }
        let scales = self.scales.to_f32()?;
        Ok(Box::new(Prepared { layer: self, words, zeros, scales }))
    }

    fn transposed(&self) -> LazyTensor {
        Self { by_input: !self.by_input, ..self.clone() }.weight()
    }

    fn release(&self) {
        self.words.release();
    }
}

struct Prepared<'a> {
    layer: &'a Packed,
    words: Cow<'a, [u8]>,
    zeros: Vec<f32>,
    scales: Vec<f32>,
}

impl Prepared<'_> {
    fn value(&self, input: usize, output: usize, group: usize) -> f32 {
        let layer = self.layer;
        let stored = match layer.layout {
            Layout::Gptq { .. } => {
                let at = input * layer.bits;
                bits(|word| word_at(&self.words, word * layer.outputs + output), at) & layer.mask()
            }
            Layout::Awq => {
                let word = word_at(&self.words, input * (layer.outputs / 8) + output / 8);
                word >> (4 * AWQ_PLACE[output % 8]) & 15
            }
        };
        let at = group * layer.outputs + output;
        self.scales[at] * (small(stored) - self.zeros[at])
    }
}

impl Fill for Prepared<'_> {
    fn rows(&self, first: usize, out: &mut [f32]) {
        let layer = self.layer;
        if layer.by_input {
            for (input, row) in (first..).zip(out.chunks_mut(layer.outputs)) {
                let group = layer.group(input);
                row.iter_mut().enumerate().for_each(|(output, to)| *to = self.value(input, output, group));
            }
            return;
        }
        // Along the words of one input, which are neighbours.
        let outputs = first..first + out.len() / layer.inputs;
        for input in 0..layer.inputs {
            let group = layer.group(input);
            for output in outputs.clone() {
                out[(output - first) * layer.inputs + input] = self.value(input, output, group);
            }
        }
    }
}

/// The 32 bits from bit `at` of a row of words on (fewer at the row's end).
fn bits(word: impl Fn(usize) -> u32, at: usize) -> u32 {
    let (index, shift) = (at / 32, at % 32);
    let low = word(index) >> shift;
    // Only 3 bits cross a word: at 30 and at 31.
    if shift > 29 { low | word(index + 1) << (32 - shift) } else { low }
}

fn word_at(words: &[u8], index: usize) -> u32 {
    words.as_chunks::<4>().0.get(index).map_or(0, |b| u32::from_le_bytes(*b))
}

/// A number of at most 8 bits.
fn small(number: u32) -> f32 {
    f32::from(number.to_le_bytes()[0])
}
