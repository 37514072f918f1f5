//! The quantized adapter: a few convolutions, quantized all together or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::ArrayD;

use super::limits::Limits;
use super::references::{self, ScanReference};
use crate::bundle::{FirstTry, LayerRecord, Precision};
use crate::calibrate::{Feed, Fidelity, Inputs, Ranges, Role, Runner, Walk, fidelity_of};
use crate::config::VolumeConfig;
use crate::error::{Error, Result, WarningTally};
use crate::export::numeric_format::NumericFormat;
use crate::export::{CalibrationInput, inputs};
use crate::graph::Graph;
use crate::model::Part;
use crate::passes::quantize::Scheme;
use crate::passes::{exceeds_fp16, quantize_convolutions, to_fp16, unfit_for_fp16};
use crate::progress::{Progress, Silent};
use crate::tensor::Tensor;

/// Name of the adapter's row among the layers.
const LAYER: &str = "adapter.convolutions";

/// The adapter as it will be written.
pub(in crate::export) struct Adapter {
    /// Its graph.
    pub graph: Graph,
    /// Its number format.
    pub precision: Precision,
    /// Its row among the layers.
    pub record: LayerRecord,
    /// The limit that it missed in the form's number format, where it is in float32 for that.
    pub missed: Option<String>,
}

/// Runs the float32 adapter on one scan; returns its result and widens `ranges` by all of its values.
fn observe(graph: &Graph, volume: Tensor, ranges: &mut Ranges, runner: &Runner<'_>) -> Result<Arc<Tensor>> {
    let feed = Feed::from([("volume".to_owned(), Arc::new(volume))]);
    let walk = Walk { graph, runner, visits: &|_| true, ranges: true };
    let mut inputs = Inputs::new(vec![(feed, Role::Calibrate)], 0);
    let outputs = walk.run(&mut inputs, &mut Silent, &mut |visit, _| {
        for (name, (low, high)) in visit.ranges {
            let known = ranges.entry(name).or_insert((low, high));
            *known = (known.0.min(low), known.1.max(high));
        }
        Ok(())
    })?;
    let output = outputs.and_then(|mut all| all.pop()?.remove("adapter"));
    output.ok_or_else(|| Error::internal("adapter: output missing"))
}

/// Runs the adapter on each scan, one after the other, and decides about it. Returns the scans with their float32
/// adapter results (those of the vision transformer are still missing), and the adapter; `None` without scans.
///
/// # Errors
/// `calibration.input`, and those of the runtime.
pub(in crate::export) fn calibrated(
    graph: &Graph,
    volume: &VolumeConfig,
    limits: (NumericFormat, Option<f64>),
    all: &[CalibrationInput],
    runner: &Runner<'_>,
    progress: &mut dyn Progress,
) -> Result<(Vec<ScanReference>, Option<Adapter>)> {
    let (mut ranges, mut scans, mut tally) = (Ranges::new(), Vec::new(), WarningTally::default());
    for (name, path, role) in references::scans(all) {
        progress.step(&format!("adapter: {}", path.display()), None);
        let scan = inputs::counted_scan(volume, &path, &mut tally)?;
        let mut unused = Ranges::new();
        let widened = if role.calibrates() { &mut ranges } else { &mut unused };
        let adapter = observe(graph, scan, widened, runner)?;
        scans.push(ScanReference { name, path, role, adapter, vision: references::empty() });
    }
    tally.warnings("calibration scans").iter().for_each(|warning| progress.warn(warning));
    if scans.is_empty() {
        return Ok((scans, None));
    }
    let (form, max_error) = limits;
    let limit = Limits::of_part(form, Part::Adapter, max_error).layer;
    let measure = |candidate: &Graph| measure(candidate, volume, &scans, runner);
    let adapter = choose(graph, form, &ranges, limit, &measure)?;
    Ok((scans, Some(adapter)))
}

/// The adapter in float32.
fn fp32(graph: &Graph) -> Adapter {
    Adapter { graph: graph.clone(), precision: Precision::Fp32, record: record(graph, Scheme::Fp32), missed: None }
}

/// The adapter in float32, because nothing else is exact enough; `first` is what was tried.
fn fp32_fallback(graph: &Graph, first: Option<FirstTry>) -> Adapter {
    let adapter = fp32(graph);
    let record = LayerRecord { error: Some(0.0), cosine: Some(1.0), first, ..adapter.record };
    Adapter { record, ..adapter }
}

