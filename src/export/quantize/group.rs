//! Chooses schemes for the linear layers that read one activation: the ladder.

use std::sync::Arc;

use super::trial::Trial;
use crate::bundle::Target;
use crate::calibrate::{ChannelStats, Fidelity, Group, Runner};
use crate::error::{Code, Error, Result};
use crate::export::numeric_format::NumericFormat;
use crate::graph::Graph;
use crate::passes::quantize::{Scheme, smoothing_factors};
use crate::passes::rounding;

/// How strongly the size of a column moves into weights: 0 not at all, 1 wholly (SmoothQuant's α).
const STRENGTHS: [f32; 4] = [0.35, 0.5, 0.65, 0.8];

/// A smoothing must take at least this part of the worst layer's error away.
const WORTHWHILE: f64 = 0.1;

/// From this error on, an int8 layer has more than rounding alone explains. Smoothing is free at run time, so it is worth a
/// try before a limit is reached.
const SUSPICIOUS: f64 = 0.02;

/// A layer whose block was raised must come to at most this part of the error that it had before.
const RAISED: f64 = 0.7;

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
    pub form: NumericFormat,
    /// Layers that start at the last rung: what they read or hold does not fit half precision.
    pub last: Vec<bool>,
}

/// Chooses. A layer that misses the limit is first helped by smoothing, then climbs rung by rung.
///
/// # Errors
/// `quantize.error` when a layer misses the limit on the last rung.
pub(super) fn choose(
    graph: &Graph,
    group: &Group,
    columns: &ChannelStats,
    rules: &Rules<'_>,
    runner: &Runner<'_>,
) -> Result<Chosen> {
    let importance: Arc<[f32]> = columns.importance().into();
    let trial = Trial { graph, group, importance: &importance, largest: &columns.largest, form: rules.form, runner };
    let mut chosen = climb(&trial, columns, rules)?;
    if let Some(i) = (0..chosen.found.len()).find(|&i| chosen.found[i].error > rules.limit) {
        let (name, error, limit) = (&group.linears[i].name, chosen.found[i].error, rules.limit);
        let message = format!(
            "the layer `{name}` has a relative error of {error:.1e} even as {}, allowed are {limit:.1e}: raise --max-error",
            chosen.schemes[i]
        );
        return Err(Error::new(Code::QUANTIZE_ERROR, message));
    }
    let before: Vec<Scheme> = chosen.first.iter().map(|(s, _)| *s).collect();
    // What a CPU takes for a GPU's form says nothing.
    if before != chosen.schemes && rules.form.target == Target::Cpu {
        let after = trial.seconds(&chosen.schemes, chosen.factors.as_deref(), &group.held_out)?;
        chosen.slowdown = Some(after / trial.seconds(&before, None, &group.held_out)?);
    }
    Ok(chosen)
}

/// Tries rungs until every layer meets the limit or is at the top.
fn climb(trial: &Trial<'_>, columns: &ChannelStats, rules: &Rules<'_>) -> Result<Chosen> {
    let (group, zero_point, top) = (trial.group, columns.zero_point(), rules.ladder.len() - 1);
    let at = |rung: usize| match rules.ladder[rung] {
        Scheme::Int8 { .. } => Scheme::Int8 { zero_point },
        other => other,
    };
    let schemes = |rungs: &[usize]| rungs.iter().map(|&r| at(r)).collect::<Vec<_>>();
    // The first rung is tried even where a block starts higher: the others are compared with it.
    let mut rungs: Vec<usize> = rules.last.iter().map(|&last| if last { top } else { 0 }).collect();
    let mut found = trial.run(&schemes(&rungs), None, &group.held_out)?;
    let first: Vec<(Scheme, Fidelity)> = schemes(&rungs).into_iter().zip(found.clone()).collect();
    let (mut factors, mut tried) = (None, false);
    loop {
        if !tried && worth_smoothing(&schemes(&rungs), &found, rules.limit) {
            tried = true;
            if let Some((better, smoothed)) = smoothing(trial, columns, &schemes(&rungs), &found)? {
                (factors, found) = (Some(better), smoothed);
            }
        }
        let climbs = |&i: &usize| {
            let (scheme, before) = first[i];
            let raised = rules.start > 0 && found[i].error > before.error * RAISED && scheme != at(top);
            (found[i].error > rules.limit || raised || rungs[i] < rules.start) && rungs[i] < top
        };
        let climbing: Vec<usize> = (0..rungs.len()).filter(climbs).collect();
        if climbing.is_empty() {
            return Ok(Chosen { schemes: schemes(&rungs), factors, found, first, slowdown: None });
        }
        for i in climbing {
            rungs[i] = (rungs[i] + 1).max(rules.start);
            // Weights beyond half precision have no such rung.
            if at(rungs[i]) == Scheme::Fp16Weight && overflows(trial.graph, group, i)? {
                rungs[i] += 1;
            }
        }
        found = trial.run(&schemes(&rungs), factors.as_deref(), &group.held_out)?;
    }
}

