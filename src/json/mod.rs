//! JSON of bounded size, and JSON as other programs write it.
//!
//! Layer 1. A value takes 80 bytes in memory and as few as two in a text: a file of 64 MB could become gigabytes.

mod lenient;

use serde_json::Value;

pub(crate) use lenient::{decode, strict};

/// Parses a text of at most `max_values` values, counted in advance and not too low: every value but the first has a
/// comma, a bracket or a brace in front of it.
///
/// # Errors
/// One line that says what is wrong.
pub(crate) fn parse(text: &[u8], max_values: usize) -> Result<Value, String> {
    let values = text.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > max_values {
        return Err(format!("it holds about {values} JSON values, expected at most {max_values}"));
    }
    serde_json::from_slice(text).map_err(|e| format!("not JSON: {e}"))
}

/// As [`parse`], of a settings file that people edit and Python writes: with a byte order mark, in UTF-16, with `NaN`
/// and `Infinity`, which become texts.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_settings(bytes: Vec<u8>, max_values: usize) -> Result<Value, String> {
    let text = decode(bytes).ok_or_else(|| "not UTF-8".to_owned())?;
    parse(strict(&text).as_bytes(), max_values)
}

/// Whether a setting is in use: neither null nor false, 0 or empty.
pub(crate) fn is_on(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(n) => n.as_f64() != Some(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_windows_and_python_are_read() {
        let read = |text: &[u8]| parse_settings(text.to_vec(), 9);
        assert_eq!(read(b"\xef\xbb\xbf{\"a\": [1, Infinity]}").unwrap()["a"][1], "Infinity");
        assert_eq!(read(b"\xff\xfe[\x007\x00]\x00").unwrap()[0], 7);
        assert!(read(b"\xff\xfe[").unwrap_err().contains("UTF-8"));
        assert!(read(b"[1,2,3,4,5,6,7,8,9,Infinity]").unwrap_err().contains("at most 9"));
    }

    #[test]
    fn values_are_counted_before_they_are_made() {
        assert_eq!(parse(b"[1, {\"a\": 2}]", 3).unwrap()[1]["a"], 2);
        assert!(parse(b"[1, {\"a\": 2}]", 2).unwrap_err().contains("about 3 JSON values, expected at most 2"));
        assert!(parse(&[b"[".as_slice(), &b"[],".repeat(1 << 20)].concat(), 1 << 16).is_err());
        assert!(parse(b"{", 9).unwrap_err().starts_with("not JSON"));
    }
}
