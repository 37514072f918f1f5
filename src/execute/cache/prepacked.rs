//! Weights as ONNX Runtime lays them out for this processor, kept on disk.
//!
//! Laying seven gigabytes out takes tens of seconds and as much private memory at each start. Where the user asks for
//! it, the laid-out graph is written once to `prepacked/KEY/` in the cache folder and mapped from there: full speed,
//! and memory that the system may drop and read again. KEY names everything that the layout depends on: the bundle, the
//! graph, ONNX Runtime's build and the processor. The files take about twice the room of the weights, belong to this
//! machine alone and are made only from weights that were verified; one that was touched since is made anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::bundle::{FileRecord, OpenFile, VerifiedCache, hash_file};
use crate::error::{Code, Error, Result};
use crate::files::mapped::CHANGED;
use crate::files::{Identity, SETTLED, TemporaryFolder, check_free_space, private};
use crate::model::Part;
use crate::runtime::Runtime;
use crate::tensor::hex;

/// Files that were written less than this before are not remembered ([`SETTLED`]).
const SETTLING: Duration = SETTLED.saturating_add(Duration::from_millis(500));

/// The folder of copies in a cache.
const FOLDER: &str = "prepacked";

/// The copies of one bundle's graphs.
#[derive(Clone, Debug)]
pub(crate) struct Prepacked {
    cache: PathBuf,
    context: String,
}

/// A copy of a graph, and its open files.
pub(crate) struct PrepackedCopy {
    /// The graph's file.
    pub graph: PathBuf,
    /// This file and that of the weights.
    pub files: Vec<Arc<OpenFile>>,
}

impl Prepacked {
    /// The copies in `cache` of the bundle with this hash.
    pub fn new(cache: &Path, bundle: &str, runtime: &Runtime) -> Self {
        let context = ["brain-adapter prepacked 1", bundle, runtime.build, &processor()].join("\n");
        Self { cache: cache.to_path_buf(), context }
    }

    /// The copy of a graph, where there is one that was not touched since it was made.
    ///
    /// # Errors
    /// `cache.unsafe` when others can write to the folder or own it; `io`.
    pub fn find(&self, part: Part) -> Result<Option<PrepackedCopy>> {
        let key = self.key(part);
        let folder = private::folder_in(&self.cache, FOLDER)?.join(&key);
        if !folder.exists() {
            return Ok(None);
        }
        private::own_folder(&folder)?;
        let known = VerifiedCache::load(&self.cache, &key)?;
        let open = |name: &String| {
            let file = Arc::new(OpenFile::open(&folder, &known.known(name)?).ok()?);
            known.is_verified(&file).then(|| {
                file.set_verified();
                file
            })
        };
        let names = names(part);
        let files: Option<Vec<_>> = names.iter().map(open).collect();
        Ok(files.map(|files| PrepackedCopy { graph: folder.join(&names[0]), files }))
    }

    /// Makes the copy of a graph, whose weights are verified: `save` writes it under the name that it is given, and the
    /// weights next to it. `need` is the room that it takes on the disk.
    ///
    /// # Errors
    /// `io`, `disk.full`, `cache.unsafe`; those of `save`.
    pub fn make(&self, part: Part, need: u64, save: &mut dyn FnMut(&Path) -> Result<()>) -> Result<PrepackedCopy> {
        let (key, all) = (self.key(part), private::folder_in(&self.cache, FOLDER)?);
        check_free_space(&all, need, "weights laid out for this machine")?;
        let temporary = TemporaryFolder::new(&all, "weights")?;
        let names = names(part);
        save(&temporary.path().join(&names[0]))?;
        let folder = all.join(&key);
        // Another process's, or one that was touched: ours is as good.
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, "cannot replace", e))?;
        }
        std::fs::rename(temporary.path(), &folder).map_err(|e| Error::io(&folder, "cannot put into place", e))?;
        private::own_folder(&folder)?;
        names.iter().try_for_each(|name| private::close_file(&folder.join(name)))?;
        std::thread::sleep(SETTLING);
        let open = |name: &String| {
            let path = folder.join(name);
            let before = Identity::at(&path).map_err(|e| Error::io(&path, "cannot open the file", e))?;
            let (bytes, sha256) = hash_file(&path, &AtomicBool::new(false))?;
            let file = OpenFile::open(&folder, &FileRecord { name: name.clone(), bytes, sha256 })?;
            if file.identity() != before {
                return Err(Error::new(Code::BUNDLE_CHANGED, CHANGED).at(path));
            }
            // Its hash is not compared with another: it is what the file is known by from now on.
            file.set_verified();
            Ok(Arc::new(file))
        };
        let files = names.iter().map(open).collect::<Result<Vec<_>>>()?;
        VerifiedCache::load(&self.cache, &key)?.record(&files)?;
        Ok(PrepackedCopy { graph: folder.join(&names[0]), files })
    }

    fn key(&self, part: Part) -> String {
        hex(&Sha256::digest(format!("{}\n{part}", self.context)))
    }
}

/// The names of a copy's files: the graph first.
fn names(part: Part) -> [String; 2] {
    [format!("{part}.onnx"), format!("{part}.onnx.data")]
}

/// What the layout of weights depends on: the kind of processor and what it can do.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    [std::env::consts::ARCH, line("model name"), line("flags"), line("Features")].join("\n")
}