/// Whether any layer's weight holds values beyond half precision.
fn overflows(graph: &Graph, group: &Group, layer: usize) -> Result<bool> {
    match &graph.value(group.linears[layer].weight).init {
        Some(weight) => Ok(rounding(weight)?.overflowed > 0),
        None => Ok(false),
    }
}

/// Whether any layer's weight would hold values beyond half precision once its rows are multiplied.
fn overflows_by(graph: &Graph, group: &Group, factors: &[f32]) -> Result<bool> {
    let factors: Arc<[f32]> = factors.into();
    for weight in group.linears.iter().filter_map(|l| graph.value(l.weight).init.as_ref()) {
        if rounding(&weight.scaled_rows(&factors))?.overflowed > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether single columns may be why the layers are as far off as they are.
fn worth_smoothing(schemes: &[Scheme], found: &[Fidelity], limit: f64) -> bool {
    schemes.iter().zip(found).any(|(scheme, found)| match scheme {
        Scheme::Int8 { .. } | Scheme::Int8Tensor => found.error > SUSPICIOUS.min(limit),
        Scheme::Blocks { .. } => found.error > limit,
        _ => false,
    })
}

/// The factors that help most on tokens that calibrate, and how close the layers then come on held-out ones; none where
/// nothing can take them or they do not help there.
fn smoothing(
    trial: &Trial<'_>,
    columns: &ChannelStats,
    schemes: &[Scheme],
    found: &[Fidelity],
) -> Result<Option<(Vec<f32>, Vec<Fidelity>)>> {
    let group = trial.group;
    let sample = if group.calibrating.x.view().is_empty() { &group.held_out } else { &group.calibrating };
    let plain = worst(&trial.run(schemes, None, sample)?);
    // One scale for all tokens suffers from the largest of all values, one a token from what is large in each.
    let sizes: Vec<f32> = if schemes.contains(&Scheme::Int8Tensor) {
        columns.largest.clone()
    } else {
        columns.importance().into_iter().map(f32::sqrt).collect()
    };
    // Relative to the typical column, whose factor is then 1.
    let mut sorted: Vec<f32> = sizes.iter().copied().filter(|s| *s > 0.0).collect();
    sorted.sort_by(f32::total_cmp);
    let Some(&typical) = sorted.get(sorted.len() / 2) else { return Ok(None) };
    let mut best: Option<(f64, Vec<f32>)> = None;
    for strength in STRENGTHS {
        let wanted = sizes.iter().map(|s| if *s > 0.0 { (s / typical).powf(strength) } else { 1.0 });
        let wanted: Vec<f32> = wanted.collect();
        let Some(factors) = smoothing_factors(trial.graph, group.input, &wanted) else { return Ok(None) };
        if trial.form.halves() && overflows_by(trial.graph, group, &factors)? {
            continue;
        }
        let error = worst(&trial.run(schemes, Some(&factors), sample)?);
        if error < best.as_ref().map_or(plain * (1.0 - WORTHWHILE), |(least, _)| *least) {
            best = Some((error, factors));
        }
    }
    let Some((_, factors)) = best else { return Ok(None) };
    let smoothed = trial.run(schemes, Some(&factors), &group.held_out)?;
    // What helps on the tokens that it was chosen by may be their noise.
    let helps = worst(&smoothed) < worst(found) * (1.0 - WORTHWHILE);
    Ok(helps.then_some((factors, smoothed)))
}

fn worst(found: &[Fidelity]) -> f64 {
    found.iter().map(|f| f.error).fold(0.0, f64::max)
}
