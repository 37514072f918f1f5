//! The search for the schemes of the linear layers that read one activation: each layer climbs its ladder.

use std::sync::Arc;

use super::trial::Trial;
use crate::bundle::Target;
use crate::calibrate::{ChannelStats, Fidelity, LinearGroup, Runner};
use crate::error::{Code, Error, Result};
use crate::export::numeric_format::NumericFormat;
use crate::graph::Graph;
use crate::passes::quantize::{Scheme, smoothing_factors};
use crate::passes::rounding;

/// How much of a channel's magnitude moves into the weights: 0 nothing, 1 all (SmoothQuant's α).
const STRENGTHS: [f32; 4] = [0.35, 0.5, 0.65, 0.8];

/// Smoothing must remove at least this fraction of the worst layer's error.
const WORTHWHILE: f64 = 0.1;

/// From this error on, an int8 layer has more than rounding alone explains. Smoothing is free at run time, so it is
/// worth a try before a limit is reached.
const SUSPICIOUS: f64 = 0.02;

/// A layer whose block was escalated must come to at most this fraction of the error that it had before.
const ESCALATED: f64 = 0.7;

/// How a group is quantized.
pub(super) struct GroupPlan {
    /// One per layer.
    pub schemes: Vec<Scheme>,
    /// The factors that the activation's channels are divided by, `[k]`.
    pub factors: Option<Vec<f32>>,
    /// How close each layer is to float32 on held-out tokens.
    pub fidelity: Vec<Fidelity>,
    /// What each layer tried first, and its fidelity.
    pub first: Vec<(Scheme, Fidelity)>,
    /// How many times as long the group takes as under the first schemes, where it does not keep them.
    pub slowdown: Option<f64>,
}

/// The rules of a search.
pub(super) struct LadderRules<'a> {
    /// The schemes that a layer tries in turn.
    pub ladder: &'a [Scheme],
    /// The rung that it starts from; the first one is tried only for comparison.
    pub start: usize,
    /// Largest relative error.
    pub limit: f64,
    pub form: NumericFormat,
    /// For each layer whether it starts on the last rung: its activations or weights do not fit fp16.
    pub top: Vec<bool>,
}

/// Searches. A layer that misses the limit is first smoothed, then climbs rung by rung.
///
/// # Errors
/// `quantize.error` when a layer misses the limit on the last rung.
pub(super) fn search_group(
    graph: &Graph,
    group: &LinearGroup,
    stats: &ChannelStats,
    rules: &LadderRules<'_>,
    runner: &Runner<'_>,
) -> Result<GroupPlan> {
    let importance: Arc<[f32]> = stats.importance().into();
    let trial = Trial { graph, group, importance: &importance, max_abs: &stats.max_abs, form: rules.form, runner };
    let mut plan = climb(&trial, stats, rules)?;
    if let Some(i) = (0..plan.fidelity.len()).find(|&i| plan.fidelity[i].error > rules.limit) {
        let (name, error, limit) = (&group.linears[i].name, plan.fidelity[i].error, rules.limit);
        let message = format!(
            "the layer `{name}` has a relative error of {error:.1e} even as {}, allowed are {limit:.1e}: raise --max-error",
            plan.schemes[i]
        );
        return Err(Error::new(Code::QUANTIZE_ERROR, message));
    }
    let before: Vec<Scheme> = plan.first.iter().map(|(s, _)| *s).collect();
    // The time that a CPU takes for a GPU's form means nothing.
    if before != plan.schemes && rules.form.target == Target::Cpu {
        let after = trial.seconds(&plan.schemes, plan.factors.as_deref(), &group.held_out)?;
        plan.slowdown = Some(after / trial.seconds(&before, None, &group.held_out)?);
    }
    Ok(plan)
}

