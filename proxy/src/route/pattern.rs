//! Regular expressions from users' objects: linear in time, bounded in size, for whole values.

use regex_automata::{meta::Regex, util::syntax};

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
