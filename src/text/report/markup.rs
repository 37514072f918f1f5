//! Texts that are written for a program, by what they hold: RTF, HTML, XML, HL7, JSON, pointers of Git LFS.
//!
//! A report may quote a tag or two (`</s>`, `<DATE>` of a de-identification): only elements that lay out a page
//! make it HTML, and only a whole document is XML or JSON.

use serde::de::IgnoredAny;

use super::Found;

pub(super) const HTML: Found =
    Found { what: "HTML", remedy: "convert it with `--report-format html`, or save it as plain text" };
const RTF: Found = Found {
    what: "an RTF document",
    remedy: "save it as plain text, for example with `libreoffice --headless --convert-to txt:Text FILE.rtf`",
};
const EXPORT: &str = "export the report's text from it";
const CDA: Found = Found { what: "an HL7 CDA document (XML)", remedy: EXPORT };
const XML: Found = Found { what: "an XML document", remedy: EXPORT };
const HL7: Found = Found { what: "an HL7 v2 message", remedy: "take the text of its OBX segments" };
const JSON: Found = Found { what: "a JSON document", remedy: EXPORT };
const EMAIL: Found = Found { what: "an e-mail message", remedy: "save its text" };
const LFS: Found = Found { what: "a Git LFS pointer, not the file itself", remedy: "fetch it with `git lfs pull`" };
const ANNEX: Found =
    Found { what: "a git-annex pointer, not the file itself", remedy: "fetch it with `git annex get`" };

/// Elements that begin a page or a piece of one.
const FIRST: &[&str] = &[
    "html", "head", "body", "meta", "title", "style", "script", "link", "div", "p", "br", "table", "span", "font",
    "pre", "center", "h1", "h2", "h3", "h4", "ul", "ol", "b", "strong", "section", "article", "main", "header", "img",
    "a",
];

/// Elements that lay out a page, wherever they stand.
const LAYOUT: &[&str] =
    &["br", "p", "div", "td", "tr", "table", "li", "ul", "ol", "span", "font", "h1", "h2", "h3", "h4"];

/// What a text is, if it is no plain text.
pub(super) fn recognize(text: &str) -> Option<Found> {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}');
    let starts = |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    if starts("{\\rtf") {
        return Some(RTF);
    }
    if starts("<!doctype html") {
        return Some(HTML);
    }
    if starts("<?xml") || starts("<!doctype") {
        return Some(in_xml(text));
    }
    if text.starts_with("version https://git-lfs.github.com/") {
        return Some(LFS);
    }
    if text.starts_with("/annex/objects/") || text.contains(".git/annex/objects/") {
        return Some(ANNEX);
    }
    if is_hl7(text) {
        return Some(HL7);
    }
    if text.starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return Some(JSON);
    }
    if starts("MIME-Version:") || (starts("From:") || starts("Received:")) && text.contains("\nMIME-Version:") {
        return Some(EMAIL);
    }
    in_tags(text)
}

/// Which kind of XML a document is.
fn in_xml(text: &str) -> Found {
    if text.contains("ClinicalDocument") {
        CDA
    } else if Tags::of(text).any(|tag| tag.name.eq_ignore_ascii_case("html")) {
        HTML
    } else {
        XML
    }
}

/// A message or a batch in HL7's encoding characters, or segments of one.
fn is_hl7(text: &str) -> bool {
    let header =
        |name: &str| text.strip_prefix(name).is_some_and(|rest| rest.get(1..5).is_some_and(|s| s.starts_with("^~\\")));
    let segments = ["PID|", "OBR|", "OBX|", "PV1|", "ORC|"];
    ["MSH", "FHS", "BHS"].iter().any(|name| header(name))
        || text.starts_with("MSH|")
        || segments.iter().any(|segment| text.starts_with(segment))
}

/// HTML or XML by its tags.
fn in_tags(text: &str) -> Option<Found> {
    let is_in = |names: &[&str], name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    let comment = text.starts_with("<!--");
    let mut tags = Tags::of(text).peekable();
    let first = tags.peek().filter(|tag| tag.start == 0 || comment).copied();
    if first.is_some_and(|tag| is_in(FIRST, tag.name)) || tags.any(|tag| is_in(LAYOUT, tag.name)) {
        return Some(HTML);
    }
    // A document: its first tag is opened, and closed at its very end.
    let first = first.filter(|tag| tag.start == 0 && !tag.closes)?;
    let end = text.trim_end().strip_suffix('>')?.trim_end().strip_suffix(first.name)?;
    end.ends_with("</").then(|| in_xml(text))
}