/// Tries rungs until every layer meets the limit or is at the top.
fn climb(trial: &Trial<'_>, stats: &ChannelStats, rules: &LadderRules<'_>) -> Result<GroupPlan> {
    let (group, zero_point, top) = (trial.group, stats.zero_point(), rules.ladder.len() - 1);
    let at = |rung: usize| match rules.ladder[rung] {
        Scheme::Int8 { .. } => Scheme::Int8 { zero_point },
        other => other,
    };
    let schemes = |rungs: &[usize]| rungs.iter().map(|&r| at(r)).collect::<Vec<_>>();
    // The first rung is tried even where a block starts higher: the others are compared with it.
    let mut rungs: Vec<usize> = rules.top.iter().map(|&is_top| if is_top { top } else { 0 }).collect();
    let mut found = trial.run(&schemes(&rungs), None, &group.held_out)?;
    let first: Vec<(Scheme, Fidelity)> = schemes(&rungs).into_iter().zip(found.clone()).collect();
    let (mut factors, mut tried) = (None, false);
    loop {
        if !tried && worth_smoothing(&schemes(&rungs), &found, rules.limit) {
            tried = true;
            if let Some((better, smoothed)) = smoothing(trial, stats, &schemes(&rungs), &found)? {
                (factors, found) = (Some(better), smoothed);
            }
        }
        let climbs = |&i: &usize| {
            let (scheme, before) = first[i];
            let too_far = rules.start > 0 && found[i].error > before.error * ESCALATED && scheme != at(top);
            (found[i].error > rules.limit || too_far || rungs[i] < rules.start) && rungs[i] < top
        };
        let climbing: Vec<usize> = (0..rungs.len()).filter(climbs).collect();
        if climbing.is_empty() {
            return Ok(GroupPlan { schemes: schemes(&rungs), factors, fidelity: found, first, slowdown: None });
        }
        for i in climbing {
            rungs[i] = (rungs[i] + 1).max(rules.start);
            // Weights beyond the range of fp16 skip this rung.
            if at(rungs[i]) == Scheme::Fp16Weight && overflows(trial.graph, group, i)? {
                rungs[i] += 1;
            }
        }
        found = trial.run(&schemes(&rungs), factors.as_deref(), &group.held_out)?;
    }
}

/// Whether the layer's weight holds values beyond the range of fp16.
fn overflows(graph: &Graph, group: &LinearGroup, layer: usize) -> Result<bool> {
    match &graph.value(group.linears[layer].weight).init {
        Some(weight) => Ok(rounding(weight)?.overflowed > 0),
        None => Ok(false),
    }
}

/// Whether any layer's weight would hold values beyond the range of fp16 once its rows are multiplied by `factors`.
fn overflows_by(graph: &Graph, group: &LinearGroup, factors: &[f32]) -> Result<bool> {
    let factors: Arc<[f32]> = factors.into();
    for weight in group.linears.iter().filter_map(|l| graph.value(l.weight).init.as_ref()) {
        if rounding(&weight.scaled_rows(&factors))?.overflowed > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether outlier channels may be the cause of the layers' errors.
fn worth_smoothing(schemes: &[Scheme], found: &[Fidelity], limit: f64) -> bool {
    schemes.iter().zip(found).any(|(scheme, found)| match scheme {
        Scheme::Int8 { .. } | Scheme::Int8Tensor => found.error > SUSPICIOUS.min(limit),
        Scheme::Blocks { .. } => found.error > limit,
        _ => false,
    })
}

/// The factors that help most on tokens that calibrate, and how close the layers then are on held-out ones; `None`
/// where the factors cannot be folded or do not help there.
fn smoothing(
    trial: &Trial<'_>,
    stats: &ChannelStats,
    schemes: &[Scheme],
    found: &[Fidelity],
) -> Result<Option<(Vec<f32>, Vec<Fidelity>)>> {
    let group = trial.group;
    let sample = if group.calibrating.x.view().is_empty() { &group.held_out } else { &group.calibrating };
    let plain = worst(&trial.run(schemes, None, sample)?);
    // A per-tensor scale suffers from the largest of all values, a per-token scale from what is large in each token.
    let sizes: Vec<f32> = if schemes.contains(&Scheme::Int8Tensor) {
        stats.max_abs.clone()
    } else {
        stats.importance().into_iter().map(f32::sqrt).collect()
    };
    // Relative to the typical channel, whose factor is then 1.
    let mut sorted: Vec<f32> = sizes.iter().copied().filter(|s| *s > 0.0).collect();
    sorted.sort_by(f32::total_cmp);
    let Some(&typical) = sorted.get(sorted.len() / 2) else { return Ok(None) };
    let mut best: Option<(f64, Vec<f32>)> = None;
    for strength in STRENGTHS {
        let wanted = sizes.iter().map(|s| if *s > 0.0 { (s / typical).powf(strength) } else { 1.0 });
        let wanted: Vec<f32> = wanted.collect();
        let Some(factors) = smoothing_factors(trial.graph, group.input, &wanted) else { return Ok(None) };
        if trial.form.uses_fp16() && overflows_by(trial.graph, group, &factors)? {
            continue;
        }
        let error = worst(&trial.run(schemes, Some(&factors), sample)?);
        if error < best.as_ref().map_or(plain * (1.0 - WORTHWHILE), |(least, _)| *least) {
            best = Some((error, factors));
        }
    }
    let Some((_, factors)) = best else { return Ok(None) };
    let smoothed = trial.run(schemes, Some(&factors), &group.held_out)?;
    // A gain on the tokens that the factors were chosen by may be their noise.
    let helps = worst(&smoothed) < worst(found) * (1.0 - WORTHWHILE);
    Ok(helps.then_some((factors, smoothed)))
}

fn worst(found: &[Fidelity]) -> f64 {
    found.iter().map(|f| f.error).fold(0.0, f64::max)
}
