//! Features of scans and reports on disk, so that what was computed once need not be computed again.
//!
//! `features/KEY.json` in a folder that the user names. KEY is the SHA-256 of everything that a result depends on:
//! the content of the scan's files (or the report's text), the volume chosen, the orientation stated, the bundle with
//! its preprocessing, the device, this program's version and ONNX Runtime's build. So nothing ever has to be thrown
//! away for being old. A file's own hash covers its KEY: one that cannot be read, was changed, or was put under
//! another name is computed again. Files hold no names, but features are derived from patients' data: folder and
//! files are the owner's alone.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bundle::sha256_of;
use crate::error::{Error, Result, Warning};
use crate::files::{private, replace_private};
use crate::tensor::{Tensor, hex};
use crate::volume::{Quality, ReadOptions};

/// Largest file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Goes into every key: another meaning of the files needs another.
const VERSION: &str = "brain-adapter features 3";

/// The folder of features in a cache.
const FOLDER: &str = "features";

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
    /// Figures of a scan; none of a report.
    pub quality: Option<Quality>,
}

/// [`Features`] on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Of the key and of everything here ([`Stored::hash`]).
    sha256: String,
    warnings: Vec<Warning>,
    tokens: usize,
    quality: Option<Quality>,
}

impl Stored {
    /// What `sha256` is under this key. The key stands for what the features were computed from and how.
    fn hash(&self, key: &str) -> String {
        let warnings = self.warnings.iter().map(|w| format!("{} {}", w.code, w.message));
        let quality = serde_json::to_string(&self.quality).unwrap_or_default();
        let texts = [VERSION.to_owned(), key.to_owned(), format!("{:?} {}", self.shape, self.tokens), quality];
        let mut hash = Sha256::new();
        for text in texts.into_iter().chain(warnings) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        self.values.iter().for_each(|v| hash.update(v.to_le_bytes()));
        hex(&hash.finalize())
    }
}

/// The features in a file's bytes, if they are those of this key.
pub(crate) fn parse(bytes: &[u8], key: &str) -> Option<Features> {
    let stored: Stored = serde_json::from_slice(bytes).ok()?;
    if stored.hash(key) != stored.sha256 {
        return None;
    }
    let tensor = Tensor::f32(&stored.shape, stored.values)?;
    Some(Features { tensor, warnings: stored.warnings, tokens: stored.tokens, quality: stored.quality })
}

impl Store {
    /// The store in `cache`, for results that depend on `context`.
    ///
    /// # Errors
    /// `io` when the folder cannot be made; `cache.unsafe` when others own it or can write to it.
    pub fn open(cache: &Path, context: &[&str]) -> Result<Self> {
        let folder = private::folder_in(cache, FOLDER)?;
        let context = std::iter::once(VERSION).chain(context.iter().copied()).collect::<Vec<_>>().join("\n");
        Ok(Self { folder, context })
    }

    /// The key of a scan that consists of these files.
    ///
    /// # Errors
    /// `io` when one cannot be read.
    pub fn scan_key(&self, files: &[PathBuf], options: &ReadOptions) -> Result<String> {
        let stated = options.orientation.map(|codes| format!(", orientation {codes}")).unwrap_or_default();
        let mut hash = self.hash(&format!("scan, volume {:?}{stated}", options.volume));
        for path in files {
            // Hashes are all of one length: no two lists of files run together.
            hash.update(sha256_of(path)?);
        }
        Ok(hex(&hash.finalize()))
    }

    /// The key of a report.
    pub fn report_key(&self, report: &str) -> String {
        // With its warnings, which the first version of this key did not have.
        let mut hash = self.hash("report 2");
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
        parse(&private::read(&self.path(key), MAX_BYTES)?, key)
    }

    /// Stores features under a key. Values that JSON has no form for (a NaN) are not stored.
    ///
    /// # Errors
    /// `io` or `disk.full`.
    pub fn put(&self, key: &str, features: &Features) -> Result<()> {
        let Some(values) = features.tensor.as_f32().filter(|v| v.iter().all(|x| x.is_finite())) else { return Ok(()) };
        let mut stored = Stored {
            shape: features.tensor.shape().to_vec(),
            values: values.to_vec(),
            sha256: String::new(),
            warnings: features.warnings.clone(),
            tokens: features.tokens,
            quality: features.quality.clone(),
        };
        stored.sha256 = stored.hash(key);
        let path = self.path(key);
        let json = serde_json::to_vec(&stored).map_err(|e| Error::io(&path, "cannot write", e.into()))?;
        replace_private(&path, &json)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }
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
            quality: Some(Quality { min: -0.1, border_median: 1.0 / 3.0, ..Quality::default() }),
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
        assert_eq!(found.quality, features().quality);
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

    /// Two patients' files that change places are two misses, not two answers.
    #[test]
    fn a_file_is_believed_under_its_own_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &["bundle"]).unwrap();
        let [one, two] = ["one", "two"].map(|text| store.report_key(text));
        let other = Features { tensor: Tensor::f32(&[1, 5], vec![9.0; 5]).unwrap(), ..features() };
        store.put(&one, &features()).unwrap();
        store.put(&two, &other).unwrap();
        let files = [store.path(&one), store.path(&two)];
        let [a, b] = [0, 1].map(|i| std::fs::read(&files[i]).unwrap());
        std::fs::write(&files[0], &b).unwrap();
        std::fs::write(&files[1], &a).unwrap();
        assert!(store.get(&one).is_none() && store.get(&two).is_none());
        // Every field is covered.
        let text = String::from_utf8(a).unwrap();
        for (old, new) in [
            ("\"tokens\":7", "\"tokens\":8"),
            ("\"cut\"", "\"\""),
            ("fov_cut", "xform_code"),
            ("\"min\":-0.1", "\"min\":0.1"),
        ] {
            std::fs::write(&files[0], text.replacen(old, new, 1)).unwrap();
            assert!(text.contains(old) && store.get(&one).is_none(), "{old} -> {new}");
        }
        std::fs::write(&files[0], text).unwrap();
        assert!(store.get(&one).is_some());
    }

    #[cfg(unix)]
    #[test]
    fn files_are_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let store = Store::open(&cache, &[]).unwrap();
        store.put("k", &features()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let found = [&cache, &cache.join("features"), &store.path("k")].map(|path| mode(path));
        assert_eq!(found, [0o700, 0o700, 0o600]);
        std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(Store::open(&cache, &[]).unwrap_err().code(), crate::Code::CACHE_UNSAFE);
    }

    #[test]
    fn keys_depend_on_everything() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        std::fs::write(&a, "12").unwrap();
        std::fs::write(&b, "3").unwrap();
        let [one, two] = ["x", "y"].map(|c| Store::open(dir.path(), &[c]).unwrap());
        let plain = ReadOptions::default();
        let stated = |codes: &str| ReadOptions { orientation: Some(codes.parse().unwrap()), ..plain };
        let keys = [
            one.scan_key(std::slice::from_ref(&a), &plain).unwrap(),
            one.scan_key(std::slice::from_ref(&b), &plain).unwrap(),
            one.scan_key(std::slice::from_ref(&a), &ReadOptions { volume: Some(0), ..plain }).unwrap(),
            one.scan_key(std::slice::from_ref(&a), &stated("LAS")).unwrap(),
            one.scan_key(std::slice::from_ref(&a), &stated("RAS")).unwrap(),
            one.scan_key(&[a.clone(), b], &plain).unwrap(),
            two.scan_key(&[a], &plain).unwrap(),
            one.report_key("12"),
            two.report_key("12"),
        ];
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
