//! The fuzz targets without a fuzzer: every stored input, among them those that once crashed a parser, and for a second
//! each what random changes make of them. `make fuzz` looks farther.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use brain_adapter_fuzz::{TARGETS, Target};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::package;

/// What one input may take. libFuzzer gives up after as long.
const MAX_TIME: Duration = Duration::from_secs(10);
/// How long each target gets changed inputs.
const MUTATING: Duration = Duration::from_secs(1);

/// The stored inputs of a target, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = package("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}

/// Whether the target survives the input in time.
fn survives(target: Target, input: &[u8]) -> bool {
    let start = Instant::now();
    catch_unwind(AssertUnwindSafe(|| target(input))).is_ok() && start.elapsed() < MAX_TIME
}

#[test]
fn stored_inputs_are_survived() {
    let mut failed = Vec::new();
    let mut bytes = 0;
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "fuzz/corpus/{name} is empty");
        bytes += inputs.iter().map(|(_, input)| input.len()).sum::<usize>();
        failed.extend(inputs.iter().filter(|(_, i)| !survives(*target, i)).map(|(file, _)| format!("{name}/{file}")));
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(bytes < 1 << 20, "the stored corpus holds {bytes} bytes: keep what is small");
}

#[test]
fn changed_inputs_are_survived() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let start = Instant::now();
        while start.elapsed() < MUTATING {
            let input = changed(&inputs, &mut rng);
            if !survives(*target, &input) {
                let place = package("target").join(format!("fuzz-failure-{name}"));
                std::fs::write(&place, &input).unwrap();
                panic!("{name} fails: the input lies in {}; it belongs into fuzz/corpus/{name}", place.display());
            }
        }
    }
}

/// An input with some bytes changed, removed, repeated, or replaced by a piece of another.
fn changed(inputs: &[(String, Vec<u8>)], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let pick = |rng: &mut ChaCha8Rng| &inputs[rng.random_range(0..inputs.len())].1;
    let mut input = pick(rng).clone();
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..=input.len());
        let end = (at + rng.random_range(0..32)).min(input.len());
        match rng.random_range(0..5) {
            0 if at < input.len() => input[at] = rng.random(),
            1 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            2 => drop(input.drain(at..end)),
            3 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            _ => {
                let other = pick(rng);
                let from = rng.random_range(0..=other.len());
                let to = (from + rng.random_range(0..64)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    input
}

/// Each target has a program and a corpus, and each program and corpus a target.
#[test]
fn programs_and_corpora_are_those_of_the_table() {
    let mut named: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    named.sort();
    for folder in ["fuzz/src/bin", "fuzz/corpus"] {
        let entries = std::fs::read_dir(package(folder)).unwrap();
        let stem = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
        let mut found: Vec<String> = entries.map(|entry| stem(&entry.unwrap().path())).collect();
        found.sort();
        assert_eq!(found, named, "{folder}");
    }
}
