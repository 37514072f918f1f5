//! The text of a configuration file as editors and Python's `json` write it → JSON as RFC 8259 has it.
//!
//! A byte order mark is dropped, and UTF-16 with one is read. Python's `NaN`, `Infinity` and `-Infinity` become texts:
//! where such a value is read, it is then refused by its name; where none is, it does no harm.

use std::borrow::Cow;

/// What Python writes for values that JSON does not have.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The bytes of a file as text, in UTF-8 or, with a byte order mark, in UTF-16; `None` where they are neither.
pub(crate) fn decode(bytes: Vec<u8>) -> Option<String> {
    let units = |pairs: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = pairs.as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().map(|pair| unit(*pair)).collect();
        rest.is_empty().then(|| String::from_utf16(&units).ok()).flatten()
    };
    match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        [0xff, 0xfe, rest @ ..] => units(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => units(rest, u16::from_be_bytes),
        _ => String::from_utf8(bytes).ok(),
    }
}

/// The text with Python's words for what is no number between quotation marks.
pub(crate) fn strict(text: &str) -> Cow<'_, str> {
    if !WORDS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 64);
    let (mut rest, mut quoted, mut before) = (text, false, ' ');
    while let Some(c) = rest.chars().next() {
        // A word of its own: neither the end of another nor a part of a number.
        let word = WORDS.iter().find(|word| !quoted && rest.starts_with(**word));
        if let Some(word) = word.filter(|_| matches!(before, ' ' | '\t' | '\n' | '\r' | ':' | ',' | '[')) {
            out.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
            before = '"';
            continue;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
        if quoted && c == '\\' {
            let escaped = rest.chars().next();
            out.extend(escaped);
            rest = &rest[escaped.map_or(0, char::len_utf8)..];
        } else if c == '"' {
            quoted = !quoted;
        }
        before = c;
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_python_become_texts() {
        let text = "{\"a\": [0.0, Infinity,-Infinity],\n\"NaN\":NaN, \"b\": \"x \\\" Infinity\"}";
        let expected = serde_json::json!({"a": [0.0, "Infinity", "-Infinity"], "NaN": "NaN", "b": "x \" Infinity"});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&strict(text)).unwrap(), expected);
        for kept in ["{\"a\": 1}", "{\"a\": \"NaN\"}", "{\"\\\\\": \"-Infinity\"}", "[xNaN, 1Infinity", "\"\\"] {
            assert_eq!(strict(kept), kept);
        }
    }

    #[test]
    fn marks_of_windows_are_dropped() {
        let text = "{\"größe\": 1}";
        let utf16 = |of: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(of).collect::<Vec<u8>>();
        assert_eq!(decode([b"\xef\xbb\xbf", text.as_bytes()].concat()).unwrap(), text);
        assert_eq!(decode([vec![0xff, 0xfe], utf16(u16::to_le_bytes)].concat()).unwrap(), text);
        assert_eq!(decode([vec![0xfe, 0xff], utf16(u16::to_be_bytes)].concat()).unwrap(), text);
        assert_eq!(decode(text.into()).unwrap(), text);
        assert_eq!(
            [decode(vec![0xff, 0xfe, b'{']), decode(vec![0xff]), decode(vec![0xff, 0xfe, 0, 0xd8])],
            [const { None }; 3]
        );
    }
}
