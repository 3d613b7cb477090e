//! The rules for a handful of settings, as each back end has them. `UPDATE_GOLDEN=1` writes the files anew.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

use std::{fs, path::Path};

use weir_init::{RuleSet, iptables_input};
use weir_mesh::CaptureSettings;

#[test]
fn rules_as_text() {
    let folder = Path::new("tests/golden");
    for (name, json) in [
        ("default", r#"{"version":1}"#),
        ("ports", r#"{"version":1,"excludeInboundPorts":[22,9100,22,15020],"excludeOutboundPorts":[25,53]}"#),
        (
            "networks",
            r#"{"version":1,"includeOutboundCidrs":["198.18.0.0/16","fd00::/8"],
                "excludeOutboundCidrs":["198.18.9.0/24","198.18.10.1/32","fd00:9::/32","198.18.9.7/24"]}"#,
        ),
        ("interfaces", r#"{"version":1,"skipInterfaces":["net1","eth1.42"]}"#),
        (
            "dns",
            r#"{"version":1,"dnsServers":["198.19.0.10","fd00:19::10","127.0.0.53","198.18.9.1"],
                "skipInterfaces":["net1"],"excludeOutboundCidrs":["198.18.9.0/24"]}"#,
        ),
        (
            "udp",
            r#"{"version":1,"blockUdp":true,"nameServers":["198.19.0.10","fd00:19::10"],"skipInterfaces":["net1"],
                "excludeOutboundPorts":[8125],"excludeOutboundCidrs":["198.18.9.0/24"]}"#,
        ),
        (
            "udp-included",
            r#"{"version":1,"blockUdp":true,"includeOutboundCidrs":["198.18.0.0/16"],"dnsServers":["198.19.0.10"]}"#,
        ),
        ("udp-unknown-name-servers", r#"{"version":1,"blockUdp":true}"#),
        ("dns-excluded", r#"{"version":1,"dnsServers":["198.19.0.10"],"excludeOutboundPorts":[53]}"#),
    ] {
        let rules = RuleSet::new(&CaptureSettings::from_json(json).unwrap());
        for (kind, got) in [("nft", rules.to_string()), ("iptables", iptables_input(&rules).unwrap())] {
            let path = folder.join(format!("{name}.{kind}"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&path, &got).unwrap();
            }
            let want = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(got, want, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
        }
    }
}
