//! `weir describe`: what acts on an object, where it comes from, what has no effect and why. The control plane says it, of the same
//! world that it translates for proxies; what a proxy has answered by itself is said by that proxy.

mod flag;
mod pod;
mod route;
mod service;

use std::process::ExitCode;

use clap::Args;
use serde::{Serialize, de::DeserializeOwned};
use weir_config::describe::{Rule, Setting, WithoutEffect};

use super::{Place, checked, or_dash, print_json, reach::Reach};
use crate::{
    failure::Failure,
    table::{self, plain, row},
};

/// What can be described.
const KINDS: &str =
    "pod/NAME, service/NAME, httproute/NAME, grpcroute/NAME, tlsroute/NAME, tcproute/NAME, flag/NAME or flags";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// pod/NAME, service/NAME, httproute/NAME, grpcroute/NAME, tlsroute/NAME or tcproute/NAME; flag/NAME or flags: what the flags
    /// of the proxies' answers mean
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// What is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Pod,
    Service,
    /// A route, by its kind as in the control plane's page.
    Route(&'static str),
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let place = &arguments.place;
    let words: Vec<&str> = arguments.what.iter().map(String::as_str).collect();
    let (kind, name) = match words.as_slice() {
        ["flags"] => return flag::all(place),
        [both] => both.split_once('/').ok_or_else(|| Failure::usage(format!("say {KINDS}")))?,
        [kind, name] => (*kind, *name),
        _ => return Err(Failure::usage(format!("say {KINDS}"))),
    };
    let subject = match kind.to_ascii_lowercase().as_str() {
        "flag" => return flag::one(place, name),
        "pod" | "pods" | "po" => Subject::Pod,
        "service" | "services" | "svc" => Subject::Service,
        "httproute" | "httproutes" => Subject::Route("httproute"),
        "grpcroute" | "grpcroutes" => Subject::Route("grpcroute"),
        "tlsroute" | "tlsroutes" => Subject::Route("tlsroute"),
        "tcproute" | "tcproutes" => Subject::Route("tcproute"),
        _ => return Err(Failure::usage(format!("{kind:?} can not be described: say {KINDS}"))),
    };
    let reach = place.reach()?;
    let lines = match subject {
        Subject::Pod => {
            let pod = reach.pod(name, place.namespace.as_deref())?;
            let described = pod::look(&reach, &pod)?;
            shown(place, &described, pod::lines)?
        }
        Subject::Service => shown(place, &control(&reach, place, "service", name)?, service::lines)?,
        Subject::Route(kind) => shown(place, &control(&reach, place, kind, name)?, route::lines)?,
    };
    for line in lines {
        say!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Lines for a person; none where JSON was asked for, and printed.
fn shown<T: Serialize>(place: &Place, value: &T, lines: fn(&T) -> Vec<String>) -> Result<Vec<String>, Failure> {
    if place.is_json() {
        print_json(value)?;
        return Ok(Vec::new());
    }
    Ok(lines(value))
}

/// What the control plane says of an object.
fn control<T: DeserializeOwned>(reach: &Reach, place: &Place, kind: &str, name: &str) -> Result<T, Failure> {
    let namespace = reach.namespace(place.namespace.as_deref())?;
    page(reach, kind, &namespace, checked(name)?)
}

fn page<T: DeserializeOwned>(reach: &Reach, kind: &str, namespace: &str, name: &str) -> Result<T, Failure> {
    let text = reach.control(&format!("/debug/describe/{kind}/{namespace}/{name}"))?;
    serde_json::from_slice(&text).map_err(|error| {
        Failure::failed(format!(
            "the control plane answers in words that this weir does not know ({error}): use the weir of its version"
        ))
    })
}

/// A table, a little to the right.
fn indented(rows: &[Vec<String>]) -> impl Iterator<Item = String> {
    table::lines(rows).into_iter().map(|line| format!("  {line}"))
}

/// The rules in their order, those that never act among them.
fn rules(rules: &[Rule], is_meant: impl Fn(&Rule) -> bool) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["ORDER", "MATCHES", "TO", "RULE", "ASKS"])];
    for rule in rules.iter().filter(|rule| is_meant(rule)) {
        let to: Vec<String> = rule
            .backends
            .iter()
            .map(|backend| {
                let weight = if rule.backends.len() == 1 { String::new() } else { format!("{} ", backend.weight) };
                let empty = backend.endpoints == 0 && backend.trouble.is_none();
                format!("{weight}{}{}", backend.service, if empty { " (no endpoint)" } else { "" })
            })
            .collect();
        let name = rule.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let matches = match &rule.shadowed_by {
            Some(shadow) => format!("{}: never, {} takes it", rule.matches, shadow.place),
            None => rule.matches.clone(),
        };
        let asks = rule.does.iter().cloned();
        let asks: Vec<String> =
            asks.chain(rule.settings.iter().map(|set| format!("{} {}", set.field, set.value))).collect();
        rows.push(vec![
            rule.place.to_string(),
            matches,
            or_dash(&to.join(", ")),
            format!("{} rule {}{name}", rule.object, rule.rule),
            or_dash(&asks.join("; ")),
        ]);
    }
    rows
}

/// What is wrong with rules, a line each: bad backends, and what stands before them.
fn troubles(rules: &[Rule], is_meant: impl Fn(&Rule) -> bool) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for rule in rules.iter().filter(|rule| is_meant(rule)) {
        for (backend, trouble) in rule.backends.iter().filter_map(|backend| Some((backend, backend.trouble.as_ref()?)))
        {
            lines.push(format!("! {} rule {}: backend {}: {trouble}", rule.object, rule.rule, backend.service));
        }
        if let Some(shadow) = &rule.shadowed_by {
            let what = format!("{} rule {} ({})", rule.object, rule.rule, rule.matches);
            lines.push(format!(
                "! {what} never acts: {} rule {}, which is {} in the order, takes all that it would take",
                shadow.object, shadow.rule, shadow.place
            ));
        }
    }
    lines.dedup();
    lines.into_iter().map(|line| plain(&line)).collect()
}

fn settings(settings: &[Setting]) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["FIELD", "VALUE", "FROM"])];
    rows.extend(settings.iter().map(|set| row(&[&set.field, &set.value, &set.object])));
    rows
}

fn without_effect(objects: &[WithoutEffect]) -> impl Iterator<Item = String> {
    objects.iter().map(|object| plain(&format!("! {} has no effect: {}", object.object, object.reason)))
}
