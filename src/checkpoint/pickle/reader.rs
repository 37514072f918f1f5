//! A bounded cursor over a pickle's bytes: every read is checked, nothing is allocated before it is.

use super::{MAX_BYTES, corrupt};
use crate::error::{Code, Error, Result};

/// Reads forward through a pickle.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether the bytes were cut at [`MAX_BYTES`], so that their end is not the file's.
    cut: bool,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let cut = bytes.len() > MAX_BYTES;
        Self { bytes: &bytes[..bytes.len().min(MAX_BYTES)], at: 0, cut }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.bytes.len()).ok_or_else(|| self.ended())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn ended(&self) -> Error {
        if self.cut {
            return corrupt(format!("the pickle is longer than {MAX_BYTES} bytes: no checkpoint's is"));
        }
        let (at, len) = (self.at, self.bytes.len());
        Error::new(Code::CHECKPOINT_TRUNCATED, format!("the pickle ends too early: after {at} of its {len} bytes"))
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A length of 8 bytes, as `usize`.
    pub fn len64(&mut self) -> Result<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| self.ended())
    }

    /// A length of 4 bytes.
    pub fn len32(&mut self) -> Result<usize> {
        usize::try_from(self.u32()?).map_err(|_| self.ended())
    }

    /// The text up to the next line feed, which is read too.
    pub fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or_else(|| self.ended())?;
        let line = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| corrupt("a line of the pickle is not UTF-8"))
    }
}

/// A little-endian two's-complement number of any length, when it fits 64 bits.
pub(super) fn long(bytes: &[u8]) -> Option<i64> {
    let (low, high) = bytes.split_at(bytes.len().min(8));
    let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut all = [sign; 8];
    all[..low.len()].copy_from_slice(low);
    let value = i64::from_le_bytes(all);
    (high.iter().all(|&b| b == sign) && (value < 0) == (sign == 0xff)).then_some(value)
}

/// A quoted Python string literal of protocol 0 (`'it\'s'`): its text, with the escapes that `repr` writes.
pub(super) fn quoted(line: &str) -> Option<String> {
    let quote = line.chars().next().filter(|&c| c == '\'' || c == '"')?;
    let inner = line.strip_prefix(quote)?.strip_suffix(quote)?;
    unescape(inner, true)
}

/// The text of a protocol 0 `UNICODE` line (raw-unicode-escape), or of a `repr` (with `all` its escapes).
pub(super) fn unescape(text: &str, all: bool) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let digits = match chars.clone().next() {
            Some('u') => 4,
            Some('U') => 8,
            Some('x') if all => 2,
            Some(simple) if all => {
                let plain = ['\\', '\'', '"', 'n', 'r', 't'].iter().position(|&p| p == simple)?;
                out.push(['\\', '\'', '"', '\n', '\r', '\t'][plain]);
                chars.next();
                continue;
            }
            _ => {
                out.push('\\');
                continue;
            }
        };
        chars.next();
        let hex: String = chars.by_ref().take(digits).collect();
        let code = (hex.len() == digits).then(|| u32::from_str_radix(&hex, 16).ok())??;
        out.push(char::from_u32(code)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longs_of_any_length() {
        for (bytes, want) in [
            (&b""[..], Some(0)),
            (b"\xff", Some(-1)),
            (b"\xff\x00", Some(255)),
            (b"\x00\x00\x00\x00\x00\x00\x00\x80", Some(i64::MIN)),
            (b"\x00\x00\x00\x00\x00\x00\x00\x80\x00", None),
            (b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", None),
        ] {
            assert_eq!(long(bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn text_of_protocol_0() {
        assert_eq!(quoted(r"'it\'s\n\x41'").as_deref(), Some("it's\nA"));
        assert_eq!(unescape(r"a\u00e9\b", false).as_deref(), Some("aé\\b"));
        assert_eq!(quoted("'open"), None);
        assert_eq!(unescape(r"\u12", false), None);
    }
}
