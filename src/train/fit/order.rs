//! The order of an epoch's cases, which depends on seed and epoch alone.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::Balance;

/// The cases of an epoch, as indices into `labels`, in micro-batches.
pub(super) fn batches(labels: &[usize], balance: Balance, batch: usize, seed: u64, epoch: u32) -> Vec<Vec<usize>> {
    // Each epoch has a random stream of its own.
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::from(epoch));
    let mut all: Vec<usize> = (0..labels.len()).collect();
    if balance == Balance::Sampling {
        all = balanced(labels, &mut rng);
    }
    all.shuffle(&mut rng);
    all.chunks(batch).map(<[usize]>::to_vec).collect()
}

/// As many cases of each class as the largest class has (oversampling): a smaller class is repeated, each time in a new
/// random order.
fn balanced(labels: &[usize], rng: &mut ChaCha8Rng) -> Vec<usize> {
    let classes = labels.iter().max().map_or(0, |last| last + 1);
    let of = |class: usize| (0..labels.len()).filter(|&i| labels[i] == class).collect::<Vec<_>>();
    let largest = (0..classes).map(|class| of(class).len()).max().unwrap_or(0);
    let mut all = Vec::new();
    for class in 0..classes {
        let mut cases = of(class);
        let mut missing = if cases.is_empty() { 0 } else { largest };
        while missing > 0 {
            cases.shuffle(rng);
            let count = missing.min(cases.len());
            all.extend(&cases[..count]);
            missing -= count;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_hold_every_case_once_in_orders_of_their_own() {
        let labels: Vec<usize> = (0..50).map(|i| i % 3).collect();
        let order = |seed, epoch| batches(&labels, Balance::None, 8, seed, epoch);
        let first = order(1, 0);
        assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 8, 8, 8, 8, 2]);
        let mut sorted = first.concat();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(first, order(1, 0));
        assert!(first != order(1, 1) && first != order(2, 0));
    }

    #[test]
    fn sampling_balances_the_classes_and_misses_nobody() {
        let labels = [vec![0; 17], vec![1; 5], vec![2; 9]].concat();
        let seen = batches(&labels, Balance::Sampling, 4, 3, 2).concat();
        for class in 0..3 {
            assert_eq!(seen.iter().filter(|&&i| labels[i] == class).count(), 17);
        }
        assert!((0..labels.len()).all(|i| seen.contains(&i)));
    }
}
