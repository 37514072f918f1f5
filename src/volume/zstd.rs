//! The frames of a zstd file, one after the other.
//!
//! In: a file's bytes. Out: the decoded bytes in order. Frames of content and skippable ones (pzstd writes both) follow
//! each other in any number; each frame's checksum and content size, where it has them, are checked. Memory is bounded
//! by [`WINDOW`], whatever window a frame asks for.
//!
//! Errors are I/O errors by kind: `UnexpectedEof` where bytes are missing, `InvalidData` for damage, `Unsupported`
//! where nothing can be unpacked at all, and the operating system's own.

use std::io::{self, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::peek::Peek;
use crate::tensor::number::to_u64;

/// Bytes of output that are kept for back references: what `zstd --ultra -22` and `--long` ask for at most.
const WINDOW: u64 = 128 << 20;

/// Empty frames accepted in a row; a file can hold one per 9 bytes.
const EMPTY_FRAMES: u32 = 4096;

/// Whether a file that begins with these bytes is zstd: a frame, or a skippable one.
pub(super) fn is_frame(start: &[u8]) -> bool {
    matches!(start, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Reads on and remembers how reading failed: the decoder's errors do not tell an end from damage.
struct Source<'a> {
    input: Peek<'a>,
    ended: bool,
    failed: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.input.read(buf) {
            Ok(0) if !buf.is_empty() => {
                self.ended = true;
                Ok(0)
            }
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                let kind = e.kind();
                self.failed = Some(e);
                Err(kind.into())
            }
            other => other,
        }
    }
}

/// A frame under way.
struct Frame {
    /// Decoded bytes so far.
    bytes: u64,
}

/// The frames of a zstd file.
pub(super) struct Frames<'a> {
    source: Source<'a>,
    decoder: Box<FrameDecoder>,
    frame: Option<Frame>,
    empty: u32,
    /// A block of any frame was decoded.
    begun: bool,
    ended: bool,
    /// Bytes follow that are neither zstd nor zero padding.
    pub(super) garbage: bool,
}

impl<'a> Frames<'a> {
    pub(super) fn new(input: Peek<'a>) -> Self {
        let mut decoder = Box::new(FrameDecoder::new());
        decoder.set_max_window_size(WINDOW);
        let source = Source { input, ended: false, failed: None };
        Self { source, decoder, frame: None, empty: 0, begun: false, ended: false, garbage: false }
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !buf.is_empty() {
            let Some(frame) = &mut self.frame else {
                self.next_frame()?;
                continue;
            };
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let decoded = self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1));
                decoded.map_err(|e| self.failure(&e))?;
                self.begun = true;
                continue;
            }
            let count = self.decoder.read(buf)?;
            frame.bytes += to_u64(count);
            if count > 0 {
                return Ok(count);
            }
            self.end_frame()?;
        }
        Ok(0)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let damaged = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        let bytes = self.frame.take().map_or(0, |frame| frame.bytes);
        self.empty = if bytes == 0 { self.empty + 1 } else { 0 };
        if self.empty > EMPTY_FRAMES {
            return damaged("thousands of empty frames in a row");
        }
        let stored = self.decoder.get_checksum_from_data();
        if stored.is_some() && stored != self.decoder.get_calculated_checksum() {
            return damaged("a checksum does not match");
        }
        // 0: not known.
        match self.decoder.content_size() {
            size if size != 0 && size != bytes => damaged("a frame has another length than it says"),
            _ => Ok(()),
        }
    }

    fn next_frame(&mut self) -> io::Result<()> {
        let start = self.source.input.peek(4)?;
        if !is_frame(start) {
            self.ended = true;
            self.garbage = !self.source.input.rest_is_padding()?;
            return Ok(());
        }
        match self.decoder.reset(&mut self.source) {
            Ok(()) => self.frame = Some(Frame { bytes: 0 }),
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                self.source.input.skip(u64::from(length))?;
            }
            Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => {
                let text = format!("it needs {requested} bytes of memory, and at most {WINDOW} are given");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            Err(e) => return Err(self.failure(&e)),
        }
        Ok(())
    }

    /// Sorts a failure of the decoder.
    fn failure(&mut self, e: &FrameDecoderError) -> io::Error {
        if let Some(failed) = self.source.failed.take() {
            return failed;
        }
        let kind = match (self.source.ended, self.begun) {
            (true, _) => io::ErrorKind::UnexpectedEof,
            (false, true) => io::ErrorKind::InvalidData,
            (false, false) => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, e.to_string().replace('\n', " "))
    }
}
