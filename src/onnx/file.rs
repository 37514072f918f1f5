//! A file that a thread of its own hashes and writes, while the next bytes are being made.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::ALIGNMENT;
use crate::error::{Error, Result};
use crate::threads;

/// Bytes that are handed over together.
const PIECE: usize = 1 << 20;

/// Maximum number of pieces that wait for the thread: about one large weight, so that it has work while the next is
/// computed.
const WAITING: usize = 64;

/// How long a file is meant to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is hashed, and on the disk when it is finished.
    ForGood,
    /// It is read again soon, and removed.
    Awhile,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its name inside the folder, such as `text.onnx`.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// A file being written.
pub(super) struct OutFile {
    name: String,
    path: PathBuf,
    /// Bytes so far, with those that are still on their way.
    bytes: u64,
    /// Filled up to [`PIECE`] bytes before it is handed over.
    piece: Vec<u8>,
    pieces: SyncSender<Vec<u8>>,
    /// Pieces that were written, to be filled again.
    spare: Receiver<Vec<u8>>,
    keep: Keep,
    /// Gives the file back, and its SHA-256; taken when it is joined.
    thread: Option<JoinHandle<std::io::Result<(File, String)>>>,
}

impl OutFile {
    /// An empty file of that name in `dir`.
    ///
    /// # Errors
    /// `io` when it cannot be made; `threads.unavailable`.
    pub fn create(dir: &Path, name: &str, keep: Keep) -> Result<Self> {
        let path = dir.join(name);
        let file = File::create(&path).map_err(|e| Error::io(&path, "cannot create the file", e))?;
        let (pieces, received) = sync_channel(WAITING);
        let (back, spare) = channel();
        let thread = threads::spawn("write", move || write_all(file, keep, &received, &back))?;
        let (name, piece, thread) = (name.to_owned(), Vec::with_capacity(PIECE), Some(thread));
        Ok(Self { name, path, bytes: 0, piece, pieces, spare, keep, thread })
    }

    /// Appends bytes to the file.
    ///
    /// # Errors
    /// `io` or `disk.full`, also for bytes that were added before.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == PIECE {
                self.hand_over()?;
            }
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<()> {
        let empty = self.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(PIECE));
        let piece = std::mem::replace(&mut self.piece, empty);
        if self.pieces.send(piece).is_ok() {
            return Ok(());
        }
        // The thread ends early only when it failed.
        Err(self.join().err().unwrap_or_else(|| self.ended()))
    }

    /// What the thread gave.
    fn join(&mut self) -> Result<(File, String)> {
        let outcome = self.thread.take().and_then(|thread| thread.join().ok()).ok_or_else(|| self.ended())?;
        outcome.map_err(|e| Error::io(&self.path, "cannot write", e))
    }

    fn ended(&self) -> Error {
        Error::internal("the thread that writes has ended").at(&self.path)
    }

    /// Zeros up to the next multiple of [`ALIGNMENT`], which is returned.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn align(&mut self) -> Result<u64> {
        let gap = self.bytes.next_multiple_of(ALIGNMENT) - self.bytes;
        self.write(&[0; ALIGNMENT as usize][..gap as usize])?;
        Ok(self.bytes)
    }

    /// Waits until all bytes are written (and on the disk, for a file that stays).
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn finish(mut self) -> Result<Written> {
        if !self.piece.is_empty() {
            self.hand_over()?;
        }
        // An empty piece is the end.
        self.hand_over()?;
        let (file, sha256) = self.join()?;
        if self.keep == Keep::ForGood {
            // Before the bundle is put into its place: after a power loss a name must not stand for bytes that never
            // came.
            file.sync_all().map_err(|e| Error::io(&self.path, "cannot write", e))?;
        }
        Ok(Written { name: self.name, bytes: self.bytes, sha256 })
    }
}

/// The thread: writes what it receives, up to an empty piece; gives the SHA-256 where the file stays.
fn write_all(
    mut file: File,
    keep: Keep,
    pieces: &Receiver<Vec<u8>>,
    back: &Sender<Vec<u8>>,
) -> std::io::Result<(File, String)> {
    let mut hash = (keep == Keep::ForGood).then(Sha256::new);
    for mut piece in pieces.iter().take_while(|piece| !piece.is_empty()) {
        file.write_all(&piece)?;
        if let Some(hash) = &mut hash {
            hash.update(&piece);
        }
        piece.clear();
        // Nobody waits for spare pieces any more once all were handed over.
        let _ = back.send(piece);
    }
    Ok((file, hash.map(|hash| crate::tensor::hex(&hash.finalize())).unwrap_or_default()))
}
