//! Who a row is of: one key for all spellings of a person.
//!
//! In: a cell of the column `subject`, or the scan's path. Out: a [`Person`], whose `key` is equal for two names that
//! are taken for one person, and whose `id` is the name without session, for people. No input is an error.
//!
//! **Cells.** Case, leading zeros, `.0` and what separates the parts do not tell people apart, for spreadsheets,
//! pandas and hands change them: `sub-007`, `007`, `7`, `7.0`; `ADNI_007` and `adni-7`. A session or visit after the
//! person does not either (`_ses-M12`, BIDS; `.long.…`, FreeSurfer's longitudinal stream). What is left becomes parts
//! of letters or digits, so that `1-11` and `11-1` differ, and `S1` and `S10`. Zeros before digits that a letter
//! follows stay (`a01b`): that is how hashes look, not numbers.
//!
//! **Paths.** The BIDS entity `sub-…`, else a name of a known study; a path with neither names nobody.
//!
//! | study | names | key from |
//! |---|---|---|
//! | ADNI | `002_S_0295`, `ADNI_002_S_0295_MR_…`, `sub-ADNI002S0295` | site and roster number (PTID) |
//! | OASIS 1 to 4 | `OAS1_0001_MR1`, `OAS30001_MR_d0129`, `sub-OASIS10001` | release and number |
//! | AIBL, PPMI, and what else the LONI archive names `PROJECT_PERSON_MR_…_S1_I1` | `AIBL_102_MR_…` | project and person |
//! | IXI, NACC, MIRIAD, HCP-Aging and -Development | `IXI002-Guys-0828`, `NACC123456`, `miriad_188_AD_M_01` | prefix and number |
//! | UK Biobank | `1234567_20252_2_0` | participant |
//!
//! Sources: the BIDS specification (entities); the archive manuals of LONI (file names of downloads) and of the
//! studies; Clinica's converters to BIDS (`sub-ADNI…`, `sub-OASIS1…`, `sub-AIBL…`).

/// A person as a list or a file's name has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Person {
    /// Equal for all spellings.
    pub key: String,
    /// The name without `sub-` and session, as it is written.
    pub id: String,
}

/// Studies whose people are a prefix and a number of so many digits.
const PREFIXED: [(&str, usize); 5] = [("ixi", 3), ("nacc", 6), ("miriad", 3), ("hca", 7), ("hcd", 7)];
/// Projects whose files are named as LONI's, also without the numbers at the end.
const PROJECTS: [&str; 6] = ["adni", "aibl", "ppmi", "nifd", "4rtni", "icbm"];
/// Kinds of scans in LONI's names.
const LONI_KINDS: [&str; 3] = ["_mr_", "_pt_", "_pet_"];
/// Words before the number of a session.
const SESSIONS: [&str; 4] = ["session", "ses", "visit", "timepoint"];
/// BIDS entities that follow the person.
const ENTITIES: [&str; 7] = ["run", "acq", "task", "rec", "dir", "space", "desc"];

/// Longest name that is taken apart, in bytes: no study's is longer, and a list may hold cells of megabytes.
const MAX_NAME: usize = 256;

/// The person that a cell names.
pub(super) fn of_cell(cell: &str) -> Person {
    if cell.len() > MAX_NAME {
        return Person { key: cell.to_lowercase(), id: cell.to_owned() };
    }
    let mut id = cell;
    // What is left may have a prefix again: a name and its own `id` are to have one key.
    loop {
        if let Some(person) = of_study(id) {
            return person;
        }
        let rest = without_session(without_prefix(id));
        if rest.len() == id.len() || rest.is_empty() {
            return Person { key: generic_key(id), id: id.to_owned() };
        }
        id = rest;
    }
}

/// The person that a scan's path names: by `sub-…` or by a known study, of the file before its folders.
pub(super) fn of_path(scan: &str) -> Option<Person> {
    if let Some(entity) = bids_entity(scan) {
        return Some(of_cell(entity));
    }
    scan.rsplit(['/', '\\']).find_map(of_study)
}

/// The key of the person that a file's name has by a known study.
pub(super) fn of_file_name(name: &str) -> Option<String> {
    of_study(name).map(|person| person.key)
}

/// The value of the first BIDS entity `sub-` in a path, with `sub-`: of a folder, or at the start of the file's name.
pub(super) fn bids_entity(scan: &str) -> Option<&str> {
    scan.split(['/', '\\']).find_map(|part| {
        // sub-01_T1w.nii.gz, sub-01.nii.gz: an entity's value is letters and digits.
        let entity = part.split(['_', '.']).next().unwrap_or(part);
        (entity.starts_with("sub-") && entity.len() > "sub-".len()).then_some(entity)
    })
}

