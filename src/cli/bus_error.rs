//! A mapped file that was truncated while it is read: an error of that file, not the end of the process by SIGBUS.
//!
//! Weights are read from mapped files, by us and by ONNX Runtime. Reading behind the end of a file that has become
//! shorter is a bus error, on whatever thread reads; no check before the read can exclude it. The library installs no
//! handler, since signals are the program's; the commands install this one. It looks up in `/proc/self/maps` which file
//! is mapped under the address. If it is one of ours ([`crate::files::mapped`]), it writes the error as any other is
//! written, and ends the process with exit code 1. If not, the handler that was there before is put back: the access is
//! repeated, and fails as it would have failed. A signal that a process sent ends this one.
//!
//! The handler runs on the stack of the thread that reads, not on an alternate one: the fault lies in a file's mapping,
//! so there is stack left (a stack that is used up is SIGSEGV, and not ours), and the alternate stacks that threads
//! have hold little more than the registers of some CPUs. It takes no thread, no descriptor and no memory before it is
//! needed.
//!
//! # Safety
//! The one `unsafe` file of the commands. In the handler everything is async-signal-safe: the calls are `open`, `read`,
//! `write`, `sigaction`, `raise` and `_exit`; nothing allocates, locks or panics; what it shares with the program are
//! atomics, and one structure that was set before the handler was installed.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::files::mapped::{CHANGED, Kind, kind_of};

/// The handler that was there before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Whether errors are written as JSON too.
static JSON: AtomicBool = AtomicBool::new(false);

/// What follows [`CHANGED`]: to a program a disk that cannot be read looks the same.
const OR_DISK: &str = " (or the disk failed: see the system's log)";

/// Installs the handler for the rest of the process. Errors are also written as JSON where `json` says so.
pub(super) fn install(json: bool) {
    JSON.store(json, Ordering::Relaxed);
    // SAFETY: all zeros are a valid `sigaction`: plain integers, an empty set of signals, no function.
    let (mut action, mut previous): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: both point to structures that outlive the calls; the handler has the signature that `SA_SIGINFO` asks
    // for.
    unsafe {
        // What was there is known before the new handler can be called.
        libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous);
        if PREVIOUS.set(previous).is_ok() {
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    }
}

/// The handler.
extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with `SA_SIGINFO`; for a fault it has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Others were sent by a process.
    let fault = code > 0;
    if fault && report(address) {
        // SAFETY: it ends the process at once: destructors would wait for this thread.
        unsafe { libc::_exit(1) }
    }
    // SAFETY: all zeros are the default action.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // What was sent does not come again by itself, which Rust's own handler counts on.
    let action = if fault { PREVIOUS.get().unwrap_or(&default) } else { &default };
    // SAFETY: `sigaction` only reads what it is given; `raise` is for this thread, once this handler has returned.
    unsafe {
        libc::sigaction(signal, action, std::ptr::null_mut());
        if !fault {
            libc::raise(signal);
        }
    }
}

/// Writes the error of the file that is mapped at this address. False where it is none of ours.
fn report(address: usize) -> bool {
    // SAFETY: a valid path; the descriptor is this function's own, and the process ends or fails soon after it.
    let maps = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let (mut buffer, mut filled) = ([0_u8; 2 * 4096], 0_usize);
    loop {
        let Some(free) = buffer.get_mut(filled..).filter(|free| !free.is_empty()) else { return false };
        // SAFETY: `free` is writable memory of that length.
        let read = unsafe { libc::read(maps, free.as_mut_ptr().cast(), free.len()) };
        let Some(read) = usize::try_from(read).ok().filter(|n| *n > 0) else { return false };
        filled = filled.saturating_add(read).min(buffer.len());
        let mut rest = buffer.get(..filled).unwrap_or_default();
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, next) = rest.split_at(end);
            if let Some((path, kind)) = line_at(line, address) {
                write_error(path, kind);
                return true;
            }
            rest = next.get(1..).unwrap_or_default();
        }
        let left = rest.len();
        buffer.copy_within(filled.saturating_sub(left)..filled, 0);
        filled = left;
    }
}