impl Adapter {
    /// The adapter in float32 instead, for the limit that it `missed`.
    pub fn to_fp32(&self, graph: &Graph, missed: Option<String>) -> Self {
        let LayerRecord { scheme, error, bytes, .. } = self.record;
        Self { missed, ..fp32_fallback(graph, Some(FirstTry { scheme, error, bytes })) }
    }
}

/// The adapter in the form's number format, where it is close enough to float32 on the held-out scans by `measure`;
/// else in float32. GPUs get fp16: symmetric int8 would waste one of its bits behind each ReLU.
fn choose(
    graph: &Graph,
    form: NumericFormat,
    ranges: &Ranges,
    limit: f64,
    measure: &dyn Fn(&Graph) -> Result<Fidelity>,
) -> Result<Adapter> {
    let (candidate, precision, scheme) = if form.uses_fp16() {
        let keep = unfit_for_fp16(graph)?.0.into_iter().chain(exceeds_fp16(graph, ranges)).collect();
        (Some(to_fp16(graph, &keep)?), Precision::Fp16, Scheme::Fp16)
    } else {
        (quantize_convolutions(graph, &with_inputs(graph, ranges))?, Precision::Int8, Scheme::Int8Static)
    };
    let Some(candidate) = candidate else { return Ok(fp32_fallback(graph, None)) };
    let found = measure(&candidate)?;
    let record = record(graph, scheme);
    if found.error > limit {
        let first = FirstTry { scheme, error: Some(found.error), bytes: record.bytes };
        let missed = format!("a relative error of {:.1e} on held-out scans, allowed are {limit:.1e}", found.error);
        return Ok(Adapter { missed: Some(missed), ..fp32_fallback(graph, Some(first)) });
    }
    let record = LayerRecord { error: Some(found.error), cosine: Some(found.cosine), ..record };
    Ok(Adapter { graph: candidate, precision, record, missed: None })
}

/// How close a candidate is to float32 on the held-out scans.
fn measure(candidate: &Graph, volume: &VolumeConfig, scans: &[ScanReference], runner: &Runner<'_>) -> Result<Fidelity> {
    let mut loaded = runner.open(candidate)?;
    let mut found = Fidelity::EXACT;
    for scan in scans.iter().filter(|s| s.role.evaluates()) {
        let Tensor::F32(expected) = scan.adapter.as_ref() else { continue };
        let feed = Feed::from([("volume".to_owned(), Arc::new(inputs::scan(volume, &scan.path)?))]);
        let Some(Tensor::F32(result)) = loaded.run(&feed, &["adapter"])?.into_iter().next() else { continue };
        // One metric over the whole map: it has no tokens.
        let whole = |a: &ArrayD<f32>| ArrayD::from_shape_vec(vec![1, a.len()], a.iter().copied().collect());
        let compared = match (whole(&result), whole(expected)) {
            (Ok(result), Ok(expected)) => fidelity_of(&result, &expected),
            _ => Err("it has no elements".to_owned()),
        };
        let f = compared.map_err(|e| Error::internal(format!("the adapter's result: {e}")))?;
        found = found.worst(&f);
    }
    Ok(found)
}

/// fp16 without knowing any activation, where the form uses it; else float32.
pub(in crate::export) fn data_free(graph: &Graph, form: NumericFormat) -> Result<Adapter> {
    if !form.uses_fp16() {
        return Ok(fp32(graph));
    }
    let fp16 = to_fp16(graph, &unfit_for_fp16(graph)?.0)?;
    Ok(Adapter { graph: fp16, precision: Precision::Fp16, record: record(graph, Scheme::Fp16), missed: None })
}

/// The ranges and that of the input, which is exact: a volume is scaled to 0..=1.
fn with_inputs(graph: &Graph, ranges: &Ranges) -> BTreeMap<String, (f32, f32)> {
    let inputs = graph.inputs.iter().map(|&id| (graph.value(id).name.clone(), (0.0, 1.0)));
    ranges.clone().into_iter().chain(inputs).collect()
}

fn record(graph: &Graph, scheme: Scheme) -> LayerRecord {
    let parameters = graph.parameters();
    LayerRecord {
        part: Part::Adapter.to_string(),
        layer: LAYER.into(),
        parameters,
        bytes: scheme.bytes(parameters as usize, 1),
        scheme,
        smoothed: false,
        error: None,
        cosine: None,
        first: None,
    }
}
