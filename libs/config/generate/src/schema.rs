//! The types of all schemas, each once, with a name of its own.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value as Json};

/// Names of places whose own would mislead: the end of the place, the name.
const NAMES: [(&str, &str); 15] = [
    ("requestHeaderModifier", "HeaderModifier"),
    ("requestHeaderModifier.add", "HeaderValue"),
    ("matches.headers", "ValueMatch"),
    ("matches.headers.type", "ValueMatchType"),
    ("matches.path", "PathMatch"),
    ("matches.path.type", "PathMatchType"),
    ("requestRedirect.path", "PathModifier"),
    ("requestRedirect.path.type", "PathModifierType"),
    ("externalAuth.backendRef", "BackendRef"),
    ("TlsRoute.Spec.rules", "StreamRule"),
    ("TlsRoute.Spec.rules.backendRefs", "WeightedBackendRef"),
    ("ReferenceGrant.Spec.from", "GrantFrom"),
    ("ReferenceGrant.Spec.to", "GrantTo"),
    ("rules.timeouts", "Timeouts"),
    ("sessionPersistence.type", "SessionType"),
];

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Type {
    Text,
    Integer,
    Boolean,
    List(Box<Type>),
    /// A declared type, by its place in [`Types`].
    Declared(usize),
}

/// A declared type, without its name and documentation: what is the same here is one type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    /// Fields by name; required or not.
    Fields(BTreeMap<String, (Type, bool)>),
    /// Values.
    Values(Vec<String>),
}

/// A declared type.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) shape: Shape,
    pub(crate) about: String,
    /// What the fields are about.
    pub(crate) fields: BTreeMap<String, String>,
    /// The places it was seen at: kind, then fields.
    places: Vec<Vec<String>>,
}

/// All types.
#[derive(Debug, Default)]
pub(crate) struct Types {
    pub(crate) declared: Vec<Declared>,
}

impl Types {
    /// Adds the types of a kind's `spec`.
    pub(crate) fn add(&mut self, kind: &str, schema: &Json) -> anyhow::Result<()> {
        self.read(schema, &[kind.to_owned(), "Spec".to_owned()]).with_context(|| kind.to_owned()).map(|_| ())
    }

    fn read(&mut self, schema: &Json, place: &[String]) -> anyhow::Result<Type> {
        let get = |key: &str| schema.get(key);
        let about = get("description").and_then(Json::as_str).unwrap_or_default();
        match get("type").and_then(Json::as_str) {
            Some("string") => match get("enum").and_then(Json::as_array) {
                None => Ok(Type::Text),
                Some(values) => {
                    let values = values.iter().filter_map(Json::as_str).map(str::to_owned).collect();
                    Ok(self.declare(Shape::Values(values), about, BTreeMap::new(), place))
                }
            },
            Some("integer") => Ok(Type::Integer),
            Some("boolean") => Ok(Type::Boolean),
            Some("array") => {
                let items = get("items").context("a list of nothing")?;
                Ok(Type::List(Box::new(self.read(items, place)?)))
            }
            Some("object") => {
                let none = Map::new();
                let properties = get("properties").and_then(Json::as_object).unwrap_or(&none);
                let required: BTreeSet<&str> =
                    get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
                let (mut fields, mut abouts) = (BTreeMap::new(), BTreeMap::new());
                for (name, schema) in properties {
                    let mut place = place.to_vec();
                    place.push(name.clone());
                    let kind = self.read(schema, &place)?;
                    fields.insert(name.clone(), (kind, required.contains(name.as_str())));
                    let about = schema.get("description").and_then(Json::as_str).unwrap_or_default();
                    abouts.insert(name.clone(), about.to_owned());
                }
                Ok(self.declare(Shape::Fields(fields), about, abouts, place))
            }
            other => bail!("{}: type {other:?} is not understood", place.join(".")),
        }
    }

    fn declare(&mut self, shape: Shape, about: &str, fields: BTreeMap<String, String>, place: &[String]) -> Type {
        let known = self.declared.iter().position(|known| known.shape == shape);
        let index = known.unwrap_or_else(|| {
            self.declared.push(Declared { shape, about: about.to_owned(), fields, places: Vec::new() });
            self.declared.len() - 1
        });
        if let Some(declared) = self.declared.get_mut(index) {
            declared.places.push(place.to_vec());
        }
        Type::Declared(index)
    }

    /// The name of each type: as much of its shortest place, from the end, as no other type has.
    pub(crate) fn names(&self) -> Vec<String> {
        let places: Vec<&[String]> = self
            .declared
            .iter()
            .filter_map(|declared| declared.places.iter().min_by_key(|place| place.len()))
            .map(Vec::as_slice)
            .collect();
        let name = |place: &[String], parts: usize| -> String {
            let whole = place.join(".");
            let given = NAMES.iter().filter(|(end, _)| whole == *end || whole.ends_with(&format!(".{end}")));
            if let Some((_, given)) = given.max_by_key(|(end, _)| end.len()) {
                return (*given).to_owned();
            }
            // `HttpRouteRule`, not `HttpRouteSpecRule`.
            let place: Vec<&String> = place
                .iter()
                .enumerate()
                .filter(|(i, part)| *part != "Spec" || i + 1 == place.len())
                .map(|(_, part)| part)
                .collect();
            place.iter().skip(place.len().saturating_sub(parts)).map(|part| pascal(&singular(part))).collect::<String>()
        };
        let mut parts = vec![1; places.len()];
        // `Type` or `Spec` alone say nothing.
        for (place, parts) in places.iter().zip(&mut parts) {
            if ["type", "Spec"].contains(&place.last().map_or("", String::as_str)) {
                *parts = 2;
            }
        }
        loop {
            let names: Vec<String> = places.iter().zip(&parts).map(|(place, parts)| name(place, *parts)).collect();
            let mut clash = false;
            for (index, own) in names.iter().enumerate() {
                let others = names.iter().filter(|other| *other == own).count();
                if others > 1
                    && let (Some(parts), Some(place)) = (parts.get_mut(index), places.get(index))
                {
                    clash |= *parts < place.len();
                    *parts = (*parts + 1).min(place.len());
                }
            }
            if !clash {
                return names;
            }
        }
    }
}

fn singular(field: &str) -> String {
    match field {
        "matches" => "match".into(),
        _ => field.strip_suffix('s').filter(|rest| !rest.ends_with('s') && field != "cors").unwrap_or(field).to_owned(),
    }
}

/// `queryParams` to `QueryParams`, `x-b` to `XB`.
pub(crate) fn pascal(text: &str) -> String {
    let mut name = String::new();
    let mut upper = true;
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() {
            upper = true;
        } else if upper {
            name.push(c.to_ascii_uppercase());
            upper = false;
        } else {
            name.push(c);
        }
    }
    name
}
