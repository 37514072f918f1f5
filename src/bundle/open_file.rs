//! A bundle's file, held open from before it is verified until nothing needs it any more.
//!
//! What is hashed is the open file, not its name: a file that is replaced under its name stays what it was. What was
//! verified stays verified while the file system reports the same of it ([`Identity`]); where that cannot settle it,
//! the file is hashed again:
//!
//! - **other size or time of modification**: the file was written to. It may have held other bytes meanwhile, whatever
//!   it holds now: an error.
//! - **other time of status alone** (`chmod`, a hard link, a new name): hashed again.
//! - **changed less than [`SETTLED`] before it was opened**: within the same tick of the clock it could change again
//!   unnoticed, so it is hashed again at each check until that time has passed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use super::file_hash::hash_open;
use super::names;
use super::records::FileRecord;
use crate::error::{Code, Error, Result};
use crate::files::mapped::{CHANGED, Kind, Registered};
use crate::files::{Identity, SETTLED, open_regular};

/// A file of a bundle, or a copy of one in a cache, with its recorded size and hash.
#[derive(Debug)]
pub(crate) struct OpenFile {
    path: PathBuf,
    record: FileRecord,
    state: Mutex<State>,
    _registered: Registered,
}

/// What is known of the open file.
#[derive(Clone, Debug)]
struct State {
    file: Arc<File>,
    /// When it was opened, or last hashed.
    identity: Identity,
    opened: Instant,
    verified: bool,
    /// Whether every later change shows in the identity.
    settled: bool,
}

// Without a runtime nothing is loaded from it.
#[cfg_attr(not(feature = "runtime"), allow(dead_code))]
impl OpenFile {
    /// Opens the file that `record` describes in `dir`; its content is not verified yet.
    ///
    /// # Errors
    /// `bundle.checksum` when it is missing or of another size; `bundle.path` when it is a link or no file; `io`.
    pub(crate) fn open(dir: &Path, record: &FileRecord) -> Result<Self> {
        let path = names::join(dir, &record.name)?;
        let state = State::open(&path, record)?;
        let registered = Registered::new(&path, Kind::Bundle);
        Ok(Self { path, record: record.clone(), state: Mutex::new(state), _registered: registered })
    }

    /// Its record.
    pub(crate) fn record(&self) -> &FileRecord {
        &self.record
    }

    /// What the file system reported of it when it was opened or hashed.
    pub(crate) fn identity(&self) -> Identity {
        self.state().identity.clone()
    }

    /// Its identity, if it was verified in that state and every later change shows in it.
    pub(crate) fn settled(&self) -> Option<Identity> {
        let state = self.state();
        (state.verified && state.settled).then(|| state.identity.clone())
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Believes that it is verified: it was, in a state that had settled, and its identity is the same.
    pub(crate) fn set_verified(&self) {
        let mut state = self.state();
        (state.verified, state.settled) = (true, true);
    }

    /// Hashes the file and compares the hash with the recorded one.
    ///
    /// # Errors
    /// `bundle.checksum`; `bundle.changed` when it was written to since it was opened; `io`.
    pub(crate) fn verify(&self) -> Result<()> {
        // Not under the lock: others check the file meanwhile.
        let before = self.state().clone();
        let after = before.hashed(&self.path, &self.record)?;
        let mut state = self.state();
        if Arc::ptr_eq(&state.file, &before.file) {
            *state = after;
        }
        Ok(())
    }

    /// Its bytes, whose hash was compared with the recorded one.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        let file = Arc::clone(&self.state().file);
        let mut bytes = Vec::new();
        let hash = hash_open(&file, &mut |piece| bytes.extend_from_slice(piece));
        let (_, sha256) = hash.map_err(|e| Error::io(&self.path, "cannot read the file", e))?;
        if sha256 == self.record.sha256 { Ok(bytes) } else { Err(self.changed()) }
    }

