//! Bytes of a scan file, plain, gzip or zstd, behind one bounded interface.
//!
//! In: a regular file or bytes in memory. Out: decoded bytes in order, and at the end a [`Tail`] that says what
//! followed them. Nothing here allocates by what a file claims: the buffers have fixed sizes.
//!
//! The container is detected from its first bytes, never from its name. Every gzip member is read to its trailer, every
//! zstd frame to its end, so a wrong checksum or length is an error: `nifti.gzip` for damage, `nifti.truncated` where
//! bytes are missing, `io` where the operating system failed.

use std::io::{self, Read};

use flate2::bufread::GzDecoder;

use super::peek::{Input, Peek, TAIL_LIMIT};
use super::zstd::{self, Frames};
use crate::error::{Code, Error, Result};
use crate::tensor::number::to_u64;

/// Empty gzip members accepted in a row. Each costs an inflater, and a file can hold one per 20 bytes.
const EMPTY_MEMBERS: u32 = 4096;

/// The members of a gzip file, one after the other.
///
/// flate2's own multi-member reader takes zero padding after the last member for a broken member.
struct Members<'a> {
    state: State<'a>,
    garbage: bool,
}

enum State<'a> {
    Inside { member: Box<GzDecoder<Peek<'a>>>, empty: u32, fresh: bool },
    Ended,
}

impl<'a> Members<'a> {
    fn new(input: Peek<'a>) -> Self {
        Self { state: State::Inside { member: Box::new(GzDecoder::new(input)), empty: 0, fresh: true }, garbage: false }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let State::Inside { member, empty, fresh } = &mut self.state else { return Ok(0) };
            let count = member.read(buf)?;
            if count > 0 || buf.is_empty() {
                *fresh = false;
                return Ok(count);
            }
            // 0 bytes: the member's end, its trailer checked
            let empty = if *fresh { *empty + 1 } else { 0 };
            if empty > EMPTY_MEMBERS {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "thousands of empty gzip members in a row"));
            }
            self.next_member(empty)?;
        }
    }

    fn next_member(&mut self, empty: u32) -> io::Result<()> {
        let State::Inside { member, .. } = std::mem::replace(&mut self.state, State::Ended) else { return Ok(()) };
        let mut input = member.into_inner();
        if input.peek(2)? == [0x1f, 0x8b] {
            self.state = State::Inside { member: Box::new(GzDecoder::new(input)), empty, fresh: true };
            return Ok(());
        }
        self.garbage = !input.rest_is_padding()?;
        Ok(())
    }
}

/// What follows the bytes that were wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing; checksums, if the container has any, are verified.
    Clean,
    /// So many more decoded bytes; checksums are verified.
    Surplus(u64),
    /// More than [`TAIL_LIMIT`] bytes: reading stopped, the last checksum is unverified.
    Endless,
    /// Bytes after the container's members that are neither its kind nor zero padding; checksums are verified.
    Garbage,
}

/// The decoded bytes of one file.
pub(super) struct Stream<'a> {
    kind: Kind<'a>,
    /// Length of the file as stored.
    stored: u64,
    /// Decoded bytes consumed so far.
    position: u64,
}

enum Kind<'a> {
    Plain(Peek<'a>),
    Gzip(Members<'a>),
    Zstd(Frames<'a>),
}

impl<'a> Stream<'a> {
    /// A stream over `input`, whose stored length is `stored` bytes.
    pub(super) fn new(input: Input<'a>, stored: u64) -> Result<Self> {
        if stored == 0 {
            return Err(Error::new(Code::NIFTI_EMPTY, "the file is empty (0 bytes): copy or export the scan again"));
        }
        let mut input = Peek::new(input);
        let kind = match input.peek(4).map_err(|e| failure(e, ""))? {
            [0x1f, 0x8b, ..] => Kind::Gzip(Members::new(input)),
            start if zstd::is_frame(start) => Kind::Zstd(Frames::new(input)),
            _ => Kind::Plain(input),
        };
        Ok(Self { kind, stored, position: 0 })
    }

    /// Whether the file is gzip.
    pub(super) fn is_gzip(&self) -> bool {
        matches!(self.kind, Kind::Gzip(_))
    }

    /// The container's name, if there is one.
    pub(super) fn container(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Plain(_) => None,
            Kind::Gzip(_) => Some("gzip"),
            Kind::Zstd(_) => Some("zstd"),
        }
    }

    /// The decoded length, where it is known without reading on: for plain files.
    pub(super) fn length(&self) -> Option<u64> {
        self.container().is_none().then_some(self.stored)
    }

    /// Decoded bytes consumed so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Fills `buf`; a smaller count means that the data ended.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            let rest = &mut buf[filled..];
            let read = match &mut self.kind {
                Kind::Plain(input) => input.read(rest),
                Kind::Gzip(members) => members.read(rest),
                Kind::Zstd(frames) => frames.read(rest),
            };
            match read {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failure(e, self.container().unwrap_or_default())),
            }
        }
        self.position += to_u64(filled);
        Ok(filled)
    }

    /// Skips up to `count` bytes and returns how many were there.
    pub(super) fn skip(&mut self, count: u64) -> Result<u64> {
        if let Kind::Plain(input) = &mut self.kind {
            let count = count.min(self.stored.saturating_sub(self.position));
            input.skip(count).map_err(|e| failure(e, ""))?;
            self.position += count;
            return Ok(count);
        }
        let mut scratch = [0; 16 * 1024];
        let mut left = count;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            let got = self.read(&mut scratch[..want])?;
            left -= to_u64(got);
            if got < want {
                break;
            }
        }
        Ok(count - left)
    }

    /// Reads on, within bounds, to the end of the container.
    pub(super) fn finish(&mut self) -> Result<Tail> {
        let surplus = match self.length() {
            Some(length) => length.saturating_sub(self.position),
            None => self.skip(TAIL_LIMIT + 1)?,
        };
        Ok(match &self.kind {
            Kind::Gzip(_) | Kind::Zstd(_) if surplus > TAIL_LIMIT => Tail::Endless,
            Kind::Gzip(Members { garbage: true, .. }) | Kind::Zstd(Frames { garbage: true, .. }) => Tail::Garbage,
            _ if surplus > 0 => Tail::Surplus(surplus),
            _ => Tail::Clean,
        })
    }
}

