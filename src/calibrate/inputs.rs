//! The inputs of walks over one graph, and the values that flowed into its blocks on earlier walks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Feed, Role};
use crate::tensor::Tensor;

/// Inputs for any number of walks over one graph.
///
/// A walk that visits few blocks need not run all that lie before them: it resumes at a block whose inputs an earlier
/// walk kept. The kept values are bounded: beyond the bound the inputs of every second block are kept, or every fourth,
/// and so on.
pub struct Inputs {
    feeds: Vec<Feed>,
    roles: Vec<Role>,
    max_bytes: usize,
    /// Blocks are kept whose index is a multiple of this.
    stride: usize,
    /// The values that flow into a block, for each input, by the index of the block; those of block 0 are `feeds`.
    kept: BTreeMap<usize, Vec<Feed>>,
}

impl Inputs {
    /// A feed and its role for each input. Up to `max_bytes` of values between blocks are kept in memory, besides the
    /// feeds.
    pub fn new(inputs: Vec<(Feed, Role)>, max_bytes: usize) -> Self {
        let (feeds, roles) = inputs.into_iter().unzip();
        Self { feeds, roles, max_bytes, stride: 1, kept: BTreeMap::new() }
    }

    /// The role of each input.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    /// The last block up to `block` whose inputs are kept, and these, for each input.
    pub(super) fn kept_before(&self, block: usize) -> (usize, &[Feed]) {
        self.kept.range(..=block).next_back().map_or((0, &self.feeds), |(at, feeds)| (*at, feeds))
    }

    /// Keeps the values that flow into a block, as far as the bound allows: it may thin out all that is kept, or keep
    /// nothing.
    pub(super) fn keep(&mut self, block: usize, feeds: &[Feed]) {
        if block == 0 || self.max_bytes == 0 || !block.is_multiple_of(self.stride) || self.kept.contains_key(&block) {
            return;
        }
        self.kept.insert(block, feeds.to_vec());
        while self.kept_bytes() > self.max_bytes {
            self.stride *= 2;
            self.kept.retain(|block, _| block.is_multiple_of(self.stride));
        }
    }

    /// Bytes of the tensors that are kept; many blocks read the same mask.
    fn kept_bytes(&self) -> usize {
        let tensors = |feeds: &'_ [Feed]| feeds.iter().flat_map(BTreeMap::values).map(Arc::as_ptr).collect::<Vec<_>>();
        let given: BTreeSet<*const Tensor> = tensors(&self.feeds).into_iter().collect();
        let kept: BTreeMap<*const Tensor, usize> =
            self.kept.values().flatten().flat_map(BTreeMap::values).map(|t| (Arc::as_ptr(t), bytes(t))).collect();
        kept.iter().filter(|(tensor, _)| !given.contains(*tensor)).map(|(_, bytes)| bytes).sum()
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.shape().iter().product::<usize>() * tensor.dtype().size()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(values: usize, mask: &Arc<Tensor>) -> Feed {
        let tensor = Tensor::f32(&[values], vec![0.0; values]).unwrap();
        [("x".to_owned(), Arc::new(tensor)), ("mask".to_owned(), Arc::clone(mask))].into()
    }

    #[test]
    fn what_is_kept_is_spread_evenly_and_stays_within_its_bound() {
        let mask = Arc::new(Tensor::f32(&[1000], vec![0.0; 1000]).unwrap());
        let mut inputs = Inputs::new(vec![(feed(1, &mask), Role::Both)], 4 * 25);
        for block in 0..32 {
            // Four bytes per value; the mask is an input.
            inputs.keep(block, &[feed(4, &mask)]);
            assert!(inputs.kept_bytes() <= 100);
        }
        assert_eq!(inputs.kept.keys().copied().collect::<Vec<_>>(), [8, 16, 24]);
        assert_eq!([7, 8, 23, 31].map(|block| inputs.kept_before(block).0), [0, 8, 16, 24]);

        // One that is too large by itself, and a bound of nothing.
        for max_bytes in [0, 15] {
            let mut inputs = Inputs::new(vec![(feed(1, &mask), Role::Both)], max_bytes);
            inputs.keep(1, &[feed(4, &mask)]);
            assert_eq!(inputs.kept_before(9).0, 0);
        }
    }
}
