//! Threads: all are started here, so that a machine that has none left gives an error in one line and not a panic.
//!
//! Layer 1. `std::thread::spawn`, `Scope::spawn` and a pool of rayon that is built when it is first used panic where
//! the system refuses a thread (`ulimit -u`, the pids limit of a container, memory for stacks); a test keeps them out
//! of the library.

use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use crate::error::{Code, Error, Result};

/// Starts a thread of that name.
///
/// # Errors
/// `threads.unavailable` when the system refuses one; `work` is then dropped on this thread and did not run.
pub(crate) fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work).map_err(|e| unavailable(name, e))
}

/// Starts a thread of that name that ends within `scope`.
///
/// # Errors
/// As [`spawn`].
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work).map_err(|e| unavailable(name, e))
}

/// Starts the pool that shares out work within a step (hashing, quantization, resampling), once in a process: with
/// `threads` threads, by default one per core or as many as `RAYON_NUM_THREADS` says. Later calls change nothing.
/// What uses the pool in this crate starts it by itself; call this before to choose the number. A global pool of rayon
/// that the host has built already is used as it is.
///
/// # Errors
/// `threads.unavailable` when the system refuses that many threads, in every call.
pub fn start_pool(threads: Option<usize>) -> Result<()> {
    static POOL: OnceLock<std::result::Result<(), (i32, String)>> = OnceLock::new();
    let build = || {
        let built = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build_global();
        // An error without a cause is that there is a pool already: the host's.
        let refused = built.err().and_then(|e| std::error::Error::source(&e)?.downcast_ref().map(describe));
        refused.map_or(Ok(()), Err)
    };
    let describe_pool = || threads.map_or("the pool".to_owned(), |n| format!("the pool's {n}"));
    POOL.get_or_init(build)
        .as_ref()
        .map_err(|(code, text)| match code {
            0 => unavailable(&describe_pool(), io::Error::other(text.clone())),
            code => unavailable(&describe_pool(), io::Error::from_raw_os_error(*code)),
        })
        .copied()
}

/// An error of the system that can be kept: its number, or 0 and its words.
fn describe(error: &io::Error) -> (i32, String) {
    (error.raw_os_error().unwrap_or(0), error.to_string())
}

/// The error of a system that refuses to start a thread for `what`.
pub(crate) fn unavailable(what: &str, source: io::Error) -> Error {
    let message = format!("cannot start a thread ({what}): {source}; {ADVICE}");
    Error::new(Code::THREADS_UNAVAILABLE, message).caused_by(source)
}

/// What to do where no thread is to be had.
pub(crate) const ADVICE: &str = "allow more threads (ulimit -u, or the pids limit of the container) or end other \
                                 programs; --threads 1 needs the fewest";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_thread_is_one_line_with_its_code() {
        let error = unavailable("hash", io::Error::from_raw_os_error(11));
        assert_eq!(error.code(), Code::THREADS_UNAVAILABLE);
        let line = error.to_string();
        assert!(line.contains("(hash)") && line.contains("ulimit -u") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn the_pool_starts_once() {
        start_pool(None).unwrap();
        start_pool(Some(3)).unwrap();
        assert_eq!(spawn("seven", || 7).unwrap().join().unwrap(), 7);
    }
}