/// The file of ours in a line of `/proc/self/maps`, if it is mapped at this address.
fn line_at(line: &[u8], address: usize) -> Option<(&[u8], Kind)> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| usize::try_from(d).ok());
    let number = |text: &[u8]| text.iter().try_fold(0_usize, |n, b| Some(n.wrapping_mul(16).wrapping_add(digit(b)?)));
    let dash = line.iter().position(|b| *b == b'-')?;
    let space = line.iter().position(|b| *b == b' ')?;
    let (start, end) = (number(line.get(..dash)?)?, number(line.get(dash.checked_add(1)?..space)?)?);
    if !(start..end).contains(&address) {
        return None;
    }
    let path = line.get(line.iter().position(|b| *b == b'/')?..)?;
    // A file without a name any more; a name may also end so by itself.
    let names = [Some(path), path.strip_suffix(b" (deleted)")];
    names.into_iter().flatten().find_map(|name| Some((name, kind_of(name)?)))
}

/// The error as one line on stderr, and as JSON on stdout where that was asked for.
fn write_error(path: &[u8], kind: Kind) {
    let code = kind.changed().as_str();
    let mut line = Line::new();
    [b"error[", code.as_bytes(), b"]: "].into_iter().for_each(|text| line.push(text));
    path.iter().for_each(|b| line.push(&[if b.is_ascii_control() { b' ' } else { *b }]));
    [": ", CHANGED, OR_DISK, "\n"].into_iter().for_each(|text| line.push(text.as_bytes()));
    line.write(libc::STDERR_FILENO);
    if JSON.load(Ordering::Relaxed) {
        let mut line = Line::new();
        let fields = ["{\"error\":{\"code\":\"", code, "\",\"message\":\"", CHANGED, OR_DISK, "\",\"path\":\""];
        fields.into_iter().for_each(|text| line.push(text.as_bytes()));
        line.push_json(path);
        line.push(b"\"}}\n");
        line.write(libc::STDOUT_FILENO);
    }
}

/// A line in memory of its own; what does not fit is left out.
struct Line {
    bytes: [u8; 6 * 4096],
    used: usize,
}

impl Line {
    const fn new() -> Self {
        Self { bytes: [0; 6 * 4096], used: 0 }
    }

    fn push(&mut self, text: &[u8]) {
        let room = self.bytes.get_mut(self.used..).unwrap_or_default();
        room.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        self.used = self.used.saturating_add(text.len()).min(self.bytes.len());
    }

