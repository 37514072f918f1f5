//! EngineCache on disk, made by builders that are none: keys, locks between threads and processes, builders that are
//! killed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::error::Code;

fn key() -> EngineKey {
    let inputs = vec![ProfiledInput { name: "ids".into(), min: vec![1, 1], opt: vec![1, 256], max: vec![1, 512] }];
    EngineKey {
        format: 1,
        bundle: "b".into(),
        graph: "text.onnx".into(),
        segments: [0, 5],
        provider: "tensorrt".into(),
        gpu: "NVIDIA Test 4090".into(),
        compute_capability: "8.9".into(),
        tensorrt: "10.9.0".into(),
        driver: "580.65.06".into(),
        onnxruntime: "1.31.1".into(),
        inputs,
    }
}

/// Collects notes.
struct Lines(Arc<Mutex<Vec<String>>>);

impl crate::progress::Progress for Lines {
    fn line(&mut self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// A cache of engines and its notes.
fn engines(dir: &Path) -> (EngineCache, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&lines);
    (EngineCache::new(dir, Shared::new(Lines(notes))), lines)
}

fn of(what: &str) -> EngineSource<'_> {
    EngineSource { what, weights: 1000, context: None }
}

fn write(folder: &Path) -> Result<()> {
    fs::write(folder.join("part.engine"), b"engine").map_err(|e| Error::io(folder, "cannot write", e))
}

#[test]
fn engines_are_made_once_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (engines, lines) = engines(dir.path());
    let made = AtomicUsize::new(0);
    let ask = |key: &EngineKey| {
        let found = engines.folder(key, &of("the graph `text`"), &mut |folder| {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
            made.fetch_add(1, Ordering::Relaxed);
            write(folder)
        });
        found.map(Option::unwrap)
    };
    let first = ask(&key()).unwrap();
    assert_eq!(fs::read(first.join("part.engine")).unwrap(), b"engine");
    assert_eq!(ask(&key()).unwrap(), first);
    assert_eq!(made.load(Ordering::Relaxed), 1);
    {
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("the graph `text` on NVIDIA Test 4090") && lines[0].contains("minutes"));
    }
    // All of it in clear.
    let json = fs::read_to_string(first.join(KEY_FILE)).unwrap();
    for word in ["10.9.0", "580.65.06", "1.31.1", "8.9", "NVIDIA Test 4090", "text.onnx", "512"] {
        assert!(json.contains(word), "{word}: {json}");
    }
    // Whatever changes, others are made; what was there stays, and is named where it is only older.
    let longer = ProfiledInput { max: vec![1, 1024], ..key().inputs[0].clone() };
    let changed = [
        EngineKey { bundle: "c".into(), ..key() },
        EngineKey { graph: "vision.onnx".into(), ..key() },
        EngineKey { segments: [5, 9], ..key() },
        EngineKey { provider: "tensorrt-rtx".into(), ..key() },
        EngineKey { gpu: "NVIDIA Test 5090".into(), ..key() },
        EngineKey { compute_capability: "12.0".into(), ..key() },
        EngineKey { tensorrt: "10.10.0".into(), ..key() },
        EngineKey { driver: "590.1".into(), ..key() },
        EngineKey { onnxruntime: "1.32.0".into(), ..key() },
        EngineKey { inputs: vec![longer], ..key() },
        EngineKey { inputs: Vec::new(), ..key() },
        EngineKey { format: 2, ..key() },
    ];
    let mut places = std::collections::BTreeSet::from([first.clone()]);
    for (i, key) in changed.iter().enumerate() {
        assert!(places.insert(ask(key).unwrap()), "{key:?}");
        assert_eq!(made.load(Ordering::Relaxed), i + 2);
    }
    assert_eq!(ask(&key()).unwrap(), first);
    let lines = lines.lock().unwrap();
    assert!(!lines[5].contains("older"), "another card's are not older: {}", lines[5]);
    assert!(lines[7].contains("1 older folder") || lines[7].contains("older folders"), "{}", lines[7]);
}

#[test]
fn what_is_not_whole_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (engines, lines) = engines(dir.path());
    let place = engines.folder(&key(), &of("it"), &mut |folder| write(folder)).unwrap().unwrap();
    let other = EngineKey { driver: "1".into(), ..key() };
    for damage in [None, Some(Vec::new()), Some(b"{".to_vec()), Some(other.json().unwrap())] {
        match damage {
            Some(bytes) => fs::write(place.join(KEY_FILE), bytes).unwrap(),
            None => fs::remove_file(place.join(KEY_FILE)).unwrap(),
        }
        fs::write(place.join("stale"), b"half").unwrap();
        assert_eq!(engines.folder(&key(), &of("it"), &mut |folder| write(folder)).unwrap().unwrap(), place);
        assert!(!place.join("stale").exists() && place.join("part.engine").exists());
    }
    // A builder that fails leaves nothing, and the next begins anew.
    let failing = EngineKey { bundle: "fails".into(), ..key() };
    let refused = engines.folder(&failing, &of("it"), &mut |folder| {
        write(folder)?;
        Err(Error::new(Code::RUNTIME_MODEL, "refused"))
    });
    assert_eq!(refused.unwrap_err().code(), Code::RUNTIME_MODEL);
    let name = failing.name().unwrap();
    let left: Vec<_> = fs::read_dir(dir.path().join("engines")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!left.iter().any(|p| p.ends_with(&name) || p.ends_with(format!(".building-{name}"))), "{left:?}");
    engines.folder(&failing, &of("it"), &mut |folder| write(folder)).unwrap();
    // One that makes nothing is not taken for one that did, and what would not fit is not begun.
    let empty = EngineKey { bundle: "empty".into(), ..key() };
    for _ in 0..2 {
        assert_eq!(engines.folder(&empty, &of("nothing"), &mut |_| Ok(())).unwrap(), None);
    }
    assert_eq!(lines.lock().unwrap().iter().filter(|l| l.contains("kept no engine for nothing")).count(), 2);
    // Nor one that leaves kernels and not the model that is to be loaded.
    let context = || EngineSource { context: Some("context.onnx"), ..of("kernels") };
    assert_eq!(engines.folder(&empty, &context(), &mut |folder| write(folder)).unwrap(), None);
    let whole = engines.folder(&empty, &context(), &mut |folder| {
        fs::write(folder.join("context.onnx"), b"model").map_err(|e| Error::io(folder, "cannot write", e))?;
        write(folder)
    });
    assert!(whole.unwrap().unwrap().join("context.onnx").is_file());
    let empty = EngineKey { bundle: "none".into(), ..key() };
    if cfg!(unix) {
        let huge = EngineSource { what: "all", weights: u64::MAX, context: None };
        let refused = engines.folder(&empty, &huge, &mut |_| panic!("it was begun")).unwrap_err();
        assert_eq!(refused.code(), Code::DISK_FULL);
    }
}

