//! The walk from results to what leads to them.

use std::collections::{HashMap, HashSet};

use super::rules::{self, Call, Rule};
use crate::error::{Error, Result};
use crate::graph::{Builder, Dim, Node, ValueId, ValueType};

/// The values among which `sources` are and that depend on one of them by a way that has a derivative.
fn dependent(nodes: &[Node], sources: &[ValueId]) -> HashSet<ValueId> {
    let mut found: HashSet<ValueId> = sources.iter().copied().collect();
    for node in nodes {
        let depends = node.inputs.iter().flatten().any(|id| found.contains(id));
        if depends && !matches!(rules::find(node), Ok(Rule::Constant)) {
            found.extend(&node.outputs);
        }
    }
    found
}

/// Adds to `g` the gradients of `Σ seed · result`, over pairs `(result, seed)` of one shape, with respect to each of
/// `wrt`; none where no result depends on it by a way that has a derivative.
///
/// # Errors
/// `graph.invalid` when an operator on the way has no rule.
pub fn gradients(g: &mut Builder, seeds: &[(ValueId, ValueId)], wrt: &[ValueId]) -> Result<Vec<Option<ValueId>>> {
    let nodes = g.nodes().to_vec();
    let reached = dependent(&nodes, wrt);
    let mut found: HashMap<ValueId, ValueId> = HashMap::new();
    for &(result, seed) in seeds {
        accumulate(g, &mut found, result, seed)?;
    }
    for node in nodes.iter().rev() {
        let given: Vec<Option<ValueId>> = node.outputs.iter().map(|id| found.get(id).copied()).collect();
        let wanted: Vec<bool> = node.inputs.iter().map(|id| id.is_some_and(|id| reached.contains(&id))).collect();
        if given.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        let Rule::Of(rule) = rules::find(node)? else { continue };
        let answers = g.scope(&format!("{}.grad", node.name), |g| {
            let answers = rule(&mut Call { g, node, given: &given, wanted: &wanted })?;
            let pairs = node.inputs.iter().zip(answers).zip(&wanted);
            let pairs = pairs.filter_map(|((id, answer), wanted)| Some(((*id)?, answer?)).filter(|_| *wanted));
            pairs.map(|(id, answer)| Ok((id, unbroadcast(g, answer, id)?))).collect::<Result<Vec<_>>>()
        })?;
        for (id, answer) in answers {
            accumulate(g, &mut found, id, answer)?;
        }
    }
    Ok(wrt.iter().map(|id| found.get(id).copied()).collect())
}

fn accumulate(g: &mut Builder, found: &mut HashMap<ValueId, ValueId>, of: ValueId, more: ValueId) -> Result<()> {
    let sum = match found.get(&of) {
        Some(&so_far) => g.add(so_far, more)?,
        None => more,
    };
    found.insert(of, sum);
    Ok(())
}

/// The gradient of a value from that of what it was broadcast to: summed over the axes along which it was repeated.
fn unbroadcast(g: &mut Builder, gradient: ValueId, of: ValueId) -> Result<ValueId> {
    let (from, to) = (g.ty(gradient).clone(), g.ty(of).clone());
    if from == to {
        return Ok(gradient);
    }
    let Some(extra) = from.shape.len().checked_sub(to.shape.len()) else { return Err(unlike(&from, &to)) };
    let mut leading: Vec<i64> = (0..extra as i64).collect();
    let repeated = |(i, dim): (usize, &Dim)| {
        let grown = *dim == Dim::Known(1) && from.shape[extra + i] != Dim::Known(1);
        grown.then_some((extra + i) as i64)
    };
    let repeated: Vec<i64> = to.shape.iter().enumerate().filter_map(repeated).collect();
    let mut sum = gradient;
    if !repeated.is_empty() {
        sum = g.reduce_sum(sum, &repeated, true)?;
    }
    if !leading.is_empty() {
        sum = g.reduce_sum(sum, &std::mem::take(&mut leading), false)?;
    }
    match g.ty(sum).unify(&to) {
        Some(_) => g.declare(sum, &to.shape),
        None => Err(unlike(&from, &to)),
    }
}

fn unlike(from: &ValueType, to: &ValueType) -> Error {
    Error::internal(format!("a gradient of {to} cannot be {from}"))
}
