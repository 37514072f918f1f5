//! The optimization profiles of engines: batch 1, and reports from one token to the bundle's maximum.
//!
//! An engine is tuned for one shape (`opt`) and runs all shapes between `min` and `max`. Every input with a symbolic
//! dimension has a profile, also what flows between groups of blocks: without one a provider would build the engine
//! again for each new shape.

use crate::error::{Code, Error, Result};
use crate::graph::Dim;
use crate::onnx::SegmentedModel;
use crate::runtime::ProfiledInput;

/// Tokens that engines are fastest for. A clinical note of 150 to 250 words, the usual length of a report in such
/// cohorts, gives 200 to 350 tokens of LLaMA's vocabulary (1.3 to 1.4 a word of English).
const TYPICAL_TOKENS: u64 = 256;

/// The extents of those of the graph's values that have a dimension without a number; `names` are a graph's or a
/// group's inputs.
///
/// # Errors
/// `onnx.invalid` when a value's dimension is neither a number nor `batch` nor `tokens`: then no engine can be made for
/// it.
pub(crate) fn profiles<'a>(
    model: &SegmentedModel,
    names: impl IntoIterator<Item = &'a str>,
    max_tokens: u64,
) -> Result<Vec<ProfiledInput>> {
    let most = max_tokens.max(1);
    let mut all = Vec::new();
    for name in names {
        let unknown = |what: &str| {
            let message = format!("input `{name}` has {what}: no engine can be made for it");
            Error::new(Code::ONNX_INVALID, message)
        };
        let shape = model.shape(name).ok_or_else(|| unknown("no declared shape"))?;
        if shape.iter().all(|dim| dim.known().is_some()) {
            continue;
        }
        let mut input = ProfiledInput { name: name.to_owned(), min: Vec::new(), opt: Vec::new(), max: Vec::new() };
        for dim in shape {
            let [min, opt, max] = match dim {
                Dim::Known(n) => [n as u64; 3],
                Dim::BATCH => [1; 3],
                Dim::TOKENS => [1, most.min(TYPICAL_TOKENS), most],
                _ => return Err(unknown("a dimension that is neither a number nor `batch` nor `tokens`")),
            };
            input.min.push(min);
            input.opt.push(opt);
            input.max.push(max);
        }
        all.push(input);
    }
    Ok(all)
}
