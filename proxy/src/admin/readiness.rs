//! Whether the proxy is ready, and if not, why: named conditions that other parts set.

use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
};

/// The pod has a valid certificate.
pub const CERTIFICATE: &str = "certificate";
/// The control plane has told about the pod's own ports.
pub const INBOUND_CONFIG: &str = "inbound configuration";
/// The redirect rules are in force.
pub const REDIRECT: &str = "redirect";

/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 1024;

/// Conditions by name. Ready while every one of them holds. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Vec<Condition>>>);

#[derive(Debug)]
struct Condition {
    name: &'static str,
    /// Why it does not hold.
    missing: Option<String>,
}

impl Readiness {
    /// With conditions that do not hold yet.
    pub fn new(names: impl IntoIterator<Item = &'static str>) -> Self {
        let conditions = names.into_iter().map(|name| Condition { name, missing: Some("not known yet".into()) });
        Self(Arc::new(Mutex::new(conditions.collect())))
    }

    /// Sets a condition: it holds, or why it does not. Returns true where this changed something.
    pub fn set(&self, name: &'static str, state: Result<(), String>) -> bool {
        let mut missing = state.err();
        if let Some(reason) = &mut missing {
            let mut end = reason.len().min(MAX_REASON);
            while !reason.is_char_boundary(end) {
                end = end.saturating_sub(1);
            }
            reason.truncate(end);
        }
        let mut conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match conditions.iter_mut().find(|condition| condition.name == name) {
            Some(known) if known.missing == missing => false,
            Some(known) => {
                known.missing = missing;
                true
            }
            None => {
                conditions.push(Condition { name, missing });
                true
            }
        }
    }

    /// True while every condition holds.
    pub fn is_ready(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().all(|condition| condition.missing.is_none())
    }

    /// One line for each condition that does not hold; empty when ready.
    pub fn reasons(&self) -> String {
        let conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for condition in conditions.iter() {
            if let Some(reason) = &condition.missing {
                let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                let _ = writeln!(text, "{}: {reason}", condition.name);
            }
        }
        text
    }
}
