//! Ctrl-C, SIGTERM and SIGHUP: the command ends within a second, without temporary files.
//!
//! A thread waits for the signals. At the first it removes what is being written ([`crate::files::remove_all`]), says
//! `interrupted` and ends the process with the shell's code, 128 plus the number of the signal. It does not unwind: a
//! running graph cannot be stopped, and all that is to be resumed is on the disk already. Where there are no such signals (Windows) the system ends the process, and the next start
//! removes what was left.

use crate::error::Result;

/// Handles the signals from now on.
///
/// # Errors
/// `io` when they cannot be handled, or no thread can be started.
#[cfg(unix)]
pub(super) fn handle() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let failed = |e| crate::Error::io("signals", "cannot handle signals", e);
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(failed)?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            let code = 128 + signal;
            end_within(LIMIT, code);
            crate::files::remove_all();
            super::write_stderr("interrupted");
            signal_hook::low_level::exit(code);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop).map_err(failed)
}

/// After this long the process ends, whatever is left.
#[cfg(unix)]
const LIMIT: std::time::Duration = std::time::Duration::from_millis(700);

/// Ends the process in a while, from another thread.
#[cfg(unix)]
fn end_within(limit: std::time::Duration, code: i32) {
    let end = move || {
        std::thread::sleep(limit);
        signal_hook::low_level::exit(code);
    };
    // Without a thread the removal has no limit.
    let _ = std::thread::Builder::new().name("limit".into()).spawn(end);
}

#[cfg(not(unix))]
pub(super) fn handle() -> Result<()> {
    Ok(())
}
