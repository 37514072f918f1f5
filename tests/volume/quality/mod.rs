//! Quality warnings: 500 healthy scans alarm no one, 500 broken ones are named, each by its code.
//!
//! The scans are phantoms ([`support::phantom`]) by seed; the thresholds are those of `docs/quality.md`.

mod files;

use std::collections::BTreeMap;

use brain_adapter::volume::{self, Conformed, Grid, ReadOptions};
use brain_adapter::{Warning, WarningCode};
use support::drafts::{Draft, broken, grid};

/// Scans of each sort.
const SCANS: u64 = 500;

fn read(bytes: &[u8], grid: Grid) -> Conformed {
    volume::read_bytes(bytes, &ReadOptions { grid, ..ReadOptions::default() }).expect("a readable scan")
}

fn codes(warnings: &[Warning]) -> Vec<&'static str> {
    warnings.iter().map(|w| w.code.as_str()).collect()
}

#[test]
fn healthy_scans_alarm_no_one() {
    let (mut alarms, mut figures) = (Vec::new(), Margins::default());
    for seed in 0..SCANS {
        let draft = Draft::healthy(seed);
        let got = read(&draft.bytes(), grid());
        figures.add(&got);
        if !got.warnings.is_empty() {
            alarms.push(format!("{}: {:?} {:?}", draft.what, codes(&got.warnings), got.quality));
        }
    }
    support::say(&format!("healthy: {} alarms of {SCANS}; {figures}", alarms.len()));
    assert!(alarms.len() * 100 <= SCANS as usize, "{}", alarms.join("\n"));
}

/// The figures of healthy scans nearest to the thresholds.
#[derive(Default)]
struct Margins(BTreeMap<&'static str, f32>);

impl Margins {
    fn add(&mut self, got: &Conformed) {
        let q = &got.quality;
        let least = [
            ("range used", q.range_used),
            ("neighbours correlate", q.neighbour_correlation),
            ("distant correlate", q.distant_correlation),
            ("distinct values", q.distinct_values as f32),
            ("p0.1 of p99.9", q.p0_1 / q.p99_9),
        ];
        let most = [
            ("border of max", q.border_median / q.max),
            ("border above centre", (q.border_median - q.centre_median) / (q.p99_9 - q.p0_1)),
            ("equal neighbours", q.equal_neighbours),
            ("rotation", q.rotation_degrees),
            ("shear", q.shear_degrees),
            ("wrapped share", q.wrapped_share),
        ];
        for (name, value) in least {
            self.0.entry(name).and_modify(|v| *v = v.min(value)).or_insert(value);
        }
        for (name, value) in most {
            self.0.entry(name).and_modify(|v| *v = v.max(value)).or_insert(value);
        }
    }
}

impl std::fmt::Display for Margins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<String> = self.0.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        f.write_str(&all.join(", "))
    }
}

#[test]
fn broken_scans_are_named() {
    let (kinds, mut misses) = (broken::KINDS, Vec::new());
    let mut caught: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for seed in 0..SCANS {
        let kind = &kinds[seed as usize % kinds.len()];
        let (bytes, what, grid) = (kind.make)(seed);
        let got = read(&bytes, grid);
        let found = got.warnings.iter().any(|w| w.code == kind.code);
        let count = caught.entry(kind.name).or_default();
        (count.0, count.1) = (count.0 + usize::from(found), count.1 + 1);
        if !found {
            misses.push(format!("{} {what}: {:?} {:?}", kind.name, codes(&got.warnings), got.quality));
        }
    }
    support::say(&format!("broken: {} missed of {SCANS}; {caught:?}", misses.len()));
    assert!(misses.len() * 100 <= SCANS as usize, "{}", misses.join("\n"));
    let all: Vec<WarningCode> = kinds.iter().map(|kind| kind.code).collect();
    let unproven: Vec<_> = WarningCode::QUALITY.iter().filter(|code| !all.contains(code)).collect();
    let of_scans: Vec<_> = unproven.iter().filter(|code| !code.as_str().contains("report")).collect();
    assert!(of_scans.is_empty(), "no broken scan shows {of_scans:?}");
}
