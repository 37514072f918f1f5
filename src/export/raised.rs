//! Layers that were raised from the scheme tried first to a more precise one: how many, why, and what it costs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::numeric_format::NumericFormat;
use super::quantize::limits::Limits;
use crate::bundle::{LayerRecord, Quantization};
use crate::model::Part;

/// The layers that have a more precise scheme than was tried first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Raised {
    /// Number of them.
    pub layers: usize,
    /// Number of all layers.
    pub of: usize,
    /// Number of those whose own error missed the limit of layers.
    pub by_layer_limit: usize,
    /// Number of those that met it, in a block that was raised because its part, or a probability, missed a limit.
    pub by_part_limit: usize,
    /// Bytes that they take more than under the first schemes.
    pub more_bytes: u64,
    /// Bytes of all layers.
    pub bytes: u64,
    /// How many times as long they take as under the first schemes: measured on held-out tokens, the mean by number of
    /// weights. None where no time was measured: of convolutions, and of integers for a GPU.
    pub slowdown: Option<f64>,
}

/// The raised layers of a quantization; none where all kept their first scheme.
pub(super) fn raised(
    quantization: &Quantization,
    form: NumericFormat,
    max_error: Option<f64>,
    slowdowns: &BTreeMap<String, f64>,
) -> Option<Raised> {
    let of_first = |layer: &LayerRecord| layer.first.as_ref().is_some_and(|first| first.scheme != layer.scheme);
    let layers: Vec<&LayerRecord> = quantization.layers.iter().filter(|layer| of_first(layer)).collect();
    let limit = |layer: &LayerRecord| {
        let part = layer.part.parse::<Part>();
        let allowed = part.map_or(quantization.max_error, |part| Limits::of_part(form, part, max_error).layer);
        layer.first.as_ref().and_then(|first| first.error).is_some_and(|error| error > allowed)
    };
    let by_layer_limit = layers.iter().filter(|layer| limit(layer)).count();
    let before = layers.iter().filter_map(|layer| layer.first.as_ref()).map(|first| first.bytes).sum::<u64>();
    let after = layers.iter().map(|layer| layer.bytes).sum::<u64>();
    let timed = layers.iter().filter_map(|layer| Some((slowdowns.get(&layer.layer)?, layer.parameters as f64)));
    let (time, weights) = timed.fold((0.0, 0.0), |(time, all), (slowdown, n)| (time + slowdown * n, all + n));
    (!layers.is_empty()).then(|| Raised {
        layers: layers.len(),
        of: quantization.layers.len(),
        by_layer_limit,
        by_part_limit: layers.len() - by_layer_limit,
        more_bytes: after.saturating_sub(before),
        bytes: quantization.layers.iter().map(|layer| layer.bytes).sum(),
        slowdown: (weights > 0.0).then(|| time / weights),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Calibration, FirstTry, Precision, Target};
    use crate::passes::quantize::Scheme;

    /// A layer of 1000 weights, raised if it has a first error.
    fn layer(part: Part, name: &str, first: Option<f64>) -> LayerRecord {
        LayerRecord {
            part: part.to_string(),
            layer: name.into(),
            parameters: 1000,
            bytes: if first.is_some() { 4000 } else { 1000 },
            scheme: if first.is_some() { Scheme::Fp32 } else { Scheme::INT8 },
            smoothed: false,
            error: Some(0.01),
            cosine: None,
            first: first.map(|error| FirstTry { scheme: Scheme::INT8, error: Some(error), bytes: 1000 }),
        }
    }

    #[test]
    fn raised_layers_say_why_and_at_what_cost() {
        let smoothed = LayerRecord {
            smoothed: true,
            first: Some(FirstTry { scheme: Scheme::INT8, error: Some(0.04), bytes: 1000 }),
            ..layer(Part::Text, "smoothed", None)
        };
        // The limit of layers of vision is int8's, 0.05, also in int4, whose own is 0.15.
        let layers = vec![
            layer(Part::Vision, "a", Some(0.1)),
            layer(Part::Text, "b", Some(0.1)),
            layer(Part::Text, "c", None),
            smoothed,
        ];
        let calibration =
            Calibration { scans: 1, reports: 1, held_out_scans: 1, held_out_reports: 1, statistics: None };
        let mut record =
            Quantization { max_error: 0.15, calibration, layers, blocks: Vec::new(), probabilities: None, flushed: 0 };
        let form = NumericFormat { precision: Precision::Int4, target: Target::Cpu };
        let slowdowns = BTreeMap::from([("a".to_owned(), 3.0), ("smoothed".to_owned(), 9.0)]);
        let found = raised(&record, form, None, &slowdowns).unwrap();
        let expected = Raised {
            layers: 2,
            of: 4,
            by_layer_limit: 1,
            by_part_limit: 1,
            more_bytes: 6000,
            bytes: 10_000,
            slowdown: Some(3.0),
        };
        assert_eq!(found, expected);
        assert_eq!(raised(&record, form, Some(0.05), &slowdowns).unwrap().by_layer_limit, 2);
        record.layers.drain(..2);
        assert_eq!(raised(&record, form, None, &slowdowns), None, "smoothing costs nothing");
    }
}
