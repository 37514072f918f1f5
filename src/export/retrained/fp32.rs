//! In float32: both graphs are compared with their plain forms.

use std::path::Path;

use super::{Bundled, Features, Fp32Graphs, Retrained};
use crate::bundle::Precision;
use crate::error::Result;
use crate::export::gate::only;
use crate::export::inputs;
use crate::export::parity::{Checker, feeds};
use crate::export::stage::Format;
use crate::model::{self, Part};
use crate::progress::Progress;
use crate::runtime::Runtime;
use crate::tensor::Tensor;

impl Bundled<'_> {
    /// Writes both graphs in float32 and compares them with their plain forms.
    pub(super) fn fp32(
        &self,
        graphs: &Fp32Graphs,
        features: &mut Features<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Retrained> {
        let (mut parts, mut files) = (Vec::new(), Vec::new());
        for (graph, part) in [(&graphs.adapter, Part::Adapter), (&graphs.heads, Part::Heads)] {
            let format = Format { precision: Precision::Fp32, parameters: graph.parameters() };
            let (summary, written) = self.write(graph, part, format, progress)?;
            parts.push(summary);
            files.extend(written);
        }
        if !self.inputs.is_empty() {
            progress.step("comparing with the plain fp32 graphs", None);
            let (config, weights) = (&self.bundle.manifest.config, &self.trained.weights);
            let runtime = Runtime::load(self.library)?;
            let checker = Checker { threads: self.threads, staging: self.staging, runtime };
            let scans: Vec<_> = self.inputs.iter().filter_map(|i| Some((i, i.scan.as_deref()?))).collect();
            let read = |(_, path): &(_, &Path)| Ok(vec![("volume", inputs::scan(&config.volume, path)?)]);
            let volumes = scans.iter().map(read).collect::<Result<_>>()?;
            let plain = model::adapter::build(config, weights)?;
            let [maps] = checker.part(&mut parts[0], &plain, volumes, ["adapter"])?;
            let mut both = Vec::new();
            for ((input, _), map) in scans.iter().zip(feeds("adapter", maps)) {
                let Some(report) = &input.report else { continue };
                let map: Vec<(&str, &Tensor)> = map.iter().map(|(n, t)| (*n, t)).collect();
                let vision = only(features(Part::Vision, &map, &["vision"])?);
                both.push(vec![("vision", vision), ("text", self.text(report, features)?.1)]);
            }
            checker.part(
                &mut parts[1],
                &model::heads::build(config, weights)?,
                both,
                ["v", "t", "logits", "similarity"],
            )?;
        }
        Ok(Retrained { parts, files, quantization: None, probabilities: None, fallbacks: Vec::new() })
    }
}
