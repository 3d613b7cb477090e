//! What HTTPRoute and GRPCRoute share: headers that are matched and changed, copies, sessions, names of rules.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    ask::{Ask, Probe},
    mesh::{Mesh, SERVICE},
    objects::{and, backend, object, route},
    table::Table,
};

/// Requests of which copies are counted.
const COPIED: usize = 20;
/// Copies have come when none came for so long.
const QUIET: Duration = Duration::from_millis(100);

/// One of both kinds.
pub(crate) struct Requests {
    pub(crate) kind: &'static str,
    pub(crate) port: u16,
    /// A request that every rule is for.
    pub(crate) ask: fn() -> Ask,
    /// A filter that a backend can have instead of those that it can not have.
    pub(crate) other_filters: Vec<(&'static str, Value)>,
}

impl Requests {
    fn route(&self, rule: Value) -> [Value; 1] {
        [route(self.kind, self.port, json!([rule]))]
    }

    fn one(&self) -> Value {
        backend("one", self.port)
    }

    /// Requests that match go to pod one, others to pod two.
    pub(crate) fn matched(&self, matcher: Value) -> [Value; 1] {
        let other = json!({"backendRefs": [backend("two", self.port)]});
        [route(self.kind, self.port, json!([{"matches": [matcher], "backendRefs": [self.one()]}, other]))]
    }
}

/// Shows them all.
pub(crate) fn show(table: &mut Table, mesh: &Mesh, kind: &Requests) {
    headers_matched(table, mesh, kind);
    header_filters(table, mesh, kind);
    copies(table, mesh, kind);
    sessions(table, mesh, kind);
    names(table, mesh, kind);
    refused_filters(table, kind);
}

fn headers_matched(table: &mut Table, mesh: &Mesh, kind: &Requests) {
    values_matched(table, mesh, kind, "headers", &|value| (kind.ask)().with("x-a", value));
}

/// Headers, or parameters of the query, called `x-a`.
pub(crate) fn values_matched(table: &mut Table, mesh: &Mesh, kind: &Requests, field: &str, ask: &dyn Fn(&str) -> Ask) {
    let matcher =
        |name: &str, of: &str, value: &str| kind.matched(json!({field: [{"name": name, "type": of, "value": value}]}));
    let (exact, regex) = (matcher("x-a", "Exact", "a."), matcher("x-a", "RegularExpression", "a."));
    let (other_name, other_value) = (matcher("x-b", "Exact", "a."), matcher("x-a", "Exact", "b"));
    table.acts(mesh, &ask("ab").pod(), (&exact, "two"), (&regex, "one"));
    table.acts(mesh, &ask("ab").pod(), (&regex, "one"), (&exact, "two"));
    table.acts(mesh, &ask("a.").pod(), (&exact, "one"), (&other_name, "two"));
    table.acts(mesh, &ask("a.").pod(), (&exact, "one"), (&other_value, "two"));
}

fn header_filters(table: &mut Table, mesh: &Mesh, kind: &Requests) {
    let request = || (kind.ask)().with("x-said", "app").got("x-said");
    let answer = || (kind.ask)().header("x-said");
    for on_backend in [false, true] {
        for (of, field, probe) in [
            ("RequestHeaderModifier", "requestHeaderModifier", request()),
            ("ResponseHeaderModifier", "responseHeaderModifier", answer()),
        ] {
            for (change, seen) in [
                (json!({"set": [{"name": "x-said", "value": "rule"}]}), "rule"),
                (json!({"add": [{"name": "x-said", "value": "rule"}]}), "app,rule"),
                (json!({"remove": ["x-said"]}), "none"),
            ] {
                let filters = json!({"filters": [{"type": of, field: change}]});
                let plain = kind.route(json!({"backendRefs": [kind.one()]}));
                let with = match on_backend {
                    true => kind.route(json!({"backendRefs": [and(kind.one(), filters)]})),
                    false => kind.route(and(json!({"backendRefs": [kind.one()]}), filters)),
                };
                table.acts(mesh, &probe, (&with, seen), (&plain, "app"));
            }
        }
    }
}

/// How many of some requests pod two gets a copy of.
fn copied(ask: fn() -> Ask) -> Probe {
    fn look(mesh: &Mesh, service: Ipv4Addr, ask: &Ask) -> String {
        let before = mesh.requests("two");
        for _ in 0..COPIED {
            let who = ask.send(mesh, service).pod();
            if who != "one" {
                return format!("answered by {who}");
            }
        }
        let (mut count, mut since) = (0, Instant::now());
        while count < COPIED && since.elapsed() < QUIET {
            let now = mesh.requests("two") - before;
            if now > count {
                (count, since) = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        match count {
            0 => "none".into(),
            COPIED => "all".into(),
            _ => "some".into(),
        }
    }
    Probe::new(
        format!("of {COPIED} requests that pod one answers, those that pod two gets a copy of"),
        move |mesh, service| look(mesh, service, &ask()),
    )
}

fn copies(table: &mut Table, mesh: &Mesh, kind: &Requests) {
    let probe = copied(kind.ask);
    let plain = kind.route(json!({"backendRefs": [kind.one()]}));
    let mirror = |mirror: Value| {
        let filter = json!({"type": "RequestMirror", "requestMirror": mirror});
        kind.route(json!({"backendRefs": [kind.one()], "filters": [filter]}))
    };
    let target = json!({"group": "", "kind": "Service", "namespace": "shop", "name": "two", "port": kind.port});
    let whole = mirror(json!({"backendRef": target}));
    table.acts(mesh, &probe, (&whole, "all"), (&plain, "none"));
    for other in [
        json!({"group": "apps"}),
        json!({"kind": "Pod"}),
        json!({"namespace": "elsewhere"}),
        json!({"name": "one"}),
        json!({"port": 9}),
    ] {
        let other = mirror(json!({"backendRef": and(target.clone(), other)}));
        table.acts(mesh, &probe, (&whole, "all"), (&other, "none"));
    }
    let share = |share: Value| mirror(and(json!({"backendRef": target}), share));
    table.acts(mesh, &probe, (&share(json!({"percent": 50})), "some"), (&whole, "all"));
    let half = share(json!({"fraction": {"numerator": 50}}));
    table.acts(mesh, &probe, (&half, "some"), (&whole, "all"));
    let fifty = share(json!({"fraction": {"numerator": 50, "denominator": 50}}));
    table.acts(mesh, &probe, (&fifty, "all"), (&half, "some"));
}

/// What a caller of a session is given, without what differs each time.
fn session(ask: Ask, header: &'static str) -> Probe {
    let text = format!("`{header}` of the answer, without the session's own value");
    Probe::new(text, move |mesh, service| {
        let value = ask.send(mesh, service).header(header);
        match (value.split_once('='), header) {
            _ if value == "none" => value,
            (Some((name, rest)), "set-cookie") => {
                let name = if name == "shop" { "shop" } else { "another name" };
                let attributes = rest.split(';').skip(1).map(str::trim).filter(|part| part.starts_with("Max-Age"));
                [name].into_iter().chain(attributes).collect::<Vec<_>>().join("; ")
            }
            _ => "some".into(),
        }
    })
}

/// Whether a caller who keeps what it was given meets the same pod again and again.
fn stays(ask: fn() -> Ask) -> Probe {
    Probe::new("12 requests with the cookie of the first answer: who answers", move |mesh, service| {
        let first = ask().send(mesh, service);
        let cookie = first.header("set-cookie").split(';').next().unwrap_or_default().to_owned();
        let same = (0..12).all(|_| ask().with("cookie", &cookie).send(mesh, service).pod() == first.pod());
        if same { "the same pod".into() } else { "both pods".into() }
    })
}

fn sessions(table: &mut Table, mesh: &Mesh, kind: &Requests) {
    let rule = |session: Value| {
        let both = [backend(SERVICE, kind.port)];
        kind.route(json!({"backendRefs": both, "sessionPersistence": session}))
    };
    let none = kind.route(json!({"backendRefs": [backend(SERVICE, kind.port)]}));
    let named = rule(json!({"sessionName": "shop"}));
    let cookie = rule(json!({"sessionName": "shop", "type": "Cookie"}));
    let header = rule(json!({"sessionName": "shop", "type": "Header"}));
    let of_header = || session((kind.ask)(), "shop");
    let of_cookie = || session((kind.ask)(), "set-cookie");
    table.acts(mesh, &stays(kind.ask), (&cookie, "the same pod"), (&none, "both pods"));
    table.acts(mesh, &of_cookie(), (&named, "shop"), (&rule(json!({})), "another name"));
    table.acts(mesh, &of_cookie(), (&cookie, "shop"), (&header, "none"));
    table.acts(mesh, &of_header(), (&header, "some"), (&cookie, "none"));
    let life = |lifetime: &str| json!({"sessionName": "shop", "cookieConfig": {"lifetimeType": lifetime}});
    let minute = |lifetime: &str| and(life(lifetime), json!({"absoluteTimeout": "1m"}));
    let permanent = rule(minute("Permanent"));
    let longer = rule(and(life("Permanent"), json!({"absoluteTimeout": "2m"})));
    let short = rule(life("Session"));
    table.acts(mesh, &of_cookie(), (&permanent, "shop; Max-Age=60"), (&short, "shop"));
    table.acts(mesh, &of_cookie(), (&permanent, "shop; Max-Age=60"), (&longer, "shop; Max-Age=120"));
    table.acts(mesh, &of_cookie(), (&short, "shop"), (&permanent, "shop; Max-Age=60"));
}

/// A TrafficPolicy names a rule, and lets its requests fail.
fn names(table: &mut Table, mesh: &Mesh, kind: &Requests) {
    let target = json!({"group": "gateway.networking.k8s.io", "kind": kind.kind, "name": "rules", "sectionName": "a"});
    let spec = json!({"targetRefs": [target], "fault": {"abort": {"httpStatus": 503}}});
    let policy = object("weir.dev/v1alpha1", "TrafficPolicy", "policy", spec);
    let rule = |name: &str| {
        let [route] = kind.route(json!({"name": name, "backendRefs": [kind.one()]}));
        [route, policy.clone()]
    };
    let failed = if kind.kind == "GRPCRoute" { "grpc-status 14" } else { "503" };
    let good = if kind.kind == "GRPCRoute" { "grpc-status 0" } else { "200" };
    table.acts(mesh, &(kind.ask)().status(), (&rule("a"), failed), (&rule("b"), good));
}

/// Filters that nobody can have, and those that a backend can not have.
fn refused_filters(table: &mut Table, kind: &Requests) {
    let plain = kind.route(json!({"backendRefs": [kind.one()]}));
    let extension = json!({"type": "ExtensionRef", "extensionRef": {"group": "a.example", "kind": "A", "name": "a"}});
    for (of, filter) in [("ExtensionRef", extension)].into_iter().chain(kind.other_filters.iter().cloned()) {
        let own = filter.as_object().unwrap().keys().find(|key| *key != "type").unwrap();
        if ["ExtensionRef", "ExternalAuth"].contains(&of) {
            let with = kind.route(json!({"backendRefs": [kind.one()], "filters": [filter]}));
            let fields = [format!("spec.rules[].filters[].type={of}"), format!("spec.rules[].filters[].{own}")];
            table.refused(&fields.each_ref().map(String::as_str), &with[0], &plain[0]);
        }
        let with = kind.route(json!({"backendRefs": [and(kind.one(), json!({"filters": [filter]}))]}));
        let at = "spec.rules[].backendRefs[].filters[]";
        let fields = [format!("{at}.type={of}"), format!("{at}.{own}")];
        table.refused(&fields.each_ref().map(String::as_str), &with[0], &plain[0]);
    }
}

/// How often a request comes to pod one.
pub(crate) fn attempts(ask: Ask) -> Probe {
    Probe::new(format!("{}: how often it comes to the server", ask.text()), move |mesh, service| {
        let before = mesh.requests("one");
        ask.send(mesh, service);
        (mesh.requests("one") - before).to_string()
    })
}
