//! Bytes → text: UTF-8, or UTF-16 with or without a byte order mark.
//!
//! UTF-16 without a mark (.NET's and Windows tools' "Unicode") is valid UTF-8 for English text, with a NUL behind every
//! letter; that pattern identifies it. Text of other scripts is taken for UTF-16 only where its spaces and line ends
//! say so and the bytes make no sense as UTF-8: the reverse error reads English as Chinese. NUL bytes anywhere else are
//! refused, never removed: a fixed-width field that was padded may have been cut as well.

use crate::error::{Code, Error, Result};

/// Byte order of UTF-16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

/// Fewest UTF-16 units of a text that is not mostly Latin letters and has no mark.
const MIN_UNITS: usize = 8;

/// The text of these bytes, without its byte order mark.
pub(super) fn decode(bytes: &[u8]) -> Result<String> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Err(wrong("the report is UTF-32: save it as UTF-8")),
        [0xff, 0xfe, rest @ ..] => return marked(rest, Order::Little),
        [0xfe, 0xff, rest @ ..] => return marked(rest, Order::Big),
        _ => {}
    }
    if bytes.contains(&0)
        && let Some(text) = bare_utf16(bytes)
    {
        return Ok(text);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(nul(bytes, at));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let controls = bytes.iter().any(|b| *b < 0x20 && !b.is_ascii_whitespace());
        let hint = match controls {
            true => "it looks like binary data; save the report as plain text (UTF-8)",
            false => {
                "is it Latin-1 or Windows-1252? Save it as UTF-8, or convert it: `iconv -f WINDOWS-1252 -t UTF-8 FILE`"
            }
        };
        wrong(format!("the report is not UTF-8 at byte {}: {hint}", e.valid_up_to()))
    })?;
    Ok(text.to_owned())
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(Code::REPORT_ENCODING, message)
}

/// What to say of the NUL at `at`.
fn nul(bytes: &[u8], at: usize) -> Error {
    let rest = bytes.get(at..).unwrap_or_default();
    let padding = rest.iter().all(|b| *b == 0 || b.is_ascii_whitespace());
    let what = match padding {
        true => {
            format!("the report ends in NUL bytes from byte {at}: a fixed-width field that was padded? If it is whole")
        }
        false => format!("the report has a NUL at byte {at}: text has none. If it is padding"),
    };
    wrong(format!("{what}, remove them: `tr -d '\\000' < FILE`"))
}

/// UTF-16 behind its mark.
fn marked(bytes: &[u8], order: Order) -> Result<String> {
    let text = match bytes.len() % 2 {
        0 => text_of(bytes, order),
        _ => None,
    };
    let text = text.ok_or_else(|| wrong("the report begins as UTF-16 and is none: save it again, as UTF-8"))?;
    match text.contains('\0') {
        true => Err(wrong("the UTF-16 report has NUL characters (padding?): save it again, as UTF-8")),
        false => Ok(text),
    }
}

fn units(bytes: &[u8], order: Order) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).filter_map(|pair| pair.first_chunk::<2>()).map(move |pair| match order {
        Order::Little => u16::from_le_bytes(*pair),
        Order::Big => u16::from_be_bytes(*pair),
    })
}

fn text_of(bytes: &[u8], order: Order) -> Option<String> {
    char::decode_utf16(units(bytes, order)).collect::<std::result::Result<String, _>>().ok()
}

/// UTF-16 without a mark, where it is certain.
fn bare_utf16(bytes: &[u8]) -> Option<String> {
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    let zeros = |order| units(bytes, order).filter(|unit| *unit < 0x100).count();
    let (little, big) = (zeros(Order::Little), zeros(Order::Big));
    let (order, other, most, fewest) = match little > big {
        true => (Order::Little, Order::Big, little, big),
        false => (Order::Big, Order::Little, big, little),
    };
    // A character such as U+4E00 has its zero on the other side.
    if most < 4 * fewest || most == 0 {
        return None;
    }
    let text = text_of(bytes, order).filter(|text| !text.chars().any(is_foreign))?;
    let count = bytes.len() / 2;
    // Latin text has next to none of them.
    if 2 * most >= count && most >= 20 * fewest {
        return Some(text);
    }
    // Spaces and line ends of the other order would be U+2000, U+0A00, U+0D00, which no text has.
    let spaces = |order| units(bytes, order).filter(|unit| [0x20, 0x0a, 0x0d].contains(unit)).count();
    let letters = text.chars().filter(|c| c.is_alphanumeric() || c.is_whitespace() || is_mark(*c)).count();
    let certain =
        spaces(order) > 0 && spaces(other) == 0 && count >= MIN_UNITS && 10 * letters >= 9 * text.chars().count();
    (certain && !may_be_utf8(bytes)).then_some(text)
}