/// Engines of two bundles that change places are built again: not run as each other's.
#[test]
fn engines_are_bound_to_their_key() {
    let dir = tempfile::tempdir().unwrap();
    let (engines, _) = engines(dir.path());
    let made = AtomicUsize::new(0);
    let keys = [key(), EngineKey { bundle: "c".into(), ..key() }];
    let ask = |key: &EngineKey| {
        let build = &mut |folder: &Path| {
            made.fetch_add(1, Ordering::Relaxed);
            let path = folder.join("part.engine");
            fs::write(&path, key.bundle.as_bytes()).map_err(|e| Error::io(path, "cannot write", e))
        };
        engines.folder(key, &of("it"), build).unwrap().unwrap()
    };
    let places = keys.each_ref().map(&ask);
    let [a, b] = places.each_ref().map(|place| place.join("part.engine"));
    let spare = dir.path().join("spare");
    for (from, to) in [(&a, &spare), (&b, &a), (&spare, &b)] {
        fs::rename(from, to).unwrap();
    }
    assert_eq!(keys.each_ref().map(&ask), places);
    assert_eq!(made.load(Ordering::Relaxed), 4);
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"c".to_vec()));
    // What TensorRT updates next to them does not count.
    fs::write(places[0].join("timing.cache"), "1").unwrap();
    assert_eq!(keys.each_ref().map(&ask), places);
    assert_eq!(made.load(Ordering::Relaxed), 4);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&places[0]), mode(&a), mode(&places[0].join(KEY_FILE))), (0o700, 0o600, 0o600));
        fs::set_permissions(&places[0], fs::Permissions::from_mode(0o777)).unwrap();
        let refused = engines.folder(&key(), &of("it"), &mut |_| panic!("it was built")).unwrap_err();
        assert_eq!(refused.code(), Code::CACHE_UNSAFE);
    }
}

/// Threads stand for processes: each opens the lock for itself.
#[test]
fn one_builds_and_the_others_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (engines, lines) = engines(dir.path());
    let (made, waiting) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let places: Vec<PathBuf> = std::thread::scope(|scope| {
        let ask = || {
            engines.folder(&key(), &of("it"), &mut |folder| {
                made.fetch_add(1, Ordering::SeqCst);
                // Until the others have come.
                while waiting.load(Ordering::SeqCst) < 3 {
                    let told = lines.lock().unwrap().iter().filter(|l| l.contains("another process")).count();
                    waiting.store(told, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                }
                write(folder)
            })
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|t| t.join().unwrap().unwrap().unwrap()).collect()
    });
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert!(places.iter().all(|p| *p == places[0] && p.join("part.engine").exists()));
    assert_eq!(lines.lock().unwrap().iter().filter(|l| l.contains("another process builds")).count(), 3);
}

/// The folder in which a child of this test builds; it is this test's own binary.
const CHILD: &str = "BA_TEST_ENGINES";

/// Run by [`killed_builders_leave_nothing_behind`] as a process of its own: builds, and never ends.
#[test]
fn builds_for_ever() {
    let Some(cache) = std::env::var_os(CHILD) else { return };
    let (engines, _) = engines(Path::new(&cache));
    let _ = engines.folder(&key(), &of("it"), &mut |folder| {
        write(folder)?;
        fs::write(Path::new(&cache).join("begun"), b"").unwrap();
        // As long as its parent would wait for it.
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
}

#[test]
fn killed_builders_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "execute::cache::engines::tests::builds_for_ever"]).env(CHILD, dir.path());
    let mut child = child.stdout(std::process::Stdio::null()).spawn().unwrap();
    while !dir.path().join("begun").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended before it built");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (engines, lines) = engines(dir.path());
    let building = dir.path().join("engines").join(format!(".building-{}", key().name().unwrap()));
    assert!(building.join("part.engine").exists());
    // It is waited for, until it is killed; then its half is cleared.
    let place = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            engines.folder(&key(), &of("it"), &mut |folder| {
                assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
                fs::write(folder.join("other.engine"), b"whole").map_err(|e| Error::io(folder, "cannot write", e))
            })
        });
        while lines.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(lines.lock().unwrap()[0].contains("another process builds"));
        child.kill().unwrap();
        child.wait().unwrap();
        waiter.join().unwrap().unwrap().unwrap()
    });
    assert!(place.join("other.engine").exists() && !place.join("part.engine").exists() && !building.exists());
    assert_eq!(lines.lock().unwrap().len(), 2);
}
