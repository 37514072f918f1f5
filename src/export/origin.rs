//! What an export is made from: the hashes of its sources, and what calibration statistics were gathered with.
//!
//! In: the thread that hashes the checkpoints while the graphs are made. Out: the records of `bundle.json`, and for
//! each trunk the SHA-256 of all that its activations depend on: the weights' files, and the configuration as it is
//! used (not its file: another layout of the same values changes nothing).

use std::cell::{Cell, OnceCell};
use std::thread::ScopedJoinHandle;

#[cfg(feature = "runtime")]
use super::sources::Loaded;
use super::stage;
use crate::bundle::SourceRecord;
use crate::error::{Error, Result};

/// The files that an export is made from.
pub(super) struct Origin<'scope> {
    hashing: Cell<Option<ScopedJoinHandle<'scope, Result<Vec<SourceRecord>>>>>,
    records: OnceCell<Vec<SourceRecord>>,
}

impl<'scope> Origin<'scope> {
    /// Of the thread that hashes them.
    pub fn new(hashing: ScopedJoinHandle<'scope, Result<Vec<SourceRecord>>>) -> Self {
        Self { hashing: Cell::new(Some(hashing)), records: OnceCell::new() }
    }

    /// The records, once all files are hashed.
    fn records(&self) -> Result<&[SourceRecord]> {
        if let Some(hashing) = self.hashing.take() {
            let records = stage::joined(hashing.join())?;
            return Ok(self.records.get_or_init(|| records));
        }
        self.records.get().map(Vec::as_slice).ok_or_else(|| Error::internal("the sources were not hashed"))
    }

    /// As [`Self::records`].
    ///
    /// # Errors
    /// `io` when a file could not be read.
    pub fn into_records(self) -> Result<Vec<SourceRecord>> {
        self.records()?;
        self.records.into_inner().ok_or_else(|| Error::internal("the sources were not hashed"))
    }
}

#[cfg(feature = "runtime")]
mod statistics {
    use std::collections::BTreeMap;

    use serde::Serialize;
    use serde_json::{Value, json};
    use sha2::{Digest, Sha256};

    use super::{Loaded, Origin};
    use crate::calibrate::Statistics;
    use crate::error::{Code, Error, Result};
    use crate::model::Part;
    use crate::tensor::hex;

    impl Origin<'_> {
        /// By trunk, the hash of what its activations depend on.
        ///
        /// # Errors
        /// `io` when a file could not be read.
        pub fn models(&self, loaded: &Loaded) -> Result<BTreeMap<String, String>> {
            let records = self.records()?;
            let config_file = loaded.text_config.as_ref().and_then(|path| path.file_name());
            let hashes = |role: &str| -> Vec<&str> {
                let of = records.iter().filter(|record| record.role == role);
                // Of Hugging Face's folder, the configuration is among the text's files.
                let weights =
                    of.filter(|r| role != Part::Text.as_str() || config_file.is_none_or(|name| *name != *r.name));
                weights.map(|record| record.sha256.as_str()).collect()
            };
            let config = &loaded.config;
            let [adapter, vision, text] = [Part::Adapter, Part::Vision, Part::Text].map(|part| hashes(part.as_str()));
            let vision = json!({
                "adapter": adapter, "vision": vision,
                "config": [plain(&config.volume)?, plain(&config.adapter)?, plain(&config.vision)?],
            });
            let text = json!({
                "text": text, "tokenizer": hashes("tokenizer"), "config": plain(&loaded.llama)?,
                "bos": loaded.tokenizer.bos, "max_tokens": config.text.max_tokens,
            });
            let hash = |json: Value| hex(&Sha256::digest(json.to_string().as_bytes()));
            Ok([(Part::Vision, vision), (Part::Text, text)].map(|(part, json)| (part.to_string(), hash(json))).into())
        }

        /// Checks that given statistics were gathered with these weights and this configuration.
        ///
        /// # Errors
        /// `calibration.input`; `io` when a file could not be read.
        pub fn check(&self, loaded: &Loaded, given: &Statistics) -> Result<()> {
            let wrong = |message: String| Err(Error::new(Code::CALIBRATION_INPUT, message));
            for (part, ours) in self.models(loaded)? {
                let has =
                    given.activations.keys().any(|name| name.strip_prefix(&part).is_some_and(|r| r.starts_with('/')));
                let short = |hash: &str| hash.chars().take(8).collect::<String>();
                match given.models.get(&part) {
                    _ if !has => {}
                    Some(theirs) if *theirs == ours => {}
                    Some(theirs) => {
                        return wrong(format!(
                            "the statistics are another model's: those of `{part}` were gathered with other weights or \
                             another configuration ({}, this export has {}). Leave --statistics out, so that they are \
                             gathered again",
                            short(theirs),
                            short(&ours)
                        ));
                    }
                    None => {
                        return wrong(format!(
                            "the statistics of `{part}` do not say which weights they are of, for an older version wrote \
                             them: whether they are another model's cannot be known. Leave --statistics out, so that they \
                             are gathered again"
                        ));
                    }
                }
            }
            Ok(())
        }
    }

    fn plain(value: &impl Serialize) -> Result<Value> {
        serde_json::to_value(value).map_err(|e| Error::internal(format!("a configuration cannot be written: {e}")))
    }
}
