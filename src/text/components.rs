//! The parts of a `tokenizer.json` around its model: which there may be, with which settings, and by how much they can
//! lengthen a text.
//!
//! An allow-list, of what LLaMA's tokenizers and their relatives have. The crate `tokenizers` knows more, and panics or
//! takes memory without bound on some of it: `FixedLength` of 0, a template that names a second text, chained
//! replacements that each multiply the text.

use serde_json::{Map, Value};

/// Maximum number of parts in a sequence.
const MAX_PARTS: usize = 16;
/// Maximum length of a text in a setting, in bytes.
const MAX_TEXT: usize = 64;
/// Maximum length of a regular expression, in bytes. DeepSeek's, which spells alphabets out, has 1 kB.
pub(super) const MAX_PATTERN: usize = 4096;
/// Maximum of a repetition in a regular expression, as in `\p{N}{1,3}`.
const MAX_REPETITION: u32 = 16;
/// Maximum number of groups in a regular expression: each may become a program of its own.
const MAX_GROUPS: usize = 32;
/// Bytes that a byte may become in Unicode's canonical forms, and in the compatible ones.
const CANONICAL_GROWTH: f64 = 3.0;
const COMPATIBLE_GROWTH: f64 = 11.0;

/// Whether a value is a good setting.
type Check = fn(&Value) -> bool;

/// The parts of one kind: their names, each with its settings, and the name of the list of a `Sequence`.
struct Kind {
    name: &'static str,
    list: &'static str,
    parts: &'static [(&'static str, &'static [(&'static str, Check)])],
}

const NORMALIZERS: Kind = Kind {
    name: "normalizer",
    list: "normalizers",
    parts: &[
        ("Prepend", &[("prepend", is_text)]),
        // Not by nothing: an added token could become empty, which is then found inside of characters.
        ("Replace", &[("pattern", is_literal), ("content", is_name)]),
        ("NFC", &[]),
        ("NFD", &[]),
        ("NFKC", &[]),
        ("NFKD", &[]),
        ("Lowercase", &[]),
    ],
};

const PRE_TOKENIZERS: Kind = Kind {
    name: "pre_tokenizer",
    list: "pretokenizers",
    parts: &[
        ("ByteLevel", BYTE_LEVEL),
        ("Metaspace", METASPACE),
        ("Split", &[("pattern", is_pattern), ("behavior", is_name), ("invert", Value::is_boolean)]),
        ("Digits", &[("individual_digits", Value::is_boolean)]),
        ("Punctuation", &[("behavior", is_name)]),
        ("Whitespace", &[]),
        ("WhitespaceSplit", &[]),
    ],
};

const POST_PROCESSORS: Kind = Kind {
    name: "post_processor",
    list: "processors",
    parts: &[
        ("ByteLevel", BYTE_LEVEL),
        ("TemplateProcessing", &[("single", is_template), ("pair", is_small), ("special_tokens", is_small)]),
    ],
};

const DECODERS: Kind = Kind {
    name: "decoder",
    list: "decoders",
    parts: &[
        ("ByteLevel", BYTE_LEVEL),
        ("Metaspace", METASPACE),
        ("Replace", &[("pattern", is_literal), ("content", is_text)]),
        ("ByteFallback", &[]),
        ("Fuse", &[]),
        ("Strip", &[("content", is_text), ("start", is_count), ("stop", is_count)]),
    ],
};

const BYTE_LEVEL: &[(&str, Check)] =
    &[("add_prefix_space", Value::is_boolean), ("trim_offsets", Value::is_boolean), ("use_regex", Value::is_boolean)];

const METASPACE: &[(&str, Check)] = &[
    ("replacement", is_text),
    ("str_rep", is_text),
    ("prepend_scheme", is_name),
    ("add_prefix_space", Value::is_boolean),
    ("split", Value::is_boolean),
];

/// Checks every part of a tokenizer except model and added tokens. Returns by which factor a text can grow at most;
/// `shortest` is the length in bytes of the shortest token that cuts a text in two, if there is one.
pub(super) fn check(tokenizer: &Map<String, Value>, shortest: Option<f64>) -> Result<f64, String> {
    let mut growth = 1.0;
    for kind in [NORMALIZERS, PRE_TOKENIZERS, POST_PROCESSORS, DECODERS] {
        for part in parts(&kind, tokenizer.get(kind.name).unwrap_or(&Value::Null))? {
            let name = check_part(&kind, part)?;
            if kind.name == NORMALIZERS.name || kind.name == PRE_TOKENIZERS.name {
                growth *= part_growth(name, part, shortest);
            }
        }
    }
    Ok(growth)
}

/// The parts of a value: none, one, or those of a sequence. Sequences hold no sequences.
fn parts<'a>(kind: &Kind, value: &'a Value) -> Result<Vec<&'a Map<String, Value>>, String> {
    let object = |v: &'a Value| v.as_object().ok_or_else(|| format!("its {} is no object", kind.name));
    if value.is_null() {
        return Ok(Vec::new());
    }
    let whole = object(value)?;
    if whole.get("type").and_then(Value::as_str) != Some("Sequence") {
        return Ok(vec![whole]);
    }
    let list = whole.get(kind.list).and_then(Value::as_array);
    let list = list.filter(|list| list.len() <= MAX_PARTS && whole.len() == 2).ok_or_else(|| {
        format!("its {} is a sequence of something else than `{}`, at most {MAX_PARTS}", kind.name, kind.list)
    })?;
    list.iter().map(object).collect()
}

