//! Processes that are measured: their seconds, and the highest memory of each as a whole.

use std::io::{Read, Seek};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How often a process's memory is looked at while it runs.
const POLL: Duration = Duration::from_millis(10);

/// What one process took.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Of the work alone where the process says so, else from its start to its end.
    pub seconds: f64,
    /// Highest resident memory, mapped files included; 0 where the system doesn't tell.
    pub peak_kib: f64,
    /// Highest anonymous memory: what can't be dropped and read again from a file.
    pub anon_kib: f64,
    /// All that the process said in its last line.
    pub told: Value,
}

impl Run {
    /// A number of the process's last line.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.told[key].as_f64()
    }
}

/// A run, or why there is none.
pub type Outcome = Result<Run, String>;

/// One of those that are compared.
pub struct Contender<'a> {
    /// How the table calls it.
    pub name: String,
    /// How often it runs.
    pub rounds: usize,
    /// Makes its next process.
    pub command: Box<dyn Fn() -> Result<Command, String> + 'a>,
}

impl<'a> Contender<'a> {
    /// `command` run `rounds` times.
    pub fn new(name: &str, rounds: usize, command: impl Fn() -> Result<Command, String> + 'a) -> Self {
        Self { name: name.into(), rounds, command: Box::new(command) }
    }
}

/// Runs all in turn, round after round, `between` before each: the shortest time and the highest memory of each. One
/// that failed isn't tried again.
pub fn interleaved(contenders: Vec<Contender>, between: &dyn Fn()) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = contenders.iter().map(|_| None).collect();
    for round in 0..contenders.iter().map(|c| c.rounds).max().unwrap_or(0) {
        for (contender, outcome) in contenders.iter().zip(&mut outcomes) {
            if round >= contender.rounds || matches!(outcome, Some(Err(_))) {
                continue;
            }
            between();
            progress(&format!("{}, round {} of {}", contender.name, round + 1, contender.rounds));
            let run = (contender.command)().and_then(|mut command| measure(&mut command));
            *outcome = Some(match (outcome.take(), run) {
                (Some(Ok(before)), Ok(now)) => Ok(better(before, now)),
                (_, run) => run,
            });
        }
    }
    outcomes.into_iter().map(|o| o.unwrap_or_else(|| Err("not run".into()))).collect()
}

fn better(a: Run, b: Run) -> Run {
    let (peak_kib, anon_kib) = (a.peak_kib.max(b.peak_kib), a.anon_kib.max(b.anon_kib));
    Run { peak_kib, anon_kib, ..if b.seconds < a.seconds { b } else { a } }
}

/// When the suite began, as far as the user was told.
static BEGUN: OnceLock<Instant> = OnceLock::new();

/// Tells a waiting user what runs.
#[allow(clippy::print_stderr)]
pub fn progress(what: &str) {
    eprintln!("bench: {:4.0} s: {what}", BEGUN.get_or_init(Instant::now).elapsed().as_secs_f64());
}

/// Runs a command to its end. A last line of JSON on its stdout is what it has to say of itself.
pub fn measure(command: &mut Command) -> Outcome {
    let said = |e: std::io::Error| format!("could not be run: {e}");
    // Files, not pipes: nobody need read them while the process runs.
    let (mut out, mut err) = (tempfile::tempfile().map_err(said)?, tempfile::tempfile().map_err(said)?);
    command.stdout(out.try_clone().map_err(said)?).stderr(err.try_clone().map_err(said)?);
    let start = Instant::now();
    let mut child = command.spawn().map_err(said)?;
    let pid = child.id();
    let done = AtomicBool::new(false);
    let (status, memory) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(pid, &done));
        let status = child.wait().map(|status| (status, start.elapsed()));
        done.store(true, Ordering::Relaxed);
        (status, watcher.join().unwrap_or_default())
    });
    let (status, wall) = status.map_err(said)?;
    let text = |file: &mut std::fs::File| {
        let mut bytes = Vec::new();
        let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    };
    if !status.success() {
        return Err(reason(&text(&mut err), status));
    }
    let told: Value = text(&mut out).lines().last().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
    let [peak, anon_kib] = memory;
    Ok(Run {
        seconds: told["seconds"].as_f64().unwrap_or(wall.as_secs_f64()),
        peak_kib: told["peak_kib"].as_f64().unwrap_or(0.0).max(peak),
        anon_kib,
        told,
    })
}

/// Highest `VmHWM` and `RssAnon` of a process until it is done.
fn watch(pid: u32, done: &AtomicBool) -> [f64; 2] {
    let mut highest = [0.0f64; 2];
    while !done.load(Ordering::Relaxed) {
        let now = memory(&pid.to_string());
        highest = [highest[0].max(now[0]), highest[1].max(now[1])];
        std::thread::sleep(POLL);
    }
    highest
}

/// `VmHWM` and `RssAnon` in KiB, 0 where the system doesn't tell.
fn memory(pid: &str) -> [f64; 2] {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    ["VmHWM:", "RssAnon:"].map(|key| {
        let line = status.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
    })
}

/// Why a process failed, in a few words.
fn reason(stderr: &str, status: ExitStatus) -> String {
    if let Some(line) = stderr.lines().find(|l| l.starts_with("ModuleNotFoundError")) {
        return format!("not installed ({})", line.rsplit('\'').nth(1).unwrap_or(line));
    }
    let last = stderr.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("");
    // The page is published: where the repository lies is nobody's business.
    let last: String = last.replace(env!("CARGO_MANIFEST_DIR"), ".").chars().take(120).collect();
    progress(&format!("failed ({status}):\n{stderr}"));
    format!("failed ({status}): {last}").replace('|', "/")
}

/// Ends a child of this program: the line that [`measure`] reads.
#[allow(clippy::print_stdout)]
pub fn report(seconds: f64, more: &Value) {
    let mut line = json!({"seconds": seconds, "peak_kib": memory("self")[0]});
    if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object()) {
        line.extend(more.clone());
    }
    println!("{line}");
}
