//! The admission protocol, `admission.k8s.io/v1`: an AdmissionReview's bytes in, an AdmissionReview's bytes out.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    inject::{Outcome, Verdict, check_ephemeral, inject_pod},
    rules,
    settings::Settings,
    user::printable,
};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// A uid is a UUID of 36 characters; longer ones are not echoed.
const MAX_UID: usize = 128;
/// Longer warnings are cut by the API server, which also drops all of them above 4,096 characters.
const MAX_WARNING_CHARS: usize = 256;
const MAX_WARNINGS: usize = 16;
/// Longest text that a refusal sends back.
const MAX_MESSAGE_CHARS: usize = 4096;

/// Why a body is no review that can be answered; the HTTP answer is 400.
#[derive(Debug, thiserror::Error)]
pub enum BadReview {
    /// Not JSON, or not of the protocol's shape.
    #[error("the body is no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON of another kind.
    #[error("the body is {kind:?} of {api_version:?}; only AdmissionReview of {API_VERSION} is answered")]
    Version {
        /// `kind`
        kind: String,
        /// `apiVersion`
        api_version: String,
    },
    /// An AdmissionReview without a request.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// Empty or too long.
    #[error("request.uid must be 1 to {MAX_UID} characters")]
    Uid,
}

/// What became of a request, for metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The proxy was added.
    Injected,
    /// Something of the proxy was put right.
    Repaired,
    /// Injected before, and all is as it should be.
    Unchanged,
    /// Left as it is, or nothing that is injected.
    Skipped,
    /// An access rule that can be enforced.
    Accepted,
    /// Refused.
    Refused,
}

impl Judgement {
    /// The value of the metric's label `result`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Repaired => "repaired",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
        }
    }
}

/// An answered review.
#[derive(Debug)]
pub struct Answer {
    /// The AdmissionReview to send.
    pub body: Vec<u8>,
    /// What became of the request.
    pub result: Judgement,
    /// `NAMESPACE/NAME` of the pod or rule, as far as it is known; of a rule with its kind before.
    pub object: String,
    /// Why, where it is refused.
    pub message: Option<String>,
    /// What the user is told of a pod that is not refused. For the pods of a workload, only a controller gets to see it.
    pub warnings: Vec<String>,
}

/// Answers a review.
///
/// # Errors
/// [`BadReview`] where the body is none. A pod that can not be in the mesh is no error but an answer.
pub fn review(settings: &Settings, body: &[u8]) -> Result<Answer, BadReview> {
    let review: Review = serde_json::from_slice(body)?;
    if review.kind != KIND || review.api_version != API_VERSION {
        return Err(BadReview::Version { kind: printable(&review.kind), api_version: printable(&review.api_version) });
    }
    let request = review.request.ok_or(BadReview::NoRequest)?;
    if request.uid.is_empty() || request.uid.len() > MAX_UID {
        return Err(BadReview::Uid);
    }
    let object = request.object_name();
    let (response, result, message) = match decide(settings, &request) {
        Ok(Decision::None) => (Response::allowed(request.uid, None), Judgement::Skipped, None),
        Ok(Decision::Rule) => (Response::allowed(request.uid, None), Judgement::Accepted, None),
        Ok(Decision::Pod(outcome)) => {
            let result = match outcome.verdict {
                Verdict::Injected => Judgement::Injected,
                Verdict::Repaired => Judgement::Repaired,
                Verdict::Unchanged => Judgement::Unchanged,
                Verdict::Skipped(_) => Judgement::Skipped,
            };
            (Response::allowed(request.uid, Some(*outcome)), result, None)
        }
        Err(reason) => {
            let message = format!("weir: {}", clean(&reason, MAX_MESSAGE_CHARS));
            (Response::refused(request.uid, message.clone()), Judgement::Refused, Some(message))
        }
    };
    let warnings = response.warnings.clone();
    let body = serde_json::to_vec(&Reply { api_version: API_VERSION, kind: KIND, response })?;
    Ok(Answer { body, result, object, message, warnings })
}

/// What an object that is not refused gets.
enum Decision {
    /// It is not ours to judge.
    None,
    Pod(Box<Outcome>),
    Rule,
}

fn decide(settings: &Settings, request: &Request) -> Result<Decision, String> {
    let is_pod = request.resource.as_ref().is_some_and(|r| r.group.is_empty() && r.resource == "pods");
    let object = request.object.as_ref().unwrap_or(&Value::Null);
    match (is_pod, request.operation.as_str(), request.sub_resource.as_deref().unwrap_or_default()) {
        (true, "CREATE", "") => {
            let outcome = inject_pod(settings, object, request.namespace.as_deref().unwrap_or_default());
            outcome.map(|outcome| Decision::Pod(Box::new(outcome))).map_err(|refusal| refusal.to_string())
        }
        (true, "UPDATE", "ephemeralcontainers") => {
            check_ephemeral(object).map(|()| Decision::None).map_err(|refusal| refusal.to_string())
        }
        (false, "CREATE" | "UPDATE", "") if request.is_rule() => rules::check(object).map(|()| Decision::Rule),
        _ => Ok(Decision::None), // the configurations ask for nothing else
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    resource: Option<Resource>,
    sub_resource: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
    #[serde(default)]
    operation: String,
    object: Option<Value>,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resource: String,
}

impl Request {
    fn is_rule(&self) -> bool {
        self.resource.as_ref().is_some_and(|resource| rules::is_rule(&resource.group, &resource.resource))
    }

    /// A pod of a ReplicaSet has no name yet, only what it will begin with.
    fn object_name(&self) -> String {
        let generated = || self.object.as_ref()?.pointer("/metadata/generateName")?.as_str();
        let name = self.name.as_deref().filter(|name| !name.is_empty()).or_else(generated).unwrap_or_default();
        let name = format!("{}/{}", printable(self.namespace.as_deref().unwrap_or_default()), clean(name, 253));
        match self.resource.as_ref().filter(|_| self.is_rule()) {
            Some(resource) => format!("{} {name}", resource.resource),
            None => name,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    /// A JSON patch in base64, as the API documents it.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

impl Response {
    fn allowed(uid: String, outcome: Option<Outcome>) -> Self {
        let (patch, warnings) = outcome.map_or_else(Default::default, |outcome| (outcome.patch, outcome.warnings));
        let patch = if patch.is_empty() { None } else { serde_json::to_vec(&patch).ok() };
        let patch = patch.map(|json| STANDARD.encode(json));
        let warnings = warnings.iter().take(MAX_WARNINGS).map(|w| clean(&format!("weir: {w}"), MAX_WARNING_CHARS));
        Self {
            uid,
            allowed: true,
            status: None,
            patch_type: patch.as_ref().map(|_| "JSONPatch"),
            patch,
            warnings: warnings.collect(),
        }
    }

    fn refused(uid: String, message: String) -> Self {
        let status = Status { code: 403, reason: "Forbidden", message };
        Self { uid, allowed: false, status: Some(status), patch: None, patch_type: None, warnings: Vec::new() }
    }
}

/// A text for a person, without control characters and not longer than `max` characters.
fn clean(text: &str, max: usize) -> String {
    let printable = text.chars().map(|c| if c.is_control() { '?' } else { c });
    printable.take(max).collect()
}
