//! JSON of bounded size.
//!
//! Layer 1. A value takes 80 bytes in memory and as few as two in a text: a file of 64 MB could become gigabytes.

use serde_json::Value;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_before_they_are_made() {
        assert_eq!(parse(b"[1, {\"a\": 2}]", 3).unwrap()[1]["a"], 2);
        assert!(parse(b"[1, {\"a\": 2}]", 2).unwrap_err().contains("about 3 JSON values, expected at most 2"));
        assert!(parse(&[b"[".as_slice(), &b"[],".repeat(1 << 20)].concat(), 1 << 16).is_err());
        assert!(parse(b"{", 9).unwrap_err().starts_with("not JSON"));
    }
}
