//! Regular expressions from users' objects: linear in time, bounded in size, for whole values.

use regex_automata::{
    meta::Regex,
    util::{captures::Captures, syntax},
};

/// Longest pattern in bytes. Gateway API allows 4,096 for a header's value and 1,024 for a path.
const MAX_PATTERN: usize = 4096;
/// Largest compiled form in bytes; counted repetitions blow up a short pattern.
const MAX_COMPILED: usize = 256 * 1024;
/// Memory for the states that a search keeps, in bytes and per thread that searches.
const SEARCH_CACHE: usize = 128 * 1024;
/// Deepest nesting of groups: the parser recurses.
const MAX_NESTING: u32 = 64;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// Compiles a pattern of RE2's common subset: no look-around, no back-references; classes such as `\d` mean ASCII, `.` a byte.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        if pattern.len() > MAX_PATTERN {
            return Err(format!("the regular expression is longer than {MAX_PATTERN} bytes"));
        }
        // Checked alone first: `a)(?:b` must not become valid by the group around it.
        compile(pattern)?;
        compile(&format!(r"\A(?:{pattern})\z")).map(Self)
    }

    /// Whether the whole value matches.
    pub(super) fn matches(&self, value: &[u8]) -> bool {
        self.0.is_match(value)
    }
}

/// An expression and what takes the place of each of its matches.
#[derive(Debug, Clone)]
pub struct Substitution {
    regex: Regex,
    with: Box<[Part]>,
}

/// A part of what takes the place of a match.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<[u8]>),
    /// What a group of the expression has matched; 0 is all of it.
    Group(usize),
}

impl Substitution {
    /// `with` names groups as `\1`, and a backslash as `\\`, as RE2 has it.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn new(pattern: &str, with: &str) -> Result<Self, String> {
        if pattern.len() > MAX_PATTERN || with.len() > MAX_PATTERN {
            return Err(format!("the regular expression or its substitution is longer than {MAX_PATTERN} bytes"));
        }
        let regex = compile(pattern)?;
        let with = parts(with)?;
        let groups = regex.group_info().group_len(regex_automata::PatternID::ZERO);
        match with.iter().find(|part| matches!(part, Part::Group(group) if *group >= groups)) {
            Some(_) => Err("the substitution names a group that the regular expression does not have".to_owned()),
            None => Ok(Self { regex, with }),
        }
    }

    /// The text with all matches replaced; `None` where it would be longer than `most`.
    pub(super) fn replace(&self, text: &[u8], most: usize) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(text.len());
        let mut done = 0;
        for captures in self.regex.captures_iter(text) {
            let Some(whole) = captures.get_match() else { break };
            out.extend_from_slice(text.get(done..whole.start()).unwrap_or_default());
            self.with.iter().for_each(|part| part.write(&mut out, text, &captures));
            done = whole.end();
            if out.len() > most {
                return None;
            }
        }
        out.extend_from_slice(text.get(done..).unwrap_or_default());
        (out.len() <= most).then_some(out)
    }
}

impl Part {
    fn write(&self, out: &mut Vec<u8>, text: &[u8], captures: &Captures) {
        match self {
            Self::Text(bytes) => out.extend_from_slice(bytes),
            Self::Group(group) => {
                let span = captures.get_group(*group);
                out.extend_from_slice(span.and_then(|span| text.get(span.range())).unwrap_or_default());
            }
        }
    }
}

fn parts(with: &str) -> Result<Box<[Part]>, String> {
    let mut all = Vec::new();
    let mut text = Vec::new();
    let mut bytes = with.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            text.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'\\') => text.push(b'\\'),
            Some(digit) if digit.is_ascii_digit() => {
                if !text.is_empty() {
                    all.push(Part::Text(std::mem::take(&mut text).into()));
                }
                all.push(Part::Group(usize::from(digit - b'0')));
            }
            _ => return Err("the substitution has a backslash before something else than a digit".to_owned()),
        }
    }
    if !text.is_empty() {
        all.push(Part::Text(text.into()));
    }
    Ok(all.into())
}

fn compile(pattern: &str) -> Result<Regex, String> {
    let config = Regex::config()
        .nfa_size_limit(Some(MAX_COMPILED))
        .onepass_size_limit(Some(MAX_COMPILED))
        .hybrid_cache_capacity(SEARCH_CACHE)
        .utf8_empty(false);
    let syntax = syntax::Config::new().unicode(false).utf8(false).nest_limit(MAX_NESTING);
    Regex::builder().configure(config).syntax(syntax).build(pattern).map_err(|error| {
        match (error.size_limit(), error.syntax_error()) {
            (Some(_), _) => "the regular expression is too large when compiled".to_owned(),
            (_, Some(syntax)) => format!("the regular expression is malformed: {}", one_line(&syntax.to_string())),
            _ => "the regular expression cannot be compiled".to_owned(),
        }
    })
}

/// The last line of the parser's message says what is wrong; those before draw the pattern.
fn one_line(message: &str) -> &str {
    message.lines().last().unwrap_or_default().trim_start_matches("error: ").trim()
}
