//! A file of YAML documents to typed objects; every problem of the file is found in one go.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::{
    check, gateway, istio,
    object::{KINDS, Object, ObjectRef},
    path::{FieldPath, Printable},
    problem::Problem,
    security,
    yaml::{self, Lines, Node, Value},
};

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;
/// Namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// An object and where it was written.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The typed object; its namespace is always set where the kind has one.
    pub object: Object,
    /// The same as it was written, with fields in the order of the file, for who works on raw JSON.
    pub raw: Json,
    /// Where it was written.
    pub source: Source,
}

/// Where an object was written.
#[derive(Debug, Clone)]
pub struct Source {
    /// File name as given.
    pub file: Arc<str>,
    /// Number of the document, from 1.
    pub document: usize,
    /// Lines of the fields.
    pub lines: Lines,
}

impl Source {
    /// The source of objects that no file holds, such as `kubernetes`.
    pub fn named(name: &str) -> Self {
        Self { file: name.into(), document: 0, lines: Lines::default() }
    }

    /// A problem of the object at a field.
    pub fn problem(&self, object: Option<ObjectRef>, field: FieldPath, message: impl Into<String>) -> Problem {
        Problem {
            file: self.file.clone(),
            document: self.document,
            line: self.lines.line_of(&field),
            object,
            field,
            message: message.into(),
        }
    }
}

impl Manifest {
    /// A problem of this object at a field.
    pub fn problem(&self, field: FieldPath, message: impl Into<String>) -> Problem {
        self.source.problem(Some(self.object.reference()), field, message)
    }
}

/// What reading one object gave: the object or the field where reading ended, and fields nobody knows.
pub(crate) struct Reading<T> {
    result: Result<T, (FieldPath, String)>,
    unknown: Vec<FieldPath>,
}

impl<T> Reading<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Reading<U> {
        Reading { result: self.result.map(f), unknown: self.unknown }
    }
}

pub(crate) fn read_as<T: DeserializeOwned>(value: &Json) -> Reading<T> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(FieldPath::from_ignored(&path));
    let ignored = serde_ignored::Deserializer::new(value, &mut note);
    let result = T::deserialize(serde_path_to_error::Deserializer::new(ignored, &mut track));
    let result = result.map_err(|error| (FieldPath::from_error(&track.path()), error.to_string()));
    Reading { result, unknown }
}

fn unknown_field(kind: &str, field: &FieldPath) -> String {
    match istio::unsupported(kind, field) {
        Some(instead) => format!("is not supported: {instead}"),
        None => "is not a field that this kind has; is it misspelt or in the wrong place?".into(),
    }
}

/// What a file or an object gives that is stored already, and so has to be taken as it is.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// What can be read. Access rules that can not be accepted are among them, closed (see [`crate::frontend::security`]).
    pub manifests: Vec<Manifest>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Nothing is missing among the manifests: all that is wrong is in access rules, which are closed.
    pub is_whole: bool,
}

impl Stored {
    /// All manifests where nothing is wrong.
    fn strictly(self) -> Result<Vec<Manifest>, Vec<Problem>> {
        if self.problems.is_empty() { Ok(self.manifests) } else { Err(self.problems) }
    }

    fn broken(problems: Vec<Problem>) -> Self {
        Self { manifests: Vec::new(), problems, is_whole: false }
    }
}

/// Reads a file of YAML documents. `kind: List` is taken apart.
///
/// # Errors
/// Every problem of the file, in the order of the file. Where there is one, none of the file's objects is returned: half a
/// file is not what its author meant.
pub fn parse(file: &str, text: &str) -> Result<Vec<Manifest>, Vec<Problem>> {
    parse_stored(file, text).strictly()
}

/// Reads a file as [`parse`] does, and gives what can be read of it besides what is wrong.
pub fn parse_stored(file: &str, text: &str) -> Stored {
    let file: Arc<str> = file.into();
    let whole = |line, message: String| {
        let problem =
            Problem { file: file.clone(), document: 0, line, object: None, field: FieldPath::root(), message };
        Stored::broken(vec![problem])
    };
    if text.len() > MAX_FILE_BYTES {
        return whole(0, format!("is larger than {MAX_FILE_BYTES} bytes: split it into several files"));
    }
    let documents = match yaml::read(text) {
        Ok(documents) => documents,
        Err(error) => return whole(error.line, error.message),
    };
    let mut stored = Stored { is_whole: true, ..Stored::default() };
    for (index, node) in documents.into_iter().enumerate() {
        parse_document(&file, index + 1, node, &mut stored);
    }
    let duplicates = duplicates(&stored.manifests);
    stored.is_whole &= duplicates.is_empty();
    stored.problems.extend(duplicates);
    stored.problems.sort_by_key(|problem| problem.line);
    stored
}

