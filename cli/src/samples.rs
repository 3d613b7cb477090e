//! What a proxy serves as metrics.

use std::collections::BTreeMap;

/// One line of the Prometheus text format.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Sample {
    /// A label's value; empty where it is not there.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// Whether a label has a value.
    pub(crate) fn is(&self, label: &str, value: &str) -> bool {
        self.labels.get(label).is_some_and(|own| own == value)
    }

    /// Reads a line; `None` for one that is no sample.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (name, rest) = match line.split_once('{') {
            Some((name, rest)) => (name, Some(rest)),
            None => (line.split_once(' ')?.0, None),
        };
        let mut labels = BTreeMap::new();
        let mut value = line.rsplit_once(' ')?.1;
        if let Some(mut rest) = rest {
            while !rest.starts_with('}') {
                let (label, after) = rest.split_once("=\"")?;
                let mut text = String::new();
                let mut chars = after.char_indices();
                let end = loop {
                    match chars.next()? {
                        (at, '"') => break at,
                        (_, '\\') => match chars.next()?.1 {
                            'n' => text.push('\n'),
                            other => text.push(other),
                        },
                        (_, other) => text.push(other),
                    }
                };
                labels.insert(label.trim_start_matches(',').to_owned(), text);
                rest = after.get(end + 1..)?;
            }
            value = rest.strip_prefix('}')?.trim();
        }
        Some(Self { name: name.to_owned(), labels, value: value.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_text_format() {
        let sample = Sample::parse(r#"a_total{x="1",y="q\"u,}o\\te"} 2.5"#).unwrap();
        assert_eq!((sample.name.as_str(), sample.value), ("a_total", 2.5));
        assert_eq!(sample.labels["y"], "q\"u,}o\\te");
        assert_eq!(Sample::parse("b 1").unwrap().value, 1.0);
        assert_eq!(Sample::parse(r#"c_bucket{le="+Inf"} 3"#).unwrap().labels["le"], "+Inf");
        for none in ["# HELP a b", "", "a{", "a{b", "a{b=\"", "a{b=\"c\"", "a x"] {
            assert_eq!(Sample::parse(none), None, "{none}");
        }
    }
}
