//! Which large files were verified before and have not been modified since.
//!
//! Hashing seven gigabytes takes seconds at each start. In a cache folder that the user names, `verified/KEY.json` (KEY
//! is the bundle's hash, or that of what a prepacked copy depends on) records for each verified file its hash, its
//! place and what the file system reports of it. While all of these are the same, the file counts as verified. Who can
//! write to the record can have any weights believed: the cache must be the user's own ([`private`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::open_file::OpenFile;
use super::records::FileRecord;
use crate::error::{Error, Result};
use crate::files::{Identity, private, replace_private};

/// Maximum size of a record file.
const MAX_BYTES: u64 = 1 << 20;

/// The folder of the records in a cache.
const FOLDER: &str = "verified";

/// The verified files of one key.
pub(crate) struct VerifiedCache {
    cache: PathBuf,
    record: Record,
}

/// The file's content. It names its key: under another one it is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    key: String,
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    sha256: String,
    path: PathBuf,
    identity: Identity,
}

/// The record in a file's bytes, if it is this key's.
pub(crate) fn parse(bytes: &[u8], key: &str) -> Option<Record> {
    serde_json::from_slice(bytes).ok().filter(|record: &Record| record.key == key)
}

impl VerifiedCache {
    /// Reads the record of this key from a cache folder. One that cannot be read, or is for another key, counts as
    /// empty.
    ///
    /// # Errors
    /// `cache.unsafe` when others can write to the folder or own it; `io`.
    pub fn load(cache: &Path, key: &str) -> Result<Self> {
        let folder = private::folder_in(cache, FOLDER)?;
        let bytes = private::read(&folder.join(format!("{key}.json")), MAX_BYTES);
        let empty = || Record { key: key.to_owned(), files: BTreeMap::new() };
        let record = bytes.and_then(|bytes| parse(&bytes, key)).unwrap_or_else(empty);
        Ok(Self { cache: cache.to_path_buf(), record })
    }

    /// What was recorded of the file of this name.
    pub fn known(&self, name: &str) -> Option<FileRecord> {
        let entry = self.record.files.get(name)?;
        Some(FileRecord { name: name.to_owned(), bytes: entry.identity.bytes, sha256: entry.sha256.clone() })
    }

    /// Whether the file was verified and has not been modified since.
    pub fn is_verified(&self, file: &OpenFile) -> bool {
        let known = self.record.files.get(&file.record().name);
        known.is_some_and(|known| {
            let place = file.path().canonicalize();
            known.sha256 == file.record().sha256
                && known.identity == file.identity()
                && place.is_ok_and(|place| place == known.path)
        })
    }

    /// Records those of the files whose hash was right, and which did not change so shortly before that another change
    /// could go unnoticed.
    ///
    /// # Errors
    /// `io` or `disk.full` when the record cannot be written; `cache.unsafe`.
    pub fn record(&mut self, files: &[Arc<OpenFile>]) -> Result<()> {
        let before = self.record.clone();
        for file in files {
            let (record, path) = (file.record(), file.path().canonicalize());
            if let (Some(identity), Ok(path)) = (file.settled(), path) {
                let entry = Entry { sha256: record.sha256.clone(), path, identity };
                self.record.files.insert(record.name.clone(), entry);
            }
        }
        if self.record == before {
            return Ok(());
        }
        let path = private::folder_in(&self.cache, FOLDER)?.join(format!("{}.json", self.record.key));
        let json = serde_json::to_vec_pretty(&self.record).map_err(|e| Error::io(&path, "cannot write", e.into()))?;
        replace_private(&path, &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::sha256_of;
    use crate::files::SETTLED;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn open(&self, name: &str) -> Arc<OpenFile> {
            let path = self.0.path().join(name);
            let bytes = std::fs::metadata(&path).unwrap().len();
            let record = FileRecord { name: name.into(), bytes, sha256: sha256_of(&path).unwrap() };
            Arc::new(OpenFile::open(self.0.path(), &record).unwrap())
        }

        fn cache(&self, key: &str) -> VerifiedCache {
            VerifiedCache::load(&self.0.path().join("cache"), key).unwrap()
        }
    }

    #[test]
    fn modified_files_are_not_verified() {
        let dir = Folder(tempfile::tempdir().unwrap());
        let path = dir.0.path().join("w.data");
        std::fs::write(&path, "abc").unwrap();
        // Just written: too recent to be recorded, also when it was hashed; and nothing that was not hashed.
        let file = dir.open("w.data");
        dir.cache("b").record(std::slice::from_ref(&file)).unwrap();
        file.verify().unwrap();
        dir.cache("b").record(std::slice::from_ref(&file)).unwrap();
        assert!(!dir.cache("b").is_verified(&file));

        std::thread::sleep(SETTLED);
        let file = dir.open("w.data");
        file.verify().unwrap();
        dir.cache("b").record(std::slice::from_ref(&file)).unwrap();
        let (cache, fresh) = (dir.cache("b"), dir.open("w.data"));
        assert!(cache.is_verified(&fresh) && !dir.cache("c").is_verified(&fresh));
        assert_eq!(cache.known("w.data").as_ref(), Some(file.record()));

        // The record of another bundle, put under this one's name.
        let folder = dir.0.path().join("cache/verified");
        std::fs::copy(folder.join("b.json"), folder.join("c.json")).unwrap();
        assert!(!dir.cache("c").is_verified(&fresh));
        // The same bytes in another file: it was not hashed.
        std::fs::copy(&path, dir.0.path().join("v.data")).unwrap();
        std::fs::rename(dir.0.path().join("v.data"), &path).unwrap();
        assert!(!cache.is_verified(&dir.open("w.data")));

        // Other bytes with the old length and the old time of modification.
        let old = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, "abd").unwrap();
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(!cache.is_verified(&dir.open("w.data")));

        std::fs::write(folder.join("b.json"), "{").unwrap();
        assert!(!dir.cache("b").is_verified(&fresh));
    }

    #[cfg(unix)]
    #[test]
    fn a_record_that_others_can_write_to_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = Folder(tempfile::tempdir().unwrap());
        std::fs::write(dir.0.path().join("w.data"), "abc").unwrap();
        std::thread::sleep(SETTLED);
        let file = dir.open("w.data");
        file.verify().unwrap();
        dir.cache("b").record(std::slice::from_ref(&file)).unwrap();
        let path = dir.0.path().join("cache/verified/b.json");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(dir.cache("b").is_verified(&file));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(!dir.cache("b").is_verified(&file));
    }
}
