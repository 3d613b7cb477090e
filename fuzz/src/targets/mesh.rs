//! The vocabulary: identities, annotations, capture settings, names of resources; and the rules that settings become.

use weir_init::{RuleSet, fuzzing, rules::Family};
use weir_mesh::{
    CaptureSettings, Identity, PodSettings, TrustDomain,
    annotations::KNOWN,
    capture::{MAX_ENTRIES, MAX_JSON},
    names::PREFIX,
    ports::RESERVED,
};
use weir_xds::names::{self, Asked};

use super::text;
use crate::{Shape, Target, magnitude, none};

pub(super) const IDENTITY: Target = Target {
    name: "identity",
    holds: "an identity is its parts put together, of plain characters only, and is made of the same parts again",
    max_len: 2200,
    words: &[&[
        b"spiffe://",
        b"cluster.local",
        b"/ns/",
        b"/sa/",
        b"shop",
        b"cart",
        b"..",
        b".",
        b"%2f",
        b"\0",
        b"@",
        b":80",
        b"?",
        b"#",
        b"//",
        b"A",
        b"-",
        b"*",
        b"\xc3\xa4",
    ]],
    seeds: none,
    run: identity,
};

pub(super) const ANNOTATIONS: Target = Target {
    name: "annotations",
    holds: "what is taken of a pod's annotations is within its bounds and becomes rules; what is not is told by name, printably",
    max_len: 2048,
    words: &[&[
        b"weir.dev/",
        b"\n",
        b"=",
        b",",
        b"exclude-inbound-ports=",
        b"exclude-outbound-ports=",
        b"include-outbound-cidrs=",
        b"exclude-outbound-cidrs=",
        b"skip-interfaces=",
        b"opaque-ports=",
        b"proxy-cpu-request=",
        b"proxy-memory-limit=",
        b"proxy-log=",
        b"drain-seconds=",
        b"15006",
        b"65535",
        b"+80",
        b"0",
        b"10.0.0.0/8",
        b"fd00::/8",
        b"0.0.0.0/0",
        b"::/0",
        b"eth0",
        b"64Mi",
        b"100m",
        b"0.5",
        b"info,weir=debug",
        b"\r",
        b"\"",
        b"{{ .Values }}",
        b"\xc3\xa4",
        b"\0",
        b"capture=",
        b"status=",
    ]],
    seeds: none,
    run: annotations,
};

pub(super) const CAPTURE: Target = Target {
    name: "capture",
    holds: "capture settings come back as they were written, are bounded, and become rules for both families",
    max_len: 20 * 1024,
    words: &[&[
        b"{\"version\":1}",
        b"\"excludeInboundPorts\":[",
        b"\"excludeOutboundPorts\":[",
        b"\"includeOutboundCidrs\":[",
        b"\"excludeOutboundCidrs\":[",
        b"\"skipInterfaces\":[",
        b"\"dnsServers\":[",
        b"]",
        b",",
        b"\"10.0.0.0/8\"",
        b"\"::/0\"",
        b"\"eth0\"",
        b"\"a/b\"",
        b"\"..\"",
        b"65535",
        b"\"version\":2",
        b"null",
        b"[[[[",
        b"\"\\u0000\"",
        b"\"198.18.0.10\"",
    ]],
    seeds: none,
    run: capture,
};

pub(super) const RESOURCE_NAMES: Target = Target {
    name: "resource_names",
    holds: "a resource's name that is understood is the one that is written for what it asks",
    max_len: 1100,
    words: &[&[
        b"weir/",
        b"outbound/",
        b"inbound",
        b"host/",
        b"workload/",
        b"198.18.0.1",
        b":80",
        b"[fd00::1]:80",
        b"fd00::1",
        b"[",
        b"%1",
        b"443/",
        b"a.example",
        b"+80",
        b"080",
        b"/",
        b"::ffff:1.2.3.4",
    ]],
    seeds: none,
    run: resource_names,
};

pub(super) const NETLINK_RULE: Target = Target {
    name: "netlink_rule",
    holds: "a rule of the kernel that is understood is the same rule once it is written; others are said to be unreadable",
    max_len: 1024,
    words: &[&[
        b"weir\0",
        b"meta\0",
        b"payload\0",
        b"ct\0\0",
        b"bitwise\0",
        b"cmp\0",
        b"immediate\0",
        b"redir\0",
        b"\x08\x00",
        b"\x04\x80",
        b"\xff\xff",
        b"\x00\x00",
        b"\x06\x00\x01\x00",
    ]],
    seeds: rules,
    run: netlink_rule,
};

fn identity(bytes: &[u8]) -> Shape {
    let text = text(bytes);
    let domain = text.parse::<TrustDomain>();
    if let Ok(domain) = &domain {
        assert_eq!(domain.as_str(), text);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        assert!(!text.is_empty() && text.bytes().all(plain), "{text:?}");
    }
    let Ok(identity) = text.parse::<Identity>() else {
        return Shape::of((domain.is_ok(), text.starts_with("spiffe://")));
    };
    let (domain, namespace, account) = (identity.trust_domain(), identity.namespace(), identity.service_account());
    assert_eq!(format!("spiffe://{domain}/ns/{namespace}/sa/{account}"), text);
    assert!(identity.uri().len() <= 2048);
    for part in [domain, namespace, account] {
        assert!(
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic() && !b"/%?#@:*".contains(&byte)),
            "{part:?}"
        );
    }
    let Ok(of) = domain.parse::<TrustDomain>() else { panic!("{domain:?} of an identity is no trust domain") };
    assert_eq!(Identity::new(&of, namespace, account).as_ref(), Ok(&identity));
    assert_eq!(String::from(identity.clone()).parse::<Identity>(), Ok(identity.clone()));
    Shape::of((1, magnitude(domain.len()), magnitude(namespace.len()), magnitude(account.len())))
}

