//! HTML → plain text, with the crate `nanohtml2text`: no dependencies, no recursion beyond 32 links, but time that
//! grows with tags × length where tags have no end.

use crate::error::{Code, Error, Result};

/// Maximum of tags × bytes, which bounds the time at about a second. A page of 50 kB with 1,000 tags has 5e7.
const MAX_WORK: usize = 1_000_000_000;

/// The text of an HTML page: blocks on lines of their own, entities as characters, without styles, scripts and head.
pub(super) fn convert(html: &str) -> Result<String> {
    let tags = html.bytes().filter(|b| *b == b'<').count();
    if tags.saturating_mul(html.len()) > MAX_WORK {
        let message = format!("the HTML report has {tags} tags in {} bytes: is it a report?", html.len());
        return Err(Error::new(Code::REPORT_TOO_LARGE, message));
    }
    Ok(nanohtml2text::html2text(html).trim_end().to_owned())
}