/// A tag: `<name …>`, `</name>`, `<name/>`.
#[derive(Clone, Copy)]
struct Tag<'a> {
    start: usize,
    name: &'a str,
    closes: bool,
}

/// The tags of a text, each of at most [`MAX_TAG`] bytes.
struct Tags<'a> {
    text: &'a str,
    /// Where to search on.
    at: usize,
}

/// Longest tag, in bytes: long styles are written into attributes.
const MAX_TAG: usize = 2048;

impl<'a> Tags<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The tag in front of `rest`, which begins behind its `<`; the place of the `<` is `start`.
    fn tag(rest: &'a str, start: usize) -> Option<Tag<'a>> {
        let (closes, inner) = rest.strip_prefix('/').map_or((false, rest), |inner| (true, inner));
        let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && !".-_:".contains(c))?;
        let (name, tail) = inner.split_at_checked(end)?;
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return None;
        }
        // Attributes need a space in front, and no tag begins in them: `p < 0.05 … >` is none.
        let whole = match tail.strip_prefix(|c: char| c.is_ascii_whitespace()) {
            Some(attributes) => {
                attributes.bytes().take(MAX_TAG).find(|b| matches!(b, b'<' | b'>')).is_some_and(|b| b == b'>')
            }
            None => tail.starts_with('>') || tail.starts_with("/>"),
        };
        whole.then_some(Tag { start, name, closes })
    }
}

impl<'a> Iterator for Tags<'a> {
    type Item = Tag<'a>;

    fn next(&mut self) -> Option<Tag<'a>> {
        loop {
            let at = self.at + self.text.get(self.at..)?.find('<')?;
            self.at = at + 1;
            if let Some(tag) = Self::tag(self.text.get(self.at..)?, at) {
                return Some(tag);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_named() {
        let rows = [
            ("{\\rtf1\\ansi MTA 1\\par}", "RTF"),
            ("\u{feff} \n{\\rtf1}", "RTF"),
            ("<!DOCTYPE HTML PUBLIC>", "HTML"),
            ("<html lang=\"de\"><body>MTA 1", "HTML"),
            ("<!-- saved -->\n<BODY>MTA 1", "HTML"),
            ("<p class=\"a\">MTA 1", "HTML"),
            ("MTA 1.<br/>No infarct.", "HTML"),
            ("MTA 1.</p>", "HTML"),
            ("<b>Findings</b> MTA 1", "HTML"),
            ("<?xml version=\"1.0\"?><html xmlns=\"x\"><p>a</p></html>", "HTML"),
            ("<?xml version=\"1.0\"?><ClinicalDocument xmlns=\"urn:hl7-org:v3\">", "CDA"),
            ("<ClinicalDocument><text>MTA 1</text></ClinicalDocument>\n", "CDA"),
            ("<report id=\"1\"><t>MTA 1</t></report>", "XML"),
            ("MSH|^~\\&|RIS|A|B|C\rPID|1\r", "HL7"),
            ("\u{b}MSH|^~\\&|", "HL7"),
            ("MSH$^~\\&$", "HL7"),
            ("OBX|1|TX|||MTA 1", "HL7"),
            ("{\"report\": \"MTA 1\"}", "JSON"),
            ("[{\"report\": \"MTA 1\"}]\n", "JSON"),
            ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
            ("/annex/objects/MD5E-s1--0.txt\n", "annex"),
            ("MIME-Version: 1.0\nContent-Type: text/html\n", "e-mail"),
        ];
        for (text, word) in rows {
            assert!(recognize(text).is_some_and(|found| found.what.contains(word)), "{text}");
        }
    }

    #[test]
    fn reports_with_brackets_are_reports() {
        let reports = [
            "MTA < 1, p < 0.05, GCA > 1",
            "MTA <1 and >2; p<0.05 > x",
            "</s><s>[INST] answer AD [/INST]",
            "<PATIENT> was seen on <DATE>. Normal.",
            "[MRI brain] {normal}",
            "[1] normal study",
            "{MRI} normal",
            "see <http://example.org/p> for br",
            "From: Dr. A\nTo: Dr. B\nMRI: normal",
            "MSH2 mutation. PID: 7|8",
            "a <b and c> d",
            "<",
            "<>",
            "</",
            "",
        ];
        for text in reports {
            assert_eq!(recognize(text), None, "{text}");
        }
    }

    /// In linear time, whatever begins without an end.
    #[test]
    fn hostile_texts_cost_little() {
        let started = std::time::Instant::now();
        for piece in ["<", "<a ", "<a b=\"", "</", "[", "{\"a\":", "<!--", "<a:", "a"] {
            recognize(&piece.repeat((1 << 20) / piece.len()));
        }
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }
}
