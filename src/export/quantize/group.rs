//! Chooses schemes for the linear layers that read one activation: the ladder.

use std::sync::Arc;

use super::trial::Trial;
use crate::calibrate::{Columns, Fidelity, Group, Runner};
use crate::error::{Code, Error, Result};
use crate::graph::Graph;
use crate::passes::factors;
use crate::passes::quantize::Scheme;

/// How strongly the size of a column moves into weights: 0 not at all, 1 wholly (SmoothQuant's α).
const STRENGTHS: [f32; 4] = [0.35, 0.5, 0.65, 0.8];

/// A smoothing must take at least this part of the worst layer's error away.
const WORTHWHILE: f64 = 0.1;

/// From this part of the limit on, an int8 layer's error is more than rounding alone explains.
const SUSPICIOUS: f64 = 0.4;

/// What was decided for a group.
pub(super) struct Chosen {
    /// A scheme a layer.
    pub schemes: Vec<Scheme>,
    /// The factors that the activation's columns are divided by.
    pub factors: Option<Vec<f32>>,
    /// How close each layer comes to float32 on held-out tokens.
    pub found: Vec<Fidelity>,
    /// What was tried first.
    pub first: Vec<(Scheme, Fidelity)>,
    /// How many times as long the group takes as under the first schemes, where it was treated.
    pub slowdown: Option<f64>,
}

/// The rules of a choice.
pub(super) struct Rules<'a> {
    /// What a layer tries in turn.
    pub ladder: &'a [Scheme],
    /// Where it begins; what stands below is tried for comparison alone.
    pub start: usize,
    /// Largest relative error.
    pub limit: f64,
    /// Layers that start at the last rung: their weights do not fit half precision.
    pub last: Vec<bool>,
}

/// Chooses. A layer that misses the limit is first helped by smoothing, then climbs rung by rung.
///
/// # Errors
/// `quantize.error` when a layer misses the limit on the last rung.
pub(super) fn choose(
    graph: &Graph,
    group: &Group,
    columns: &Columns,
    rules: &Rules<'_>,
    runner: &Runner<'_>,
) -> Result<Chosen> {
    let importance: Arc<[f32]> = columns.importance().into();
    let trial = Trial { graph, group, importance: &importance, runner };
    let zero_point = columns.zero_point();
    let at = |rung: usize| match rules.ladder[rung] {
        Scheme::Int8 { .. } => Scheme::Int8 { zero_point },
        other => other,
    };
    let top = rules.ladder.len() - 1;
    let mut rungs: Vec<usize> = rules.last.iter().map(|&last| if last { top } else { 0 }).collect();
    let schemes = |rungs: &[usize]| rungs.iter().map(|&r| at(r)).collect::<Vec<_>>();
    let mut found = trial.run(&schemes(&rungs), None, &group.held_out)?;
    let first: Vec<_> = schemes(&rungs).into_iter().zip(found.clone()).collect();
    let mut factors = None;
    let enough = match rules.ladder[0] {
        // Free at run time, so worth a try before the limit is reached.
        Scheme::Int8 { .. } => rules.limit * SUSPICIOUS,
        _ => rules.limit,
    };
    if worst(&found) > enough && rules.ladder[0] != Scheme::Fp16 {
        factors = smoothing(&trial, columns, &schemes(&rungs))?;
    }
    if let Some(some) = &factors {
        let smoothed = trial.run(&schemes(&rungs), Some(some), &group.held_out)?;
        // What helps on the tokens that it was chosen by may be their noise.
        if worst(&smoothed) < worst(&found) * (1.0 - WORTHWHILE) {
            found = smoothed;
        } else {
            factors = None;
        }
    }
    if rules.start > 0 {
        rungs.iter_mut().for_each(|r| *r = (*r).max(rules.start));
        found = trial.run(&schemes(&rungs), factors.as_deref(), &group.held_out)?;
    }
    loop {
        let failing = (0..rungs.len()).filter(|&i| found[i].error > rules.limit && rungs[i] < top);
        let failing: Vec<usize> = failing.collect();
        if failing.is_empty() {
            break;
        }
        failing.iter().for_each(|&i| rungs[i] += 1);
        found = trial.run(&schemes(&rungs), factors.as_deref(), &group.held_out)?;
    }
    let now = schemes(&rungs);
    if let Some(i) = (0..now.len()).find(|&i| found[i].error > rules.limit) {
        let (name, error, limit) = (&group.linears[i].name, found[i].error, rules.limit);
        let message = format!(
            "the layer `{name}` has a relative error of {error:.1e} even as {}, allowed are {limit:.1e}: raise --max-error",
            now[i]
        );
        return Err(Error::new(Code::QUANTIZE_ERROR, message));
    }
    let before: Vec<Scheme> = first.iter().map(|(s, _)| *s).collect();
    let treated = before != now;
    let slowdown = treated.then(|| {
        let after = trial.seconds(&now, factors.as_deref(), &group.held_out)?;
        Ok::<_, Error>(after / trial.seconds(&before, None, &group.held_out)?)
    });
    Ok(Chosen { schemes: now, factors, found, first, slowdown: slowdown.transpose()? })
}

/// The factors that help most on tokens that calibrate; none where nothing can take them or they do not help.
fn smoothing(trial: &Trial<'_>, columns: &Columns, schemes: &[Scheme]) -> Result<Option<Vec<f32>>> {
    let group = trial.group;
    let sample = if group.calibrating.x.view().is_empty() { &group.held_out } else { &group.calibrating };
    let plain = worst(&trial.run(schemes, None, sample)?);
    let sizes: Vec<f32> = columns.importance().into_iter().map(f32::sqrt).collect();
    // Relative to the typical column, whose factor is then 1.
    let mut sorted: Vec<f32> = sizes.iter().copied().filter(|s| *s > 0.0).collect();
    sorted.sort_by(f32::total_cmp);
    let Some(&typical) = sorted.get(sorted.len() / 2) else { return Ok(None) };
    let mut best: Option<(f64, Vec<f32>)> = None;
    for strength in STRENGTHS {
        let wanted = sizes.iter().map(|s| if *s > 0.0 { (s / typical).powf(strength) } else { 1.0 });
        let wanted: Vec<f32> = wanted.collect();
        let Some(factors) = factors(trial.graph, group.input, &wanted) else { return Ok(None) };
        let error = worst(&trial.run(schemes, Some(&factors), sample)?);
        if error < best.as_ref().map_or(plain * (1.0 - WORTHWHILE), |(least, _)| *least) {
            best = Some((error, factors));
        }
    }
    Ok(best.map(|(_, factors)| factors))
}

fn worst(found: &[Fidelity]) -> f64 {
    found.iter().map(|f| f.error).fold(0.0, f64::max)
}