/// Characters that no report has: controls, noncharacters, private use.
fn is_foreign(c: char) -> bool {
    let code = u32::from(c);
    let control = c.is_control() && !c.is_whitespace() && c != '\u{85}';
    control || code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code) || (0xe000..=0xf8ff).contains(&code)
}

/// Punctuation and combining marks.
fn is_mark(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(c, '\u{a0}'..='\u{bf}' | '\u{300}'..='\u{36f}' | '\u{2000}'..='\u{206f}' | '\u{3000}'..='\u{303f}'
            | '\u{ff00}'..='\u{ff65}' | '\u{900}'..='\u{dff}' | '\u{591}'..='\u{5c7}' | '\u{60c}'..='\u{652}')
}

/// Whether these bytes, NULs aside, are UTF-8 text without control characters.
fn may_be_utf8(bytes: &[u8]) -> bool {
    let rest: Vec<u8> = bytes.iter().copied().filter(|b| *b != 0).collect();
    std::str::from_utf8(&rest).is_ok_and(|text| !text.chars().any(is_foreign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, order: Order) -> Vec<u8> {
        let bytes = |unit: u16| match order {
            Order::Little => unit.to_le_bytes(),
            Order::Big => unit.to_be_bytes(),
        };
        text.encode_utf16().flat_map(bytes).collect()
    }

    const TEXTS: [&str; 9] = [
        "Mild widening of the sulci.\r\nMTA 1.",
        "Gedächtnisstörung seit 2 Jahren – „unauffällig“",
        "Лёгкое расширение борозд. MTA 1.\nБез очагов.",
        "Ήπια διεύρυνση των αυλάκων, MTA 1",
        "脑部MRI平扫。 海马体积正常。\n未见梗死。",
        "海馬の萎縮は軽度です。 MTA 1です。",
        "경도의 해마 위축이 관찰됨. MTA 1",
        "ضمور خفيف في الحصين. لا يوجد احتشاء",
        "mild 🧠 atrophy, MTA 1",
    ];

    #[test]
    fn utf16_with_and_without_a_mark() {
        for text in TEXTS {
            for order in [Order::Little, Order::Big] {
                let bare = utf16(text, order);
                assert_eq!(decode(&bare).unwrap(), text, "{order:?}");
                assert_eq!(decode(&[utf16("\u{feff}", order), bare].concat()).unwrap(), text, "{order:?}");
            }
        }
    }

    /// "Bush hid the facts": pairs of letters are Chinese characters.
    #[test]
    fn utf8_with_a_nul_is_never_read_as_utf16() {
        let texts =
            ["mild atrophy of the hippocampi\n", "n\0", "normal study", "a b c d e f", "Größe normal, beidseits "];
        for text in texts {
            for padding in 1..9 {
                for place in [text.len(), text.find(' ').unwrap_or(1)] {
                    let mut bytes = text.as_bytes().to_vec();
                    bytes.splice(place..place, vec![0; padding]);
                    let Ok(read) = decode(&bytes) else { continue };
                    assert!(text == "n\0" && read == "n", "{text:?} became {read:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        let rows: [(&[u8], &str); 8] = [
            (b"MTA 1\0\0\0\0", "byte 5"),
            (b"MTA\0 1 right", "byte 3"),
            (b"\xff\xfeM\0\0\xd8", "UTF-16"),
            (b"\xff\xfeM\0x", "UTF-16"),
            (b"\xfe\xff\0M\0\0", "NUL"),
            (b"\xff\xfe\0\0M\0\0\0", "UTF-32"),
            (b"M\0\0\0T\0\0\0A\0\0\0", "NUL"),
            (b"caf\xe9", "iconv -f WINDOWS-1252"),
        ];
        for (bytes, word) in rows {
            let error = decode(bytes).unwrap_err();
            assert!(error.code() == Code::REPORT_ENCODING && error.message().contains(word), "{error}");
        }
        assert!(decode(&[1, 2, 0xff, 3]).unwrap_err().message().contains("binary"));
    }

    /// No binary data of these lengths passes for UTF-16.
    #[test]
    fn random_bytes_are_no_text() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for length in (32..2048).step_by(14) {
            let bytes: Vec<u8> = (0..length).map(|_| next()).collect();
            assert!(bare_utf16(&bytes).is_none(), "{length} bytes");
        }
    }
}
