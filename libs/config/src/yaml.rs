//! YAML text to a tree that knows the line of every node. The only module that knows the YAML crate.
//!
//! Bounded against hostile files: depth, number of nodes and documents, and what aliases expand to. Duplicate keys are errors.
//! Scalars are read as Kubernetes reads them (YAML 1.1: a plain `yes` is a boolean, `0644` is octal), so that a label
//! `on: yes` is refused here as it is there.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use crate::path::{FieldPath, Step};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 48;
/// Most nodes of one file, after aliases are expanded.
const MAX_NODES: usize = 200_000;
/// Most documents of one file.
const MAX_DOCUMENTS: usize = 4096;

/// A node and the line where it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Line in the file, from 1; 0 where it is not known.
    pub line: u64,
    /// What it holds.
    pub value: Value,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Anything without children.
    Scalar(serde_json::Value),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the file.
    Map(Vec<(String, Node)>),
}

/// Why a text is not YAML that is read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// Line in the file, from 1; 0 where it is not known.
    pub line: u64,
    /// What is wrong.
    pub message: String,
}

/// Reads all documents of a text; empty ones are left out.
///
/// # Errors
/// [`YamlError`] with the line where reading ended.
pub fn read(text: &str) -> Result<Vec<Node>, YamlError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_documents: MAX_DOCUMENTS,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
        },
        strict_booleans: false,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        YamlError { line, message: first_line(&error.to_string()) }
    })?;
    Ok(documents.into_iter().map(Node::from).collect())
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: spanned.referenced.line(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Scalar(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Scalar(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Scalar(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Scalar(v.into()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Scalar(v.into()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(serde_json::Value::Null))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(serde_json::Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Spanned<Value>>()? {
            entries.push((key, value.into()));
        }
        Ok(Value::Map(entries))
    }
}

impl Node {
    /// The same as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(scalar) => scalar.clone(),
            Value::List(list) => list.iter().map(Self::to_json).collect(),
            Value::Map(map) => {
                serde_json::Value::Object(map.iter().map(|(key, node)| (key.clone(), node.to_json())).collect())
            }
        }
    }

    /// Takes a field out of a map.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(map) => map.iter().find(|(k, _)| k == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Line of a field, or of its nearest parent that is there.
    pub fn line_of(&self, path: &FieldPath) -> u64 {
        let mut node = self;
        let mut line = self.line;
        for step in path.steps() {
            let next = match (step, &node.value) {
                (Step::Key(key), _) => node.get(key),
                (Step::Index(index), Value::List(list)) => list.get(*index),
                _ => None,
            };
            let Some(next) = next else { break };
            node = next;
            if node.line > 0 {
                line = node.line;
            }
        }
        line
    }
}

/// Lines of an object's fields; empty for objects that no file holds.
#[derive(Debug, Clone, Default)]
pub struct Lines(Option<Arc<Node>>);

impl Lines {
    /// Lines of this tree.
    pub fn of(node: Node) -> Self {
        Self(Some(Arc::new(node)))
    }

    /// Line of a field; 0 where there is none.
    pub fn line_of(&self, path: &FieldPath) -> u64 {
        self.0.as_ref().map_or(0, |node| node.line_of(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_lines() {
        let text = "kind: A\nspec:\n  rules:\n  - name: x\n  - name: y\n---\nkind: B\n";
        let nodes = read(text).unwrap();
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[0].line_of(&FieldPath::of("spec.rules").index(1).key("name")), 5);
        assert_eq!(nodes[0].line_of(&FieldPath::of("spec.nothing")), 3);
        assert_eq!(nodes[1].line, 7);
        assert_eq!(nodes[1].to_json(), serde_json::json!({"kind": "B"}));
    }

    #[test]
    fn scalars_as_kubernetes_reads_them() {
        let node = &read("a: '1'\nb: 1\nc: true\nd: ~\ne: 1.5\nf: 0644\ng: \"yes\"\nh: yes\n").unwrap()[0];
        let want =
            serde_json::json!({"a": "1", "b": 1, "c": true, "d": null, "e": 1.5, "f": 420, "g": "yes", "h": true});
        assert_eq!(node.to_json(), want);
    }

    #[test]
    fn bombs_and_broken_text_are_errors() {
        let deep = "[".repeat(10_000);
        let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..10 {
            let prev = i - 1;
            let refs = vec![format!("*a{prev}"); 10].join(",");
            laughs.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        for bad in [deep.as_str(), &laughs, "a: [1", "a: 1\na: 2\n", "a: b: c", "a:\n\t- x", "? [1]\n: 2\n"] {
            let start = std::time::Instant::now();
            assert!(read(bad).is_err(), "{}", bad.get(..bad.len().min(40)).unwrap_or_default());
            assert!(start.elapsed().as_secs() < 5);
        }
    }
}