fn parse_document(file: &Arc<str>, document: usize, node: Node, stored: &mut Stored) {
    let is_list = node.get("kind").is_some_and(|kind| kind.value == Value::Scalar("List".into()));
    if is_list && let Some(Node { value: Value::List(items), .. }) = node.get("items") {
        for item in items.clone() {
            parse_document(file, document, item, stored);
        }
        return;
    }
    let raw = node.to_json();
    let source = Source { file: file.clone(), document, lines: Lines::of(node) };
    let one = parse_value_stored(raw, source);
    stored.manifests.extend(one.manifests);
    stored.problems.extend(one.problems);
    stored.is_whole &= one.is_whole;
}

/// Reads one object from its JSON form, as strictly as [`parse`].
///
/// # Errors
/// Every problem of the object.
pub fn parse_value(raw: Json, source: Source) -> Result<Manifest, Vec<Problem>> {
    let Stored { mut manifests, problems, .. } = parse_value_stored(raw, source);
    manifests.pop().filter(|_| problems.is_empty()).ok_or(problems)
}

/// Cuts off what an API server adds to an object: `status`, and of `metadata` all but name, namespace and time of making.
pub fn trim(raw: &mut Json) {
    if let Some(top) = raw.as_object_mut() {
        top.remove("status");
    }
    if let Some(metadata) = raw.get_mut("metadata").and_then(Json::as_object_mut) {
        metadata.retain(|key, _| ["name", "namespace", "creationTimestamp"].contains(&key.as_str()));
    }
}

/// Reads one object as [`parse_value`] does: there is a manifest where nothing is wrong, and for an access rule also where
/// something is; that one is closed.
pub fn parse_value_stored(raw: Json, source: Source) -> Stored {
    let text = |pointer: &str| raw.pointer(pointer).and_then(Json::as_str).unwrap_or_default();
    let (api, kind) = (text("/apiVersion"), text("/kind"));
    let mut reference = ObjectRef {
        kind: kind.into(),
        namespace: text("/metadata/namespace").into(),
        name: text("/metadata/name").into(),
    };
    if !raw.is_object() {
        return Stored::broken(vec![source.problem(
            None,
            FieldPath::root(),
            "is not a Kubernetes object (a map with apiVersion, kind and metadata)",
        )]);
    }
    for (field, value) in [("apiVersion", api), ("kind", kind)] {
        if value.is_empty() {
            let object = (!kind.is_empty()).then_some(reference);
            return Stored::broken(vec![source.problem(object, FieldPath::of(field), "is missing")]);
        }
    }
    let api = match api {
        security::EARLIER_API_VERSION => security::API_VERSION,
        gateway::EARLIER_API_VERSION if gateway::EARLIER_KINDS.contains(&kind) => gateway::API_VERSION,
        api if istio::EARLIER_API_VERSIONS.contains(&api) => istio::API_VERSION,
        api => api,
    };
    let Some(reading) = Object::read(api, kind, &raw) else {
        return Stored::broken(vec![unknown_kind(api, kind, &source, reference)]);
    };
    let mut wrong: Vec<(FieldPath, String)> =
        reading.unknown.into_iter().map(|field| (field.clone(), unknown_field(kind, &field))).collect();
    let problem = |reference: &ObjectRef, (field, message): (FieldPath, String)| {
        source.problem(Some(reference.clone()), field, message)
    };
    let mut object = match reading.result {
        Ok(object) => object,
        Err(error) => {
            wrong.push(error);
            return Stored::broken(wrong.into_iter().map(|error| problem(&reference, error)).collect());
        }
    };
    if object.is_namespaced() {
        let namespace = object.metadata_mut().namespace.get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
        reference.namespace.clone_from(namespace);
    }
    wrong.extend(check::object(&object));
    let keep = wrong.is_empty() || object.close(&wrong);
    let problems = wrong.into_iter().map(|error| problem(&reference, error)).collect();
    let manifests = if keep { vec![Manifest { object, raw, source }] } else { Vec::new() };
    Stored { manifests, problems, is_whole: keep }
}

fn unknown_kind(api: &str, kind: &str, source: &Source, reference: ObjectRef) -> Problem {
    match KINDS.iter().find(|known| known.1 == kind) {
        Some((known, ..)) => source.problem(
            Some(reference),
            FieldPath::of("apiVersion"),
            format!("{kind} of {} is not known; {kind} of {known} is", Printable(api)),
        ),
        None => {
            let known: Vec<&str> = KINDS.iter().map(|known| known.1).collect();
            let message =
                format!("{} of {} is not known here; known are {}", Printable(kind), Printable(api), known.join(", "));
            source.problem(Some(reference), FieldPath::of("kind"), message)
        }
    }
}

fn duplicates(manifests: &[Manifest]) -> Vec<Problem> {
    let mut seen = std::collections::HashMap::new();
    let mut problems = Vec::new();
    for manifest in manifests {
        if let Some(first) = seen.insert(manifest.object.reference(), manifest.source.document) {
            problems.push(manifest.problem(
                FieldPath::of("metadata.name"),
                format!("is a second time in this file (first as document {first})"),
            ));
        }
    }
    problems
}