/// One `NAME=VALUE` a line.
fn annotations(bytes: &[u8]) -> Shape {
    let text = text(bytes);
    let lines: Vec<(&str, &str)> = text.split('\n').filter_map(|line| line.split_once('=')).collect();
    match PodSettings::from_annotations(lines.iter().copied()) {
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in &errors {
                assert!(
                    error.name.starts_with(PREFIX) && error.name.bytes().all(|byte| byte.is_ascii_graphic()),
                    "{error:?}"
                );
                assert!(!error.to_string().chars().any(char::is_control), "{error}");
            }
            Shape::of((0, errors.len().min(4), errors.first().map(|error| error.name.get(..24).map(str::to_owned))))
        }
        Ok(settings) => {
            assert_eq!(CaptureSettings::from_json(&settings.capture.to_json()).ok().as_ref(), Some(&settings.capture));
            let capture = &settings.capture;
            let ports = [&capture.exclude_inbound_ports, &capture.exclude_outbound_ports, &settings.opaque_ports];
            for port in ports.into_iter().flatten() {
                assert!(*port > 0 && !RESERVED.contains(port), "port {port}");
            }
            for text in [
                &settings.proxy_cpu_request,
                &settings.proxy_cpu_limit,
                &settings.proxy_memory_request,
                &settings.proxy_memory_limit,
                &settings.proxy_log,
            ]
            .into_iter()
            .flatten()
            {
                assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:=,".contains(&byte)), "{text:?}");
            }
            becomes_rules(capture);
            let set = KNOWN.iter().filter(|name| lines.iter().any(|(key, _)| key.strip_prefix(PREFIX) == Some(name)));
            Shape::of((1, set.collect::<Vec<_>>()))
        }
    }
}

fn capture(bytes: &[u8]) -> Shape {
    let text = text(bytes);
    match CaptureSettings::from_json(&text) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            Shape::of((0, format!("{error:?}").get(..12).map(str::to_owned)))
        }
        Ok(settings) => {
            assert!(text.len() <= MAX_JSON);
            let json = settings.to_json();
            assert!(
                json.len() > MAX_JSON || CaptureSettings::from_json(&json).ok().as_ref() == Some(&settings),
                "{json}"
            );
            assert!(settings.exclude_inbound_ports.len() <= MAX_ENTRIES);
            let rules = becomes_rules(&settings);
            Shape::of((1, magnitude(rules), settings.dns_servers.is_empty(), settings.skip_interfaces.is_empty()))
        }
    }
}

/// Rules for both families, each of which the kernel's answer would be read back as; gives their number.
fn becomes_rules(settings: &CaptureSettings) -> usize {
    let rules = RuleSet::new(settings);
    assert_eq!(rules.tables().len(), 2, "both families");
    let written = fuzzing::written(settings);
    assert_eq!(written.len(), rules.len());
    for (family, bytes) in &written {
        let Some((read, again)) = fuzzing::reread(*family, bytes) else { panic!("our own rule is not read") };
        assert!(!read.1.comment.starts_with("unreadable"), "{read:?}");
        assert_eq!(again.as_ref(), Some(&read));
    }
    rules.len()
}

fn resource_names(bytes: &[u8]) -> Shape {
    let text = text(bytes);
    let asked = Asked::parse(&text);
    match &asked {
        None => {}
        Some(Asked::Inbound) => assert_eq!(text, names::INBOUND),
        Some(Asked::Outbound(address)) => {
            assert_eq!(Asked::parse(&names::outbound(*address)), asked);
        }
        Some(Asked::Host { port, host }) => {
            let written = names::host(*port, host);
            assert_eq!(Asked::parse(&written), Some(Asked::Host { port: *port, host: host.to_ascii_lowercase() }));
        }
    }
    let workload = names::parse_workload(&text);
    if let Some(address) = workload {
        assert_eq!(names::parse_workload(&names::workload(address)), Some(address));
        assert!(asked.is_none());
    }
    Shape::of((
        asked.map(|asked| format!("{asked:?}").get(..6).map(str::to_owned)),
        workload.map(|address| address.is_ipv4()),
    ))
}

fn rules() -> Vec<Vec<u8>> {
    let settings = CaptureSettings::from_json(
        r#"{"version":1,"excludeInboundPorts":[22],"excludeOutboundPorts":[25],"skipInterfaces":["net1"],
            "includeOutboundCidrs":["198.18.0.0/16","fd00::/8"],"excludeOutboundCidrs":["198.18.9.0/24","fd00:9::/32"],
            "dnsServers":["198.19.0.10","fd00:1::a"]}"#,
    )
    .unwrap_or_default();
    let number = |family| u8::from(family == Family::V6);
    fuzzing::written(&settings).into_iter().map(|(family, bytes)| [&[number(family)], &bytes[..]].concat()).collect()
}

fn netlink_rule(bytes: &[u8]) -> Shape {
    let Some((family, attributes)) = bytes.split_first() else { return Shape::of("empty") };
    let family = if family % 2 == 0 { Family::V4 } else { Family::V6 };
    let Some((read, again)) = fuzzing::reread(family, attributes) else { return Shape::of("not ours") };
    if let Some(what) = read.1.comment.strip_prefix("unreadable: ") {
        assert!(what.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{what:?}");
        return Shape::of(what.get(..4).map(str::to_owned));
    }
    // Comments and names that no rule of ours has are longer than what is written.
    if read.1.comment.len() <= 127 && read.0.len() < 64 {
        assert_eq!(again.as_ref(), Some(&read), "another rule once it is written");
    }
    Shape::of((read.1.matches.len(), format!("{:?}", read.1.action).get(..4).map(str::to_owned)))
}
