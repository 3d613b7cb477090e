//! The rows of one kind, and whether they are about all of its fields.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    ask::Probe,
    document,
    mesh::{Mesh, parsed},
};

/// The fields of a kind, and what was shown of them.
pub(crate) struct Table {
    pub(crate) kind: &'static str,
    /// All fields of the kind's definition.
    fields: Vec<String>,
    rows: Vec<Row>,
    failures: Vec<String>,
}

/// What was shown.
struct Row {
    fields: BTreeSet<String>,
    accepted: bool,
    cells: Vec<String>,
}

/// A field of an object, as the definition names it, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    path: String,
    value: String,
}

impl Table {
    pub(crate) fn new(kind: &'static str, fields: Vec<String>) -> Self {
        Self { kind, fields, rows: Vec::new(), failures: Vec::new() }
    }

    /// The fields that only the first objects have: the probe sees one thing with them, and another without.
    pub(crate) fn acts(
        &mut self,
        mesh: &Mesh,
        probe: &Probe,
        (with, sees): (&[Value], &str),
        (without, otherwise): (&[Value], &str),
    ) {
        assert_ne!(sees, otherwise, "{}: a field that acts", probe.text);
        for object in with {
            assert!(parsed(object).is_ok(), "{object}: {:?}", parsed(object).err());
        }
        let (changed, before) = self.differences(with, without);
        for (objects, wanted) in [(without, otherwise), (with, sees)] {
            if let Err(seen) = mesh.shows(objects, probe, wanted) {
                self.failures
                    .push(format!("{}\n  is to see {wanted:?}, and sees {seen:?}, with {objects:?}", probe.text));
                return;
            }
        }
        let field = |leaf: &Leaf| {
            let other = before.iter().find(|other| other.path == leaf.path);
            let other = other.map(|other| format!(", not {}", shown(&other.value))).unwrap_or_default();
            format!("`{}`: {}{other}", short(&leaf.path), shown(&leaf.value))
        };
        let cell = changed.iter().map(field).collect::<Vec<_>>().join("<br>");
        let fields = changed.iter().map(|leaf| self.name(leaf)).collect();
        let cells = vec![cell, probe.text.clone(), sees.to_owned(), otherwise.to_owned()];
        self.rows.push(Row { fields, accepted: true, cells });
    }

    /// These fields and all below them: an object with one of them is refused, and without it is taken.
    pub(crate) fn refused(&mut self, under: &[&str], with: &Value, without: &Value) {
        assert!(parsed(without).is_ok(), "{without}: {:?}", parsed(without).err());
        let Err(problems) = parsed(with) else {
            self.failures.push(format!("{under:?} is taken: {with}"));
            return;
        };
        let below = |field: &str| {
            under.iter().any(|under| {
                field.strip_prefix(under).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '=']))
            })
        };
        let (changed, _) = self.differences(std::slice::from_ref(with), std::slice::from_ref(without));
        let strange: Vec<_> = changed.iter().filter(|leaf| !below(&self.name(leaf))).collect();
        assert!(strange.is_empty(), "{strange:?} is not below {under:?}");
        let problem = &problems[0];
        // The problem may be told at the field, or at what decides of it beside or above.
        let pattern = problem.field.pattern();
        let plain = |field: &str| field.replace("[]", "").split('=').next().unwrap_or_default().to_owned();
        let related = under
            .iter()
            .map(|under| plain(under))
            .any(|under| under.starts_with(&pattern) || pattern.starts_with(&under));
        assert!(related, "{under:?}: the problem is one of {pattern}: {problem}");
        let fields: BTreeSet<String> = self.fields.iter().filter(|field| below(field)).cloned().collect();
        assert!(!fields.is_empty(), "{under:?} is no field of {}", self.kind);
        let cell = under.iter().map(|under| format!("`{}`", short(under))).collect::<Vec<_>>().join("<br>");
        let message = problem.message.replace('|', "\\|");
        self.rows.push(Row { fields, accepted: false, cells: vec![cell, message] });
    }

    /// Every field has a row, of one sort; the tables are those of the document.
    pub(crate) fn finish(mut self) {
        for field in &self.fields {
            let (mut taken, mut refused) = (false, false);
            for row in self.rows.iter().filter(|row| row.fields.contains(field)) {
                if row.accepted { taken = true } else { refused = true }
            }
            match (taken, refused) {
                (false, false) => self.failures.push(format!("{field} has no row")),
                (true, true) => self.failures.push(format!("{field} acts in one row and is refused in another")),
                _ => {}
            }
        }
        assert!(self.failures.is_empty(), "{}:\n{}", self.kind, self.failures.join("\n"));
        let place = |row: &Row| self.fields.iter().position(|field| row.fields.contains(field));
        self.rows.sort_by_key(place);
        let mut seen = BTreeSet::new();
        self.rows.retain(|row| seen.insert(row.cells.clone()));
        let cells = |accepted: bool| {
            let rows = self.rows.iter().filter(move |row| row.accepted == accepted);
            rows.map(|row| row.cells.clone()).collect::<Vec<_>>()
        };
        document::compare(self.kind, &cells(true), &cells(false));
    }

    /// What the first objects have and the others have not, and the other way round.
    fn differences(&self, with: &[Value], without: &[Value]) -> (Vec<Leaf>, Vec<Leaf>) {
        let leaves = |objects: &[Value]| {
            let mut leaves = Vec::new();
            for object in objects.iter().filter(|object| object["kind"] == self.kind) {
                self.leaves(&object["spec"], "spec", &mut leaves);
            }
            leaves
        };
        let others = |objects: &[Value]| -> Vec<Value> {
            objects.iter().filter(|object| object["kind"] != self.kind).cloned().collect()
        };
        assert_eq!(others(with), others(without), "only the objects of the kind may differ");
        let (mut with, mut without) = (leaves(with), leaves(without));
        with.retain(|leaf| match without.iter().position(|other| other == leaf) {
            Some(same) => {
                without.remove(same);
                false
            }
            None => true,
        });
        assert!(!with.is_empty(), "nothing differs");
        (with, without)
    }

    fn leaves(&self, value: &Value, path: &str, into: &mut Vec<Leaf>) {
        match value {
            Value::Object(map) if !self.fields.iter().any(|field| field == path) => {
                map.iter().for_each(|(key, value)| self.leaves(value, &format!("{path}.{key}"), into));
            }
            Value::Array(list) => list.iter().for_each(|value| self.leaves(value, &format!("{path}[]"), into)),
            scalar => {
                let value = scalar.as_str().map_or_else(|| scalar.to_string(), str::to_owned);
                into.push(Leaf { path: path.to_owned(), value });
            }
        }
    }

    /// The definition's name of a field.
    fn name(&self, leaf: &Leaf) -> String {
        let names = [leaf.path.clone(), format!("{}={}", leaf.path, leaf.value)];
        let known = names.into_iter().find(|name| self.fields.contains(name));
        known.unwrap_or_else(|| panic!("{} has no field {leaf:?}", self.kind))
    }
}

fn shown(value: &str) -> String {
    if value.is_empty() { "`\"\"`".into() } else { format!("`{value}`") }
}

/// A field in the table. What a DestinationRule says of one port it says as it does of all, and has one row.
fn short(path: &str) -> String {
    let path = path.strip_prefix("spec.").unwrap_or(path);
    if path.ends_with(".port.number") { path.to_owned() } else { path.replace(".portLevelSettings[]", "") }
}
