//! Ctrl-C (SIGINT), SIGTERM and SIGHUP end a command within a second: temporary files are removed, one line says why,
//! and the exit code is 128 and the signal's number.
//!
//! A thread waits for signals, so nothing has to be safe in a handler. It ends the process with `_exit`: destructors
//! would wait for threads of ONNX Runtime that are at work. Renames into place are not disturbed ([`halt`]); what is
//! on the disk then is what `kill -9` would leave, without temporary files. A signal that was ignored when the program
//! began stays ignored (`nohup`, background jobs of scripts).
//!
//! The library itself handles no signal: they are the program's.

use std::ffi::c_int;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::exit;

use super::{print_error, report_error};
use crate::error::{Code, Error};
use crate::files::halt;
use crate::threads;

/// The signals, and what a person calls them.
const SIGNALS: [(c_int, &str); 3] = [(SIGHUP, "SIGHUP"), (SIGINT, "SIGINT (Ctrl-C)"), (SIGTERM, "SIGTERM")];

/// How long removing files and reporting may take.
const LIMIT: Duration = Duration::from_millis(800);
/// A signal that comes again after this ends the process at once. Sooner it may be the same one: `timeout` sends it to
/// the process and then to its group.
const REPEATED: Duration = Duration::from_millis(150);
/// How often signals are asked for meanwhile.
const STEP: Duration = Duration::from_millis(10);

/// Whether a signal has come.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Starts to wait for signals. Without a thread, or a pipe, to be had they end the process as the system does it.
pub(super) fn catch(json: bool) {
    let (send, receive) = mpsc::channel::<Signals>();
    // The thread first: a signal that is caught and then not heard would be lost.
    let wait = move || receive.into_iter().for_each(|signals| wait(signals, json));
    if threads::spawn("signals", wait).is_err() {
        return;
    }
    let ignored = ignored();
    if let Ok(signals) = Signals::new(SIGNALS.iter().map(|(signal, _)| signal).filter(|s| !ignored.contains(s))) {
        let _ = send.send(signals);
    }
}

/// Waits for the end of the process if a signal has come: what the command says now is a consequence of it.
pub(super) fn wait_if_stopped() {
    while STOPPED.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// Waits for a signal, and ends the process.
fn wait(mut signals: Signals, json: bool) {
    let Some(signal) = signals.forever().next() else { return };
    STOPPED.store(true, Ordering::Release);
    let came = Instant::now();
    let (send, done) = mpsc::channel::<()>();
    let tidy = move || {
        tidy(signal, json);
        drop(send);
    };
    // Without a thread to be had nothing limits the time that it takes.
    let watched = threads::spawn("removing temporary files", tidy);
    if watched.is_err() {
        end(signal, json);
    }
    while came.elapsed() < LIMIT && done.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
        let again = signals.pending().count() > 0;
        if again && came.elapsed() > REPEATED {
            break;
        }
    }
    exit(128 + signal)
}

/// Removes temporary files and reports, on the thread that waited.
fn end(signal: c_int, json: bool) -> ! {
    tidy(signal, json);
    exit(128 + signal)
}

/// Removes temporary files and says so.
fn tidy(signal: c_int, json: bool) {
    let halted = halt();
    if std::io::stderr().is_terminal() {
        // Over the progress bar.
        let _ = write!(anstream::stderr(), "\r\x1b[2K");
    }
    let name = SIGNALS.iter().find(|(known, _)| *known == signal).map_or("a signal", |(_, name)| name);
    let error = Error::new(Code::INTERRUPTED, format!("interrupted by {name}: run the command again"));
    report_error(&error);
    if json {
        // There is nothing left to do when stdout is closed.
        let _ = print_error(&error);
    }
    halted.release();
}

/// The signals that this process ignores, as its parent wanted.
fn ignored() -> Vec<c_int> {
    // Elsewhere that cannot be read. SIGHUP then stays what it was, which ends the process too, or does not.
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return vec![SIGHUP] };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    SIGNALS.iter().map(|(signal, _)| *signal).filter(|signal| mask >> (signal - 1) & 1 == 1).collect()
}
