//! Saved inputs: `corpus/TARGET.txt`, one escaped input a line, and whole files in `corpus/TARGET/`.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::Target;

/// The folder of all corpora.
pub fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))
}

fn lines(target: &Target) -> PathBuf {
    folder().join(format!("{}.txt", target.name))
}

/// All saved inputs of a target.
///
/// # Errors
/// A file that can not be read, or a line that is not escaped as it should be.
pub fn load(target: &Target) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut inputs = Vec::new();
    let file = lines(target);
    if file.exists() {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("# ")) {
            let input = unescape(line).with_context(|| format!("{}:{}", file.display(), at + 1))?;
            inputs.push(input);
        }
    }
    let folder = folder().join(target.name);
    if folder.is_dir() {
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder)? {
            files.push(entry?.path());
        }
        files.sort();
        for file in files {
            inputs.push(fs::read(&file).with_context(|| file.display().to_string())?);
        }
    }
    Ok(inputs)
}

/// Adds an input to a target's lines.
///
/// # Errors
/// The file can not be written.
pub fn save(target: &Target, input: &[u8]) -> anyhow::Result<PathBuf> {
    let path = lines(target);
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    writeln!(file, "{}", escape(input)).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// An input in one line of ASCII. An empty one is `\e`, and a `#` at the start is escaped: comments begin so.
pub fn escape(input: &[u8]) -> String {
    if input.is_empty() {
        return r"\e".to_owned();
    }
    let mut out = String::new();
    for (at, byte) in input.iter().enumerate() {
        match byte {
            b'#' if at == 0 => out.push_str(r"\x23"),
            b'\'' | b'"' => out.push(char::from(*byte)),
            byte => out.extend(byte.escape_ascii().map(char::from)),
        }
    }
    out
}

/// The way back; `\*N{…}` stands for N times what is in the braces.
///
/// # Errors
/// What can not be read.
pub fn unescape(text: &str) -> anyhow::Result<Vec<u8>> {
    let (input, rest) = part(text.as_bytes(), false)?;
    anyhow::ensure!(rest.is_empty(), "a brace that nothing opens");
    Ok(input)
}

fn part(mut text: &[u8], inner: bool) -> anyhow::Result<(Vec<u8>, &[u8])> {
    let mut out = Vec::new();
    loop {
        text = match text {
            [] => return Ok((out, text)),
            [b'}', rest @ ..] if inner => return Ok((out, rest)),
            [b'\\', b'e', rest @ ..] => rest,
            [b'\\', b'x', high, low, rest @ ..] => {
                let digits = std::str::from_utf8(&[*high, *low])?.to_owned();
                out.push(u8::from_str_radix(&digits, 16)?);
                rest
            }
            [b'\\', b'*', rest @ ..] => {
                let open = rest.iter().position(|byte| *byte == b'{').context("`\\*` without a brace")?;
                let (count, rest) = rest.split_at(open);
                let (repeated, rest) = part(rest.get(1..).unwrap_or_default(), true)?;
                out.extend(repeated.repeat(std::str::from_utf8(count)?.parse()?));
                rest
            }
            [b'\\', code, rest @ ..] => {
                out.push(match code {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'\\' | b'\'' | b'"' => *code,
                    other => anyhow::bail!("`\\{}` is no escape", char::from(*other)),
                });
                rest
            }
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_back() {
        let all: Vec<u8> = (0..=255).collect();
        for input in [&b""[..], b"# not a comment", b"a\\*2{b}", b"}", &all] {
            assert_eq!(unescape(&escape(input)).unwrap(), input);
        }
        assert_eq!(unescape(r"a\*2{b\*3{c}}d").unwrap(), b"abcccbcccd");
        assert!(unescape(r"\q").is_err());
    }
}
