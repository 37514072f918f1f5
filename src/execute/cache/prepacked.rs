//! Weights as ONNX Runtime lays them out for this processor, kept on disk.
//!
//! Laying seven gigabytes out takes tens of seconds and as much private memory at each start. Where the user asks for
//! it, the laid-out graph is written once to `prepacked/KEY/` in the cache folder and mapped from there: full speed,
//! and memory that the system may drop and read again. KEY names everything that the layout depends on: the bundle, the
//! graph, ONNX Runtime's build and the processor. The files take about twice the room of the weights, belong to this
//! machine alone and are made only from weights that were verified; one that was touched since is made anew.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::bundle::{FileRecord, VerifiedCache};
use crate::error::{Error, Result};
use crate::files::{TemporaryFolder, check_free_space};
use crate::model::Part;
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::hex;

/// Files that were written less than this before are not remembered; see [`VerifiedCache`].
const SETTLING: Duration = Duration::from_millis(2500);

/// The copies of one bundle's graphs.
#[derive(Clone, Debug)]
pub(crate) struct Prepacked {
    cache: PathBuf,
    context: String,
}

impl Prepacked {
    /// The copies in `cache` of the bundle with this hash.
    pub fn new(cache: &Path, bundle: &str, runtime: &Runtime) -> Self {
        let context = ["brain-adapter prepacked 1", bundle, runtime.build, &processor()].join("\n");
        Self { cache: cache.to_path_buf(), context }
    }

    /// The copy of a graph, where there is a sound one.
    pub fn find(&self, part: Part) -> Option<PathBuf> {
        let key = self.key(part);
        let graph = self.folder(&key).join(format!("{part}.onnx"));
        let memory = VerifiedCache::load(&self.cache, &key);
        let sound = |path: &Path| memory.is_verified(path, &record(path));
        (sound(&graph) && sound(&graph.with_extension("onnx.data"))).then_some(graph)
    }

    /// Makes the copy of the graph at `source`, whose weights are verified; gives its place. `need` is the room that it
    /// takes on the disk.
    ///
    /// # Errors
    /// `io`, `disk.full`, `runtime.model`.
    pub fn make(
        &self,
        part: Part,
        source: &Path,
        need: u64,
        runtime: &Runtime,
        options: &SessionOptions,
    ) -> Result<PathBuf> {
        let (key, all) = (self.key(part), self.cache.join("prepacked"));
        std::fs::create_dir_all(&all).map_err(|e| Error::io(&all, "cannot make the folder", e))?;
        check_free_space(&all, need, "weights laid out for this machine")?;
        let temporary = TemporaryFolder::new(&all, "weights")?;
        let name = format!("{part}.onnx");
        Session::save_prepacked(runtime, source, &temporary.path().join(&name), options)?;
        let folder = self.folder(&key);
        // Another process's, or one that was touched: ours is as good.
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, "cannot replace", e))?;
        }
        std::fs::rename(temporary.path(), &folder).map_err(|e| Error::io(&folder, "cannot put into place", e))?;
        std::thread::sleep(SETTLING);
        let graph = folder.join(name);
        let files = [graph.clone(), graph.with_extension("onnx.data")];
        let candidates = files.iter().map(|path| VerifiedCache::pending(path, &record(path))).collect();
        VerifiedCache::load(&self.cache, &key).record(candidates)?;
        Ok(graph)
    }

    fn key(&self, part: Part) -> String {
        hex(&Sha256::digest(format!("{}\n{part}", self.context)))
    }

    fn folder(&self, key: &str) -> PathBuf {
        self.cache.join("prepacked").join(key)
    }
}

/// The file under its name. There is no hash to compare with: it was written here, and has not been touched since.
fn record(path: &Path) -> FileRecord {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    FileRecord { name, bytes: 0, sha256: String::new() }
}

/// What the layout of weights depends on: the kind of processor and what it can do.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    [std::env::consts::ARCH, line("model name"), line("flags"), line("Features")].join("\n")
}
