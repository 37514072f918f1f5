//! `bundle.json`. It holds no time and no absolute path: the same export writes the same bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::names;
use super::quantization::Quantization;
use super::records::{FileRecord, PartRecord, Preprocessing, SourceRecord, TokenizerRecord, Tool, VersionRecord};
use super::target::Target;
use super::temperature::Temperature;
use crate::config::{Config, LlamaConfig};
use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::tensor::hex;

/// The manifest's file name.
pub const MANIFEST: &str = "bundle.json";

/// The intended use that every manifest records and every command prints.
pub const INTENDED_USE: &str = "Research use only. Not a medical device; not for diagnosis or treatment.";

/// Maximum number of JSON values in a manifest: each takes memory when it is parsed.
pub(super) const MAX_VALUES: usize = 1 << 20;

/// Version of the manifest's format; other versions are refused.
pub const FORMAT: u32 = 2;

/// Content of `bundle.json`: what a bundle is, and everything needed to use it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, [`FORMAT`].
    pub format: u32,
    /// The program that wrote it.
    pub tool: Tool,
    /// What it may be used for.
    pub intended_use: String,
    /// The model's configuration.
    pub config: Config,
    /// The language model's configuration.
    pub text_model: LlamaConfig,
    /// Class names in the order of `logits`.
    pub labels: Vec<String>,
    /// How a scan becomes the input `volume`.
    pub preprocessing: Preprocessing,
    /// How a report becomes `input_ids`.
    pub tokenizer: TokenizerRecord,
    /// Whether `heads.onnx` has the output `image_logits`, for scans without a report.
    pub image_head: bool,
    /// The graphs by part name; [`Manifest::part`] for one of them.
    pub parts: BTreeMap<String, PartRecord>,
    /// How weights and arithmetic were quantized; none in an fp32 bundle.
    pub quantization: Option<Quantization>,
    /// The device that integer weights are made for. The field is absent in bundles for the CPU and in float bundles.
    #[serde(default, skip_serializing_if = "Target::is_cpu")]
    pub target: Target,
    /// Every file of the bundle except `bundle.json`.
    pub files: Vec<FileRecord>,
    /// The checkpoint files that the bundle was made from.
    pub sources: Vec<SourceRecord>,
    /// Tensors of the sources that the model does not use.
    pub skipped: Vec<String>,
    /// Which version of a bundle it is; none if it is unchanged since its export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionRecord>,
    /// Divisors of the logits. The field is absent in bundles without fitted temperatures.
    #[serde(default, skip_serializing_if = "Temperature::is_none")]
    pub temperature: Temperature,
}

impl Manifest {
    /// Reads and checks the text of `bundle.json`, as far as that is possible without the other files.
    ///
    /// # Errors
    /// `bundle.manifest`; `bundle.path` when a file's name is a path.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let invalid = |message: String| Error::new(Code::BUNDLE_MANIFEST, message);
        // The version first: other formats may have other fields.
        let json = crate::json::parse(bytes, MAX_VALUES).map_err(invalid)?;
        match json.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                return Err(invalid(format!(
                    "the bundle has format {format}, this program reads {FORMAT}: use the program's version that \
                         exported it, or export it again with this one"
                )));
            }
            None => return Err(invalid("the manifest has no format version".into())),
        }
        let manifest: Self = serde_json::from_value(json).map_err(|e| invalid(format!("{e}")))?;
        manifest.config.validate().map_err(|e| invalid(e.message().to_owned()))?;
        manifest.text_model.validate().map_err(|e| invalid(e.message().to_owned()))?;
        if manifest.labels != manifest.config.labels.0 {
            return Err(invalid("its labels differ from its configuration's".into()));
        }
        if let Some(part) = Part::ALL.iter().find(|part| !manifest.parts.contains_key(part.as_str())) {
            return Err(invalid(format!("the graph `{part}` is missing")));
        }
        manifest.check_names()?;
        if manifest.tokenizer.max_tokens == 0 {
            return Err(invalid("tokenizer.max_tokens is 0, expected at least 1".into()));
        }
        let positions = manifest.text_model.check_tokens(manifest.tokenizer.max_tokens);
        positions.map_err(|e| invalid(e.message().to_owned()))?;
        manifest.temperature.check(manifest.image_head).map_err(invalid)?;
        Ok(manifest)
    }

    /// Checks every name of a file. Two that differ only in case are one file on some systems.
    fn check_names(&self) -> Result<()> {
        let mut seen = BTreeMap::new();
        for file in &self.files {
            names::check(&file.name)?;
            if file.name.eq_ignore_ascii_case(MANIFEST) {
                let message = format!("the manifest lists `{}`, which is the manifest", file.name);
                return Err(Error::new(Code::BUNDLE_MANIFEST, message));
            }
            if let Some(other) = seen.insert(file.name.to_lowercase(), &file.name) {
                let message = match other == &file.name {
                    true => format!("the file `{other}` is listed twice"),
                    false => format!("the files `{other}` and `{}` differ only in case", file.name),
                };
                return Err(Error::new(Code::BUNDLE_MANIFEST, message));
            }
        }
        let named = self.parts.values().flat_map(PartRecord::graphs).chain([&self.tokenizer.file]);
        named.map(String::as_str).try_for_each(names::check)
    }

    /// The record of a part's graph.
    ///
    /// # Panics
    /// If the part is missing, which [`Self::from_bytes`] refuses.
    pub fn part(&self, part: Part) -> &PartRecord {
        &self.parts[part.as_str()]
    }

    /// The text of `bundle.json`.
    ///
    /// # Errors
    /// `bundle.manifest` when a value cannot be written as JSON (a float that is not finite).
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| {
            let message = format!("cannot write the manifest: {e}");
            Error::new(Code::BUNDLE_MANIFEST, message).caused_by(e)
        })
    }

    /// SHA-256 of [`Self::to_bytes`] without the temperature: the identity of what the graphs compute.
    ///
    /// # Errors
    /// As [`Self::to_bytes`].
    pub fn model_sha256(&self) -> Result<String> {
        let model = Self { temperature: Temperature::default(), ..self.clone() };
        Ok(hex(&Sha256::digest(model.to_bytes()?)))
    }
}