/// The name of a part of this kind whose settings are all known and good.
fn check_part(kind: &Kind, part: &Map<String, Value>) -> Result<&'static str, String> {
    let named = part.get("type").and_then(Value::as_str).unwrap_or_default();
    let known = kind.parts.iter().find(|(name, _)| *name == named);
    let (name, settings) = known.ok_or_else(|| {
        let known = kind.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        format!("its {} `{}` is none of {known}", kind.name, brief(named))
    })?;
    for (key, value) in part.iter().filter(|(key, _)| *key != "type") {
        let setting = settings.iter().find(|(name, _)| name == key);
        if !setting.is_some_and(|(_, is_good)| is_good(value)) {
            let (key, value) = (brief(key), brief(&value.to_string()));
            return Err(format!("its {} {name} has {key} = {value}, which no LLaMA has", kind.name));
        }
    }
    Ok(name)
}

/// By which factor a part can lengthen a text.
fn part_growth(name: &str, part: &Map<String, Value>, shortest: Option<f64>) -> f64 {
    let length = |key: &str| part.get(key).and_then(Value::as_str).map_or(0.0, bytes);
    match name {
        // In front of the text, and of what follows each token that cuts it.
        "Prepend" => shortest.map_or(1.0, |token| 1.0 + length("prepend") / (token + 1.0)),
        "Replace" => {
            let pattern = part.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
            (length("content") / pattern.map_or(1.0, bytes)).max(1.0)
        }
        "NFC" | "NFD" | "Lowercase" => CANONICAL_GROWTH,
        "NFKC" | "NFKD" => COMPATIBLE_GROWTH,
        // Each space, and a prefix for each piece.
        "Metaspace" => 1.0 + length("replacement"),
        "ByteLevel" if part.get("add_prefix_space").and_then(Value::as_bool) == Some(false) => 2.0,
        "ByteLevel" => 4.0,
        _ => 1.0,
    }
}

fn bytes(text: &str) -> f64 {
    u32::try_from(text.len()).map_or(f64::INFINITY, f64::from)
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() <= MAX_TEXT)
}

fn is_name(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty() && text.len() <= MAX_TEXT)
}

fn is_count(value: &Value) -> bool {
    value.as_u64().is_some_and(|n| n <= 16)
}

/// `{"String": "…"}`, not empty: an empty one matches everywhere.
fn is_literal(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.len() == 1) && value.get("String").is_some_and(is_name)
}

/// A text or a regular expression that is simple enough.
fn is_pattern(value: &Value) -> bool {
    let regex = value.get("Regex").and_then(Value::as_str);
    is_literal(value) || (value.as_object().is_some_and(|map| map.len() == 1) && regex.is_some_and(is_simple))
}

/// A template for one text: the text once, and a few special tokens.
fn is_template(value: &Value) -> bool {
    let Some(pieces) = value.as_array().filter(|pieces| pieces.len() <= MAX_PARTS) else { return false };
    let text = |piece: &&Value| piece.get("Sequence").is_some();
    let first = |piece: &Value| piece.pointer("/Sequence/id").and_then(Value::as_str) == Some("A");
    pieces.iter().filter(text).count() == 1 && pieces.iter().filter(text).all(first) && is_small(value)
}

/// A value of bounded size that is never used: reports come alone, and special tokens are put in front here.
fn is_small(value: &Value) -> bool {
    value.to_string().len() <= 1 << 16
}

/// Whether a regular expression has neither back references, nor recursion, nor look-behind, nor large repetitions:
/// what LLaMA's have not, and what costs a time or memory out of proportion.
fn is_simple(pattern: &str) -> bool {
    let mut chars = pattern.chars().peekable();
    let (mut groups, mut in_class) = (0, false);
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('p' | 'P') if chars.next_if_eq(&'{').is_some() => {
                    if !chars.by_ref().take(MAX_TEXT).any(|c| c == '}') {
                        return false;
                    }
                }
                Some(c) if "sSwWdDrntbBpPAz".contains(c) || !c.is_ascii_alphanumeric() => {}
                _ => return false,
            },
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => {
                groups += 1;
                if chars.next_if_eq(&'?').is_some() {
                    // Of the flags, `x` would hide in comments what comes next.
                    let known: &[char] = if chars.next_if_eq(&'i').is_some() { &[':', ')'] } else { &[':', '!', '='] };
                    if !chars.next().is_some_and(|c| known.contains(&c)) {
                        return false;
                    }
                }
            }
            '{' if !in_class => {
                let count: String = chars.by_ref().take_while(|c| *c != '}').collect();
                if !count.split(',').all(|n| n.is_empty() || n.parse().is_ok_and(|n: u32| n <= MAX_REPETITION)) {
                    return false;
                }
            }
            _ => {}
        }
    }
    pattern.len() <= MAX_PATTERN && groups <= MAX_GROUPS
}

/// The beginning of a text from a file, for a message.
pub(super) fn brief(text: &str) -> String {
    let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if shown.len() < text.len() && text.chars().count() > 40 { format!("{shown}…") } else { shown }
}