/// A name of a known study, anywhere in `name`.
fn of_study(name: &str) -> Option<Person> {
    if name.len() > MAX_NAME {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let found = adni(&lower).or_else(|| oasis(&lower)).or_else(|| loni(&lower)).or_else(|| prefixed(&lower));
    let (key, at, length) = found.or_else(|| biobank(&lower))?;
    // The name in lower case has the same places. ADNI's without separators alone would not be found again.
    let id = key
        .strip_prefix("adni:")
        .map_or_else(|| name.get(at..at + length).map(str::to_owned), |id| Some(id.to_uppercase()))?;
    Some(Person { key, id })
}

/// A key, and where in the name the person stands: from which byte on, and how many bytes.
type Found = (String, usize, usize);

/// `NNN_S_NNNN`, four digits or five; without separators after `adni` alone.
fn adni(name: &str) -> Option<Found> {
    let s = name.as_bytes();
    let digits = |at: usize| s.get(at..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count();
    (0..s.len()).find_map(|at| {
        let after_adni = name.get(..at)?.trim_end_matches(['_', '-']).ends_with("adni");
        let begins = at == 0 || !s.get(at - 1)?.is_ascii_alphanumeric() || after_adni;
        if !begins || digits(at) != 3 {
            return None;
        }
        let separator = |at: usize| usize::from(matches!(s.get(at), Some(b'_' | b'-')));
        let first = separator(at + 3);
        let letter = at + 3 + first;
        let second = separator(letter + 1);
        let number = letter + 1 + second;
        let separated = first == 1 && second == 1;
        if s.get(letter) != Some(&b's') || !(separated || (first == second && after_adni)) {
            return None;
        }
        let length = digits(number);
        let end = number + length;
        let ends = !s.get(end).is_some_and(u8::is_ascii_alphanumeric);
        let key = || Some(format!("adni:{}_s_{}", name.get(at..at + 3)?, name.get(number..end)?));
        ((4..=5).contains(&length) && ends).then(key)?.map(|key| (key, at, end - at))
    })
}

/// `OAS1_0001`, `OAS30001`, `OASIS10001`: a release from 1 to 4, and four digits.
fn oasis(name: &str) -> Option<Found> {
    word_starts(name).find_map(|at| {
        let word = name.get(at..)?;
        let rest = word.strip_prefix("oasis").or_else(|| word.strip_prefix("oas"))?;
        let rest = rest.strip_prefix(['_', '-']).unwrap_or(rest);
        let release = rest.chars().next().filter(|c| ('1'..='4').contains(c))?;
        let rest = rest.get(1..)?;
        let (number, rest) = digits_of(rest.strip_prefix(['_', '-']).unwrap_or(rest), 4)?;
        Some((format!("oasis:{release}:{number}"), at, word.len() - rest.len()))
    })
}

/// `PROJECT_PERSON_MR_…`: of a known project, or with the archive's numbers of series and image.
fn loni(name: &str) -> Option<Found> {
    let at = LONI_KINDS.iter().filter_map(|kind| name.find(kind)).min()?;
    let (person, rest) = name.split_at(at);
    let person = without_session(without_prefix(person));
    let (project, subject) = person.split_once('_')?;
    let numbered = |part: &str, letter: char| {
        part.strip_prefix(letter).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let parts: Vec<&str> = rest.split(['_', '.']).collect();
    let archive = parts.windows(2).any(|pair| numbered(pair[0], 's') && numbered(pair[1], 'i'));
    let known = PROJECTS.contains(&project) || archive;
    let begins = name.find(person)?;
    (known && !project.is_empty() && !subject.is_empty()).then(|| (generic_key(person), begins, person.len()))
}

/// A prefix and as many digits as the study has.
fn prefixed(name: &str) -> Option<Found> {
    word_starts(name).find_map(|at| {
        let word = name.get(at..)?;
        PREFIXED.iter().find_map(|(prefix, count)| {
            let rest = word.strip_prefix(prefix)?;
            let (_, rest) = digits_of(rest.strip_prefix(['_', '-']).unwrap_or(rest), *count)?;
            let length = word.len() - rest.len();
            Some((generic_key(word.get(..length)?), at, length))
        })
    })
}

/// `PARTICIPANT_FIELD_INSTANCE_ARRAY` of seven, five, one and one digits.
fn biobank(name: &str) -> Option<Found> {
    let mut parts = name.split(['_', '.']);
    let digits = |count: usize| move |part: &&str| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    let participant = parts.next().filter(digits(7))?;
    parts.next().filter(digits(5))?;
    parts.next().filter(digits(1))?;
    parts.next().filter(digits(1))?;
    Some((generic_key(participant), 0, participant.len()))
}

/// The places where a word begins: after anything but letters and digits.
fn word_starts(name: &str) -> impl Iterator<Item = usize> {
    let mut before = ' ';
    name.char_indices().filter_map(move |(at, c)| {
        let starts = !before.is_alphanumeric();
        before = c;
        starts.then_some(at)
    })
}

/// Exactly `count` digits at the start, and what follows them.
fn digits_of(text: &str, count: usize) -> Option<(&str, &str)> {
    let (digits, rest) = text.split_at_checked(count)?;
    let all = digits.bytes().all(|b| b.is_ascii_digit()) && !rest.starts_with(|c: char| c.is_ascii_digit());
    all.then_some((digits, rest))
}

/// A cell without `sub-`, or `sub` or `subject` before a number.
fn without_prefix(cell: &str) -> &str {
    let cell = cell.trim_matches(|c: char| "'\"=".contains(c) || c.is_whitespace());
    let lower = cell.to_ascii_lowercase();
    if lower.starts_with("sub-") && lower.len() > 4 {
        return cell.get(4..).unwrap_or(cell);
    }
    let number = |prefix: &str| {
        let rest = cell.get(lower.strip_prefix(prefix).map(|_| prefix.len())?..)?;
        let rest = rest.trim_start_matches(['-', '_', ' ']);
        rest.starts_with(|c: char| c.is_ascii_digit()).then_some(rest)
    };
    number("subject").or_else(|| number("sub")).unwrap_or(cell)
}

/// A cell without its session and what follows it.
fn without_session(cell: &str) -> &str {
    let lower = cell.to_ascii_lowercase();
    let end = lower.char_indices().find(|(at, c)| {
        let rest = lower.get(at + 1..).unwrap_or_default();
        *at > 0 && "_-./ ".contains(*c) && (is_session(rest) || (*c == '.' && rest.starts_with("long.")))
    });
    end.and_then(|(at, _)| cell.get(..at)).unwrap_or(cell)
}

/// Whether a part begins with a session: a word for it and then a number or a label of its own, or another entity.
fn is_session(part: &str) -> bool {
    let word = SESSIONS.iter().find_map(|word| part.strip_prefix(word));
    let label = |rest: &str| match rest.strip_prefix(['-', '_', ' ']) {
        Some(label) => label.starts_with(char::is_alphanumeric),
        None => rest.starts_with(|c: char| c.is_ascii_digit()),
    };
    let entity = ENTITIES.iter().filter_map(|name| part.strip_prefix(name)).any(|rest| rest.starts_with('-'));
    word.is_some_and(label) || entity
}

/// The key of a name by its parts: letters in lower case, digits, with `-` between.
fn generic_key(name: &str) -> String {
    let lower = name.to_lowercase();
    if let Some(number) = whole_number(&lower) {
        return number.to_owned();
    }
    let separates = |c: char| c.is_whitespace() || "-_./\\:'\"=\u{2010}\u{2011}\u{2013}\u{2014}\u{feff}".contains(c);
    let mut parts: Vec<&str> = Vec::new();
    for word in lower.split(separates).filter(|word| !word.is_empty()) {
        let mut rest = word;
        while let Some(first) = rest.chars().next() {
            let digit = first.is_ascii_digit();
            let end = rest.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            parts.push(if digit && after.is_empty() { significant(part) } else { part });
            rest = after;
        }
    }
    if parts.is_empty() { lower } else { parts.join("-") }
}

/// The digits of a whole number, with or without `.0` after it: `007`, `7`, `7.0`, and `7,0` of other languages.
fn whole_number(name: &str) -> Option<&str> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // `1.000` may be a thousand.
    let zeros = |text: &str| (1..=2).contains(&text.len()) && text.bytes().all(|b| b == b'0');
    let whole = match name.split_once(['.', ',']) {
        Some((whole, fraction)) if zeros(fraction) => whole,
        Some(_) => return None,
        None => name,
    };
    digits(whole).then(|| significant(whole))
}

/// Digits without the zeros before them.
fn significant(digits: &str) -> &str {
    let rest = digits.trim_start_matches('0');
    if rest.is_empty() { "0" } else { rest }
}

#[cfg(test)]
#[path = "person_tests.rs"]
mod tests;