/// Sorts a read failure: the operating system's, missing bytes, or a damaged container.
fn failure(e: io::Error, container: &str) -> Error {
    if e.raw_os_error().is_some() {
        return Error::new(Code::IO, format!("cannot read the file: {e}")).caused_by(e);
    }
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::new(
            Code::NIFTI_TRUNCATED,
            format!("the {container} data end before their checksum: the file is incomplete, copy or export it again"),
        ),
        io::ErrorKind::Unsupported => Error::new(
            Code::NIFTI_NOT_NIFTI,
            format!("not NIfTI but a {container} file of which nothing can be unpacked here ({e}): unpack it first"),
        ),
        _ => {
            let text = format!("the {container} data are damaged ({e}): copy or export the scan again");
            Error::new(Code::NIFTI_GZIP, text)
        }
    }
    .caused_by(e)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::volume::peek::BUFFER;

    fn gz(payload: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(payload).unwrap();
        encoder.finish().unwrap()
    }

    fn all(bytes: &[u8]) -> Result<(Vec<u8>, Tail)> {
        let mut stream = Stream::new(Input::Bytes(bytes), bytes.len() as u64)?;
        let mut out = vec![0; 1 << 20];
        let count = stream.read(&mut out)?;
        out.truncate(count);
        let tail = stream.finish()?;
        Ok((out, tail))
    }

    #[test]
    fn members_padding_and_garbage() {
        let two = [gz(b"abc"), gz(b""), gz(b"def")].concat();
        assert_eq!(all(&two).unwrap(), (b"abcdef".to_vec(), Tail::Clean));
        assert_eq!(all(&[two.clone(), vec![0; 1000]].concat()).unwrap(), (b"abcdef".to_vec(), Tail::Clean));
        assert_eq!(all(&[two.clone(), b"\0\0x".to_vec()].concat()).unwrap().1, Tail::Garbage);
        assert_eq!(all(&two[..two.len() - 1]).unwrap_err().code(), Code::NIFTI_TRUNCATED);
        let empties = gz(b"").repeat(EMPTY_MEMBERS as usize + 2);
        assert_eq!(all(&empties).unwrap_err().code(), Code::NIFTI_GZIP);
    }

    #[test]
    fn surplus_is_bounded() {
        let bytes = gz(&vec![7; 3 * TAIL_LIMIT as usize]);
        let mut stream = Stream::new(Input::Bytes(&bytes), bytes.len() as u64).unwrap();
        assert_eq!(stream.skip(1000).unwrap(), 1000);
        assert_eq!(stream.finish().unwrap(), Tail::Endless);
        let mut stream = Stream::new(Input::Bytes(b"0123456789"), 10).unwrap();
        assert_eq!(stream.skip(4).unwrap(), 4);
        assert_eq!(stream.finish().unwrap(), Tail::Surplus(6));
    }

    #[test]
    fn members_that_straddle_the_buffer() {
        // The two magic bytes of the second member fall on either side of the buffer's end.
        let noise: Vec<u8> = (0..BUFFER as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let second = gz(b"tail");
        for cut in 0..40 {
            let mut stored = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
            stored.write_all(&noise[..BUFFER - 40 + cut]).unwrap();
            let first = stored.finish().unwrap();
            let (out, tail) = all(&[first, second.clone()].concat()).unwrap();
            assert_eq!((out.len(), tail), (BUFFER - 40 + cut + 4, Tail::Clean));
        }
    }
}