    /// The inside of a JSON string; bytes that are not UTF-8 are replaced.
    fn push_json(&mut self, text: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for chunk in text.utf8_chunks() {
            for b in chunk.valid().as_bytes() {
                match b {
                    b'"' | b'\\' => self.push(&[b'\\', *b]),
                    0..0x20 => {
                        self.push(&[b'\\', b'u', b'0', b'0', DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
                    }
                    _ => self.push(&[*b]),
                }
            }
            if !chunk.invalid().is_empty() {
                self.push("\u{fffd}".as_bytes());
            }
        }
    }

    fn write(&self, descriptor: libc::c_int) {
        let text = self.bytes.get(..self.used).unwrap_or_default();
        // SAFETY: readable memory of that length. There is nothing to be done where it cannot be written.
        unsafe { libc::write(descriptor, text.as_ptr().cast(), text.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, write_safetensors};
    use crate::files::mapped::Registered;
    use crate::tensor::LazyTensor;
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};

    /// What a child of [`a_truncated_file_of_ours_is_an_error`] does, and its folder.
    const CHILD: &str = "BA_TEST_BUS_ERROR";

    /// Run by [`a_truncated_file_of_ours_is_an_error`] as a process of its own: reads a file that it has truncated.
    #[test]
    fn reads_a_truncated_file() {
        let Some(what) = std::env::var_os(CHILD) else { return };
        let what = what.into_string().unwrap();
        let (what, path) = what.split_once(' ').unwrap();
        let path = Path::new(path);
        install(true);
        let tensor = LazyTensor::from_f32(&[1 << 20], &vec![1.0; 1 << 20]);
        write_safetensors(path, [("w".to_owned(), tensor)], &Default::default()).unwrap();
        let checkpoint = Checkpoint::open(path).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        // SAFETY: only bytes are read; that reading fails is what is tested.
        let foreign = unsafe { memmap2::Mmap::map(&std::fs::File::open(path).unwrap()) }.unwrap();
        file.set_len(4096).unwrap();
        let tensor = checkpoint.get("w").unwrap();
        match what {
            "ours" => drop(std::hint::black_box(tensor.to_f32())),
            "thread" => std::thread::scope(|scope| scope.spawn(|| tensor.to_f32()).join().map(drop).unwrap()),
            "deleted" => {
                std::fs::remove_file(path).unwrap();
                drop(std::hint::black_box(tensor.to_f32()));
            }
            "foreign" => {
                drop(checkpoint);
                std::hint::black_box(foreign[1 << 20]);
            }
            _ => {
                // SAFETY: a signal to this process.
                unsafe { libc::raise(libc::SIGBUS) };
            }
        }
    }

    fn child(what: &str) -> (Output, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("adapter.safetensors");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "cli::bus_error::tests::reads_a_truncated_file", "--nocapture"]);
        child.env(CHILD, format!("{what} {}", path.display())).stdin(Stdio::null());
        (child.output().unwrap(), path)
    }

    #[test]
    fn a_truncated_file_of_ours_is_an_error() {
        for what in ["ours", "thread", "deleted"] {
            let (done, path) = child(what);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
            assert_eq!(done.status.code(), Some(1), "{what}: {:?} {stderr}", done.status);
            let line = format!("error[checkpoint.changed]: {}: {CHANGED}", path.display());
            assert!(stderr.lines().any(|l| l.starts_with(&line)), "{what}: {stderr}");
            let json = stdout.lines().find(|l| l.starts_with('{')).unwrap();
            let json: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(json["error"]["code"], "checkpoint.changed");
            assert_eq!(json["error"]["path"], path.display().to_string());
        }
    }

    #[test]
    fn other_faults_end_the_process_as_ever() {
        for what in ["foreign", "sent"] {
            let (done, _) = child(what);
            assert_eq!(done.status.signal(), Some(libc::SIGBUS), "{what}: {done:?}");
        }
    }

    #[test]
    fn any_path_makes_a_json_string() {
        let mut line = Line::new();
        line.push(b"\"");
        line.push_json(b"/a \"b\"\\c\x01\xc3\xa4\xff.data");
        line.push(b"\"");
        let text: String = serde_json::from_slice(&line.bytes[..line.used]).unwrap();
        assert_eq!(text, "/a \"b\"\\c\u{1}\u{e4}\u{fffd}.data");
        line.push(&[b'x'; 8 * 4096]);
        assert_eq!(line.used, line.bytes.len());
    }

    #[test]
    fn files_are_found_by_the_address_of_their_mapping() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap();
        let [ours, foreign] = ["my weights.data", "foreign"].map(|name| folder.join(name));
        std::fs::write(&ours, "abc").unwrap();
        let _known = Registered::new(&ours, Kind::Bundle);
        let maps = format!(
            "7f0000-7f2000 r--p 00000000 fe:00 11 {}\n7f2000-7f3000 r--s 00001000 fe:00 12    {}\n\
             7f3000-7f4000 rw-p 00000000 00:00 0 \n7f4000-7f5000 r--s 00000000 fe:00 13 {} (deleted)\n",
            foreign.display(),
            ours.display(),
            ours.display(),
        );
        let found = |address| {
            let (path, kind) = maps.lines().find_map(|line| line_at(line.as_bytes(), address))?;
            Some((PathBuf::from(std::str::from_utf8(path).unwrap()), kind))
        };
        assert_eq!(found(0x7f_2000), Some((ours.clone(), Kind::Bundle)));
        assert_eq!(found(0x7f_4fff), Some((ours, Kind::Bundle)));
        for other in [0x7e_ffff, 0x7f_1fff, 0x7f_3000, 0x7f_5000] {
            assert_eq!(found(other), None, "{other:x}");
        }
    }
}
