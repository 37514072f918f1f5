//! Features of scans and reports on disk, so that what was computed once need not be computed again.
//!
//! `features/KEY.json` in a folder that the user names. KEY is the SHA-256 of everything that a result depends on: the
//! content of the scan's files (or the report's text), the volume chosen, the bundle with its preprocessing, the
//! device, this program's version and ONNX Runtime's build. So nothing ever has to be thrown away for being old; a file
//! that cannot be read or whose values do not have the recorded hash is computed again. Files hold no names, but
//! features are derived from patients' data: the folder is made for its owner alone.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bundle::sha256_of;
use crate::error::{Error, Result, Warning};
use crate::files::replace;
use crate::tensor::{Tensor, hex};

/// Largest file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Goes into every key: another meaning of the files needs another.
const VERSION: &str = "brain-adapter features 1";

/// A folder of features.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    /// What all keys of this run have in common.
    context: String,
}

/// What was computed from one scan or report.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    /// float32 `[1, n]`.
    pub tensor: Tensor,
    /// What the reader of a result should know of the input.
    pub warnings: Vec<Warning>,
    /// Tokens of a report.
    pub tokens: usize,
}

/// [`Features`] on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Of the values, as little-endian float32.
    sha256: String,
    warnings: Vec<Warning>,
    tokens: usize,
}

impl Store {
    /// The store in `cache`, for results that depend on `context`.
    ///
    /// # Errors
    /// `io` when the folder cannot be made.
    pub fn open(cache: &Path, context: &[&str]) -> Result<Self> {
        let folder = cache.join("features");
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder).map_err(|e| Error::io(&folder, "cannot make the folder", e))?;
        let context = std::iter::once(VERSION).chain(context.iter().copied()).collect::<Vec<_>>().join("\n");
        Ok(Self { folder, context })
    }

    /// The key of a scan that consists of these files.
    ///
    /// # Errors
    /// `io` when one cannot be read.
    pub fn scan_key(&self, files: &[PathBuf], volume: Option<usize>) -> Result<String> {
        let mut hash = self.hash(&format!("scan, volume {volume:?}"));
        for path in files {
            // Hashes are all of one length: no two lists of files run together.
            hash.update(sha256_of(path)?);
        }
        Ok(hex(&hash.finalize()))
    }

    /// The key of a report.
    pub fn report_key(&self, report: &str) -> String {
        let mut hash = self.hash("report");
        hash.update(report.as_bytes());
        hex(&hash.finalize())
    }

    fn hash(&self, kind: &str) -> Sha256 {
        let mut hash = Sha256::new();
        for text in [self.context.as_str(), kind] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash
    }

    /// What is stored under a key; none where there is nothing, or nothing sound.
    pub fn get(&self, key: &str) -> Option<Features> {
        let path = self.path(key);
        let meta = std::fs::metadata(&path).ok().filter(|m| m.is_file() && m.len() <= MAX_BYTES)?;
        let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).ok()?);
        File::open(&path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        let stored: Stored = serde_json::from_slice(&bytes).ok()?;
        if sha256(&stored.values) != stored.sha256 {
            return None;
        }
        let tensor = Tensor::f32(&stored.shape, stored.values)?;
        Some(Features { tensor, warnings: stored.warnings, tokens: stored.tokens })
    }

    /// Stores features under a key. Values that JSON has no form for (a NaN) are not stored.
    ///
    /// # Errors
    /// `io` or `disk.full`.
    pub fn put(&self, key: &str, features: &Features) -> Result<()> {
        let Some(values) = features.tensor.as_f32().filter(|v| v.iter().all(|x| x.is_finite())) else { return Ok(()) };
        let stored = Stored {
            shape: features.tensor.shape().to_vec(),
            values: values.to_vec(),
            sha256: sha256(values),
            warnings: features.warnings.clone(),
            tokens: features.tokens,
        };
        let path = self.path(key);
        let json = serde_json::to_vec(&stored).map_err(|e| Error::io(&path, "cannot write", e.into()))?;
        replace(&path, &json)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }
}

fn sha256(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    values.iter().for_each(|v| hash.update(v.to_le_bytes()));
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::WarningCode;

    fn features() -> Features {
        let values = vec![0.1, -1.0 / 3.0, f32::MIN_POSITIVE / 4.0, 3.4e38, -0.0];
        Features {
            tensor: Tensor::f32(&[1, 5], values).unwrap(),
            warnings: vec![Warning::new(WarningCode::FOV_CUT, "cut")],
            tokens: 7,
        }
    }

    #[test]
    fn what_was_stored_comes_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("new"), &["bundle"]).unwrap();
        let key = store.report_key("text");
        assert!(store.get(&key).is_none());
        store.put(&key, &features()).unwrap();
        let found = store.get(&key).unwrap();
        let bits = |f: &Features| f.tensor.as_f32().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&features()));
        assert_eq!((found.warnings, found.tokens), (features().warnings, 7));
    }

    #[test]
    fn damaged_files_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &[]).unwrap();
        store.put("k", &features()).unwrap();
        let path = store.path("k");
        let good = std::fs::read_to_string(&path).unwrap();
        for (old, new) in [("0.1", "0.2"), ("[1,5]", "[5,1,1,1,2]"), ("}", "")] {
            std::fs::write(&path, good.replacen(old, new, 1)).unwrap();
            assert!(store.get("k").is_none(), "{old} -> {new}");
        }
    }

    #[test]
    fn keys_depend_on_everything() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        std::fs::write(&a, "12").unwrap();
        std::fs::write(&b, "3").unwrap();
        let [one, two] = ["x", "y"].map(|c| Store::open(dir.path(), &[c]).unwrap());
        let keys = [
            one.scan_key(std::slice::from_ref(&a), None).unwrap(),
            one.scan_key(std::slice::from_ref(&b), None).unwrap(),
            one.scan_key(std::slice::from_ref(&a), Some(0)).unwrap(),
            one.scan_key(&[a.clone(), b], None).unwrap(),
            two.scan_key(&[a], None).unwrap(),
            one.report_key("12"),
            two.report_key("12"),
        ];
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
