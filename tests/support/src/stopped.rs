//! A command that is stopped at a moment of its run, so that a test can change a file under it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::commands::{Done, LIMIT, wait};

/// A command that is stopped.
pub struct Stopped {
    child: Child,
    dir: tempfile::TempDir,
    started: Instant,
}

/// Runs a command until `moment`, which is asked with the text of its `/proc/PID/maps`, and stops it there.
pub fn stop_when(command: &mut Command, moment: &dyn Fn(&str) -> bool) -> Stopped {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| Stdio::from(std::fs::File::create(dir.path().join(name)).unwrap());
    let started = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).spawn().unwrap();
    loop {
        let maps = std::fs::read(format!("/proc/{}/maps", child.id())).unwrap_or_default();
        if moment(&String::from_utf8_lossy(&maps)) {
            break;
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended before: {}", text(&dir.path().join("err")));
        assert!(started.elapsed() < Duration::from_secs(LIMIT), "the moment did not come");
        std::thread::sleep(Duration::from_micros(200));
    }
    signal(child.id(), "STOP");
    Stopped { child, dir, started }
}

impl Stopped {
    /// Lets it go on, to its end.
    pub fn goes_on(self) -> Done {
        signal(self.child.id(), "CONT");
        let code = wait(self.child, LIMIT);
        let [stdout, stderr] = ["out", "err"].map(|name| text(&self.dir.path().join(name)));
        Done { code, stdout, stderr, seconds: self.started.elapsed().as_secs_f64() }
    }
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap();
    assert!(sent.success(), "kill -s {name} {process}");
}
