//! Kills commands at random moments, one or two processes on one target.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// After so many seconds a command hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Kills of each target, at least.
pub const KILLS: usize = 20;

/// What is killed again and again.
pub struct Target<'a> {
    /// The command; called for each start, so that it can be another each time.
    pub command: &'a mut dyn FnMut() -> Command,
    /// What must hold after each kill.
    pub check: &'a mut dyn FnMut(),
    /// Processes at once: one or two.
    pub processes: usize,
    /// Exit codes with which a process that was not killed may end.
    pub ends: &'a [i32],
}

/// Kills the target at least [`KILLS`] times, each at a random moment of the time that a whole run takes. Where two run
/// at once, one is killed and the other runs to its end, or both are.
pub fn kill(target: &mut Target<'_>, seed: u64) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let started = Instant::now();
    let first = end(start((target.command)()));
    assert!(target.ends.contains(&first), "exit code {first}");
    let whole = started.elapsed();
    let (mut killed, mut rounds) = (0, 0);
    while killed < KILLS {
        rounds += 1;
        assert!(rounds < 20 * KILLS, "only {killed} of {rounds} processes were killed before they ended");
        let mut children: Vec<Child> = (0..target.processes).map(|_| start((target.command)())).collect();
        std::thread::sleep(whole.mul_f64(rng.random_range(0.0..1.1)));
        // The second one is killed too every third time.
        let victims = if rounds % 3 == 0 { children.len() } else { 1 };
        let victims: Vec<Child> = children.drain(..victims).collect();
        for mut child in victims {
            child.kill().unwrap();
            match child.wait().unwrap().code() {
                Some(code) => assert!(target.ends.contains(&code), "exit code {code}"),
                None => killed += 1,
            }
        }
        for child in children {
            let code = end(child);
            assert!(target.ends.contains(&code), "exit code {code} of the process that was left alone");
        }
        (target.check)();
    }
    println!("{killed} kills of {rounds} rounds with {} processes, a whole run {whole:.0?}", target.processes);
}

fn start(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The exit code of a process that is left alone.
fn end(mut child: Child) -> i32 {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return code(status);
        }
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("a command hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| panic!("a process died of a signal that nobody sent: {status}"))
}
