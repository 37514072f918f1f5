//! Splits for the people of a list that has none: stratified, and by seed, names and labels alone.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::labelled::Case;
use super::split::Split;
use crate::error::{Code, Error, Result};

/// Assigns a split to the subjects that have none: `fractions` of them, class by class, go to training, validation and
/// test (a stratified split). All rows of a subject go together.
///
/// Each class is sorted by the SHA-256 of seed and subject, then divided by the fractions (largest remainder; where
/// there are enough subjects, no split with a positive fraction stays empty). So the result depends on seed, names and
/// labels: not on the order of rows, the folder, or the machine. A subject whose rows differ in label counts for the
/// last of them in the model's order.
///
/// # Errors
/// `config.value` for fractions that are negative, not finite or do not add up to 1.
pub fn assign_splits(cases: &mut [Case], fractions: [f64; 3], seed: u64) -> Result<()> {
    let sum: f64 = fractions.iter().sum();
    if !fractions.iter().all(|f| (0.0..=1.0).contains(f)) || (sum - 1.0).abs() > 1e-6 {
        let message =
            format!("cannot split by the fractions {fractions:?}: expected three from 0 to 1 that add up to 1");
        return Err(Error::new(Code::CONFIG_VALUE, message));
    }
    let mut persons: BTreeMap<&str, (usize, Option<Split>)> = BTreeMap::new();
    for row in &*cases {
        let person = persons.entry(&row.subject).or_insert((row.label, row.split));
        *person = (person.0.max(row.label), person.1.or(row.split));
    }
    let mut classes: BTreeMap<usize, Vec<(Vec<u8>, &str)>> = BTreeMap::new();
    for (name, (label, _)) in persons.iter().filter(|(_, (_, split))| split.is_none()) {
        let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name.as_bytes()).finalize();
        classes.entry(*label).or_default().push((hash.to_vec(), name));
    }
    let mut assigned = BTreeMap::new();
    for persons in classes.values_mut() {
        persons.sort_unstable();
        let counts = apportion(persons.len(), fractions);
        let splits = Split::ALL.into_iter().zip(counts).flat_map(|(split, count)| std::iter::repeat_n(split, count));
        assigned.extend(persons.iter().map(|(_, name)| (*name).to_owned()).zip(splits));
    }
    let known: BTreeMap<_, _> = persons.into_iter().filter_map(|(name, (_, s))| Some((name.to_owned(), s?))).collect();
    assigned.extend(known);
    for row in cases {
        row.split = row.split.or_else(|| assigned.get(&row.subject).copied());
    }
    Ok(())
}

/// `total` in three whole numbers by `fractions` (largest remainder); where `total` allows it, none of a positive
/// fraction is 0.
fn apportion(total: usize, fractions: [f64; 3]) -> [usize; 3] {
    let exact = fractions.map(|f| f * total as f64);
    // 0.2 of 5 is a hair above or below 1: neither may decide.
    let mut counts = exact.map(|x| (x + 1e-9).floor() as usize);
    let mut order = [0, 1, 2];
    order.sort_by(|a, b| (exact[*b] - counts[*b] as f64).total_cmp(&(exact[*a] - counts[*a] as f64)));
    let remaining = total.saturating_sub(counts.iter().sum());
    order.into_iter().filter(|i| fractions[*i] > 0.0).cycle().take(remaining).for_each(|i| counts[i] += 1);
    if total >= fractions.iter().filter(|f| **f > 0.0).count() {
        while let Some(empty) = (0..3).find(|i| fractions[*i] > 0.0 && counts[*i] == 0) {
            let fullest =
                if counts[0] >= counts[1].max(counts[2]) { 0 } else { 1 + usize::from(counts[2] > counts[1]) };
            counts[fullest] -= 1;
            counts[empty] += 1;
        }
    }
    counts
}

#[cfg(test)]
#[path = "assign_tests.rs"]
mod tests;
