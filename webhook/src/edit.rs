//! A JSON document being changed by patch operations.
//!
//! Every operation is recorded and applied at once, so the next one sees its effect and the patch is by construction what
//! leads from the first document to the last. Setting what is already there records nothing: an injection that changes
//! nothing is an empty patch.

use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation,
    jsonptr::{PointerBuf, Token},
};
use serde_json::{Map, Value};

use crate::refusal::Refusal;

/// A document, and the operations that made it from the one it started as.
pub(crate) struct Editor {
    doc: Value,
    operations: Vec<PatchOperation>,
}

impl Editor {
    pub(crate) fn new(doc: Value) -> Self {
        Self { doc, operations: Vec::new() }
    }

    /// The value at a path; JSON's `null` counts as nothing.
    pub(crate) fn get(&self, path: &[&str]) -> Option<&Value> {
        get(&self.doc, path)
    }

    /// Makes the value at `path` be `value`. Parents that are missing become objects.
    pub(crate) fn set(&mut self, path: &[&str], value: Value) -> Result<(), Refusal> {
        for depth in 1..path.len() {
            let (parent, _) = path.split_at(depth);
            if self.get(parent).is_none() {
                self.apply(add(parent, Value::Object(Map::new())))?;
            }
        }
        match self.get(path) {
            Some(now) if *now == value => Ok(()),
            Some(_) => self.apply(PatchOperation::Replace(ReplaceOperation { path: pointer(path), value })),
            None => self.apply(add(path, value)),
        }
    }

    /// Inserts an element into the list at `path`, which is made if it is missing.
    pub(crate) fn insert(&mut self, path: &[&str], index: usize, value: Value) -> Result<(), Refusal> {
        if self.get(path).is_none() {
            self.set(path, Value::Array(Vec::new()))?;
        }
        let index = index.to_string();
        self.apply(add(&[path, &[index.as_str()]].concat(), value))
    }

    /// Adds an element to the end of the list at `path`, which is made if it is missing.
    pub(crate) fn append(&mut self, path: &[&str], value: Value) -> Result<(), Refusal> {
        let end = self.get(path).and_then(Value::as_array).map_or(0, Vec::len);
        self.insert(path, end, value)
    }

    /// Removes the value at `path`, if there is one.
    pub(crate) fn remove(&mut self, path: &[&str]) -> Result<(), Refusal> {
        if self.get(path).is_none() {
            return Ok(());
        }
        self.apply(PatchOperation::Remove(RemoveOperation { path: pointer(path) }))
    }

    pub(crate) fn is_changed(&self) -> bool {
        !self.operations.is_empty()
    }

    pub(crate) fn finish(self) -> Patch {
        Patch(self.operations)
    }

    fn apply(&mut self, operation: PatchOperation) -> Result<(), Refusal> {
        json_patch::patch(&mut self.doc, std::slice::from_ref(&operation))
            .map_err(|_| Refusal::malformed(operation.path().as_str(), "a place that can be changed"))?;
        self.operations.push(operation);
        Ok(())
    }
}

/// The value at a path; JSON's `null` counts as nothing.
pub(crate) fn get<'a>(doc: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let mut at = doc;
    for step in path {
        at = match at {
            Value::Object(map) => map.get(*step)?,
            Value::Array(list) => list.get(step.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    if at.is_null() { None } else { Some(at) }
}

fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().map(|step| Token::new(*step)))
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: pointer(path), value })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_patch_is_what_was_done() {
        let start = json!({"spec": {"a": null, "list": [1], "keep": {"x": 1.5}}});
        let mut editor = Editor::new(start.clone());
        editor.set(&["metadata", "annotations", "weir.dev/capture"], json!("x")).unwrap();
        editor.set(&["spec", "a"], json!(1)).unwrap();
        editor.insert(&["spec", "list"], 0, json!(0)).unwrap();
        editor.append(&["spec", "list"], json!(2)).unwrap();
        editor.append(&["spec", "new"], json!("n")).unwrap();
        editor.remove(&["spec", "absent"]).unwrap();
        let end = json!({
            "metadata": {"annotations": {"weir.dev/capture": "x"}},
            "spec": {"a": 1, "list": [0, 1, 2], "new": ["n"], "keep": {"x": 1.5}},
        });
        assert_eq!(editor.doc, end);
        let patch = editor.finish();
        let mut again = start;
        json_patch::patch(&mut again, &patch).unwrap();
        assert_eq!(again, end);
    }

    #[test]
    fn what_is_there_already_is_no_change() {
        let mut editor = Editor::new(json!({"a": {"b": [1]}}));
        editor.set(&["a", "b"], json!([1])).unwrap();
        assert!(!editor.is_changed());
    }

    #[test]
    fn a_place_that_is_no_object_is_an_error() {
        let mut editor = Editor::new(json!({"metadata": "text", "spec": {"list": {}}}));
        assert!(editor.set(&["metadata", "annotations", "x"], json!(1)).is_err());
        assert!(!editor.is_changed());
    }
}
