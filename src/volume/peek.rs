//! Bytes of a file as stored, which can be looked at before they are consumed.
//!
//! In: an open regular file or bytes in memory. Out: bytes in order. The buffer has a fixed size. Errors are the
//! operating system's.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

use crate::tensor::number::to_u64;

/// Bytes read at a time.
pub(super) const BUFFER: usize = 128 * 1024;

/// Surplus bytes that are still read to reach a gzip member's checksum; beyond it the file is a bomb or a mistake.
pub(super) const TAIL_LIMIT: u64 = 64 * 1024;

/// Where bytes come from. Lengths are known beforehand: only regular files are ever opened.
pub(super) enum Input<'a> {
    /// An open regular file.
    File(File),
    /// A file's content in memory.
    Bytes(&'a [u8]),
}

impl Read for Input<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::File(file) => file.read(buf),
            Input::Bytes(bytes) => bytes.read(buf),
        }
    }
}

impl Input<'_> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        match self {
            Input::File(file) => {
                let count = i64::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
                file.seek(SeekFrom::Current(count)).map(drop)
            }
            Input::Bytes(bytes) => {
                let count = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
                bytes.consume(count);
                Ok(())
            }
        }
    }
}

/// A buffered reader that can show the next few bytes without consuming them, also across a buffer's end
/// (which [`io::BufReader`] cannot).
pub(super) struct Peek<'a> {
    input: Input<'a>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<'a> Peek<'a> {
    pub(super) fn new(input: Input<'a>) -> Self {
        Self { input, buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The next `count` bytes, fewer only at the end of the file. `count` is at most the buffer's size.
    pub(super) fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.end - self.start < count {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            while self.end < count {
                match self.input.read(&mut self.buffer[self.end..]) {
                    Ok(0) => break,
                    Ok(n) => self.end += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        let stop = self.end.min(self.start + count);
        Ok(&self.buffer[self.start..stop])
    }

    /// Whether nothing follows but zero padding (tapes, block devices), which is fine. Reads at most [`TAIL_LIMIT`].
    pub(super) fn rest_is_padding(&mut self) -> io::Result<bool> {
        let mut padding = 0;
        loop {
            let held = self.fill_buf()?;
            if held.is_empty() {
                return Ok(true);
            }
            padding += to_u64(held.len());
            if padding > TAIL_LIMIT || held.iter().any(|&b| b != 0) {
                return Ok(false);
            }
            let count = held.len();
            self.consume(count);
        }
    }

    pub(super) fn skip(&mut self, count: u64) -> io::Result<()> {
        let held = to_u64(self.end - self.start);
        let from_buffer = held.min(count);
        // Never more than the buffer holds.
        self.consume(usize::try_from(from_buffer).unwrap_or(usize::MAX));
        if count > from_buffer { self.input.skip(count - from_buffer) } else { Ok(()) }
    }
}

impl BufRead for Peek<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.peek(1)?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }
}

impl Read for Peek<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && buf.len() >= BUFFER {
            return self.input.read(buf);
        }
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}