    /// Its bytes in memory of their own, as [`Self::read`], for as many as share them.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub(crate) fn read_shared(&self) -> Result<Arc<[u8]>> {
        let file = Arc::clone(&self.state().file);
        let size = usize::try_from(self.record.bytes).map_err(|_| self.changed())?;
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, size).collect();
        let target = Arc::get_mut(&mut bytes).ok_or_else(|| Error::internal("new memory is shared"))?;
        let mut at = 0_usize;
        let hash = hash_open(&file, &mut |piece| {
            // What has become longer has another hash.
            if let Some(target) = target.get_mut(at..at.saturating_add(piece.len())) {
                target.copy_from_slice(piece);
            }
            at = at.saturating_add(piece.len());
        });
        let (_, sha256) = hash.map_err(|e| Error::io(&self.path, "cannot read the file", e))?;
        if sha256 == self.record.sha256 { Ok(bytes) } else { Err(self.changed()) }
    }

    /// The bytes of a graph, of bounded size, as [`Self::read`].
    ///
    /// # Errors
    /// `onnx.invalid` when it is too large; those of [`Self::read`].
    pub(crate) fn read_graph(&self) -> Result<Vec<u8>> {
        crate::onnx::check_graph_size(self.record.bytes).map_err(|e| e.at(&self.path))?;
        self.read()
    }

    /// Makes sure that the open file is still what was verified. A file that is yet to be verified must not have been
    /// written to since it was opened.
    ///
    /// # Errors
    /// `bundle.changed`; `io`.
    pub(crate) fn check(&self) -> Result<()> {
        let mut state = self.state();
        self.checked(&mut state)
    }

    /// As [`Self::check`], of the file that its name leads to now, which a loader of graphs is about to open or has
    /// just opened. Gives its identity: the same before and after, nothing was changed in between.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(crate) fn check_name(&self) -> Result<Identity> {
        let mut state = self.state();
        let there = std::fs::symlink_metadata(&self.path).map_err(|e| self.changed().caused_by(e))?;
        if !there.is_file() {
            return Err(self.changed());
        }
        if !Identity::of(&there).same_file(&state.identity) {
            // Another file under this name: if it holds the same bytes, it is as good.
            let fresh = State::open(&self.path, &self.record).map_err(|_| self.changed())?;
            *state = fresh.hashed(&self.path, &self.record).map_err(|_| self.changed())?;
        }
        self.checked(&mut state)?;
        state.current(&self.path)
    }

    fn checked(&self, state: &mut State) -> Result<()> {
        let now = state.current(&self.path)?;
        if !now.same_contents(&state.identity) {
            return Err(self.changed());
        }
        if state.verified && !(state.settled && now == state.identity) {
            *state = state.hashed(&self.path, &self.record).map_err(|_| self.changed())?;
        }
        Ok(())
    }

    fn changed(&self) -> Error {
        Error::new(Code::BUNDLE_CHANGED, CHANGED).at(&self.path)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `load`, which opens these files by their names: they are the verified ones, before it and after it, and nothing
/// was changed meanwhile. A change is reported rather than what `load` made of it.
///
/// # Errors
/// `bundle.changed`, `io`, and those of `load`.
#[cfg(feature = "runtime")]
pub(crate) fn unchanged_while<T>(files: &[Arc<OpenFile>], load: impl FnOnce() -> Result<T>) -> Result<T> {
    let names = || files.iter().map(|file| file.check_name()).collect::<Result<Vec<_>>>();
    let before = names()?;
    let loaded = load();
    let after = names()?;
    match before.iter().zip(&after).position(|(before, after)| before != after) {
        Some(i) => Err(files[i].changed()),
        None => loaded,
    }
}

impl State {
    fn open(path: &Path, record: &FileRecord) -> Result<Self> {
        let wrong = |message: String| Error::new(Code::BUNDLE_CHECKSUM, message).at(path);
        // Before opening: a folder or a device is named as one.
        std::fs::symlink_metadata(path).map_err(|e| wrong(format!("the bundle's file is missing: {e}")))?;
        let failed = |e| Error::io(path, "cannot open the file", e);
        let Some(file) = open_regular(path).map_err(failed)? else {
            return Err(Error::new(Code::BUNDLE_PATH, "the bundle's file is a link or a folder").at(path));
        };
        let meta = file.metadata().map_err(failed)?;
        if meta.len() != record.bytes {
            return Err(wrong(format!("the file has {} bytes, expected {}: {RESTORE}", meta.len(), record.bytes)));
        }
        let identity = Identity::of(&meta);
        Ok(Self { file: Arc::new(file), identity, opened: Instant::now(), verified: false, settled: false })
    }

    /// What the file system reports now.
    fn current(&self, path: &Path) -> Result<Identity> {
        let meta = self.file.metadata().map_err(|e| Error::io(path, "cannot check the file", e))?;
        Ok(Identity::of(&meta))
    }

    /// The state after the file was hashed, and found unchanged and right.
    fn hashed(&self, path: &Path, record: &FileRecord) -> Result<Self> {
        let changed = || Error::new(Code::BUNDLE_CHANGED, CHANGED).at(path);
        let (before, now) = (self.current(path)?, SystemTime::now());
        let settled = before.is_settled(now) || (before == self.identity && self.opened.elapsed() >= SETTLED);
        if !before.same_contents(&self.identity) {
            return Err(changed());
        }
        let hash = hash_open(&self.file, &mut |_| ());
        let (_, sha256) = hash.map_err(|e| Error::io(path, "cannot read the file", e))?;
        if !self.current(path)?.same_contents(&before) {
            return Err(changed());
        }
        if sha256 != record.sha256 {
            let message = format!("the file was changed: SHA-256 {sha256}, expected {}; {RESTORE}", record.sha256);
            return Err(Error::new(Code::BUNDLE_CHECKSUM, message).at(path));
        }
        let opened = if before == self.identity { self.opened } else { Instant::now() };
        Ok(Self { file: Arc::clone(&self.file), identity: before, opened, verified: true, settled })
    }
}

/// What to do about a damaged bundle: the reader may not be the one who exported it.
const RESTORE: &str = "copy the bundle again from its source, or export it again with ba-export";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::sha256_of;

    fn write(path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
    }

    fn opened(dir: &Path) -> Arc<OpenFile> {
        let path = dir.join("w.data");
        write(&path, b"abc");
        let record = FileRecord { name: "w.data".into(), bytes: 3, sha256: sha256_of(&path).unwrap() };
        Arc::new(OpenFile::open(dir, &record).unwrap())
    }

    fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
        result.unwrap_err().code()
    }

    /// Also within one tick of the file system's clock, where times tell nothing: no pause lies between the writes.
    #[test]
    fn what_is_written_is_noticed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..100 {
            let file = opened(dir.path());
            file.verify().unwrap();
            file.check().unwrap();
            write(file.path(), b"abd");
            assert_eq!(code(file.check()), Code::BUNDLE_CHANGED);
            assert_eq!(code(file.check_name()), Code::BUNDLE_CHANGED);
            assert_eq!(code(file.read()), Code::BUNDLE_CHANGED);
            // Before it was hashed, either is true.
            let file = opened(dir.path());
            write(file.path(), b"abd");
            assert!([Code::BUNDLE_CHANGED, Code::BUNDLE_CHECKSUM].contains(&code(file.verify())));
        }
    }

    #[test]
    fn every_kind_of_change_is_told_from_none() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("w.data"), dir.path().join("other"));
        let put = |bytes: &[u8]| {
            write(&other, bytes);
            std::fs::rename(&other, &path).unwrap();
        };
        let truncate = |bytes: u64| File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        type Change<'a> = &'a dyn Fn();
        // What the open file says, and what its name leads to; none where nothing is wrong.
        let changed = Some(Code::BUNDLE_CHANGED);
        let cases: [(&str, Change<'_>, Option<Code>, Option<Code>); 8] = [
            ("nothing", &|| (), None, None),
            ("the same bytes in place", &|| write(&path, b"abc"), changed, changed),
            ("shorter", &|| truncate(1), changed, changed),
            ("empty", &|| truncate(0), changed, changed),
            ("longer", &|| truncate(9), changed, changed),
            ("a copy in its place", &|| put(b"abc"), None, None),
            ("another in its place", &|| put(b"abd"), None, changed),
            ("gone", &|| std::fs::remove_file(&path).unwrap(), None, changed),
        ];
        for (what, change, open, name) in cases {
            let file = opened(dir.path());
            file.verify().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(30));
            change();
            assert_eq!(file.check().err().map(|e| e.code()), open, "{what}");
            assert_eq!(file.check_name().err().map(|e| e.code()), name, "{what}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_change_of_status_is_settled_by_hashing() {
        let dir = tempfile::tempdir().unwrap();
        let file = opened(dir.path());
        file.verify().unwrap();
        std::fs::hard_link(file.path(), dir.path().join("backup")).unwrap();
        file.check().unwrap();
        let modified = std::fs::metadata(file.path()).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        write(file.path(), b"abd");
        File::options().append(true).open(file.path()).unwrap().set_modified(modified).unwrap();
        assert_eq!(code(file.check()), Code::BUNDLE_CHANGED);
    }

    #[test]
    fn what_changes_while_it_is_loaded_is_reported_and_not_what_comes_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = opened(dir.path());
        file.verify().unwrap();
        let files = [Arc::clone(&file)];
        assert_eq!(unchanged_while(&files, || Ok(7)).unwrap(), 7);
        let broken = || Err::<(), _>(Error::new(Code::RUNTIME_MODEL, "broken"));
        assert_eq!(code(unchanged_while(&files, broken)), Code::RUNTIME_MODEL);
        std::thread::sleep(std::time::Duration::from_millis(30));
        let change = || {
            write(file.path(), b"abd");
            broken()
        };
        assert_eq!(code(unchanged_while(&files, change)), Code::BUNDLE_CHANGED);
    }

    #[cfg(unix)]
    #[test]
    fn links_and_pipes_are_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let record = opened(dir.path()).record().clone();
        let place = dir.path().join("w.data");
        std::fs::rename(&place, dir.path().join("v")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("v"), &place).unwrap();
        assert_eq!(code(OpenFile::open(dir.path(), &record)), Code::BUNDLE_PATH);
        std::fs::remove_file(&place).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(code(OpenFile::open(dir.path(), &record)), Code::BUNDLE_PATH);
    }
}
