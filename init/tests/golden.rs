//! The rules for a handful of settings, as text. `UPDATE_GOLDEN=1` writes the files anew.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

use std::{fs, path::Path};

use weir_init::RuleSet;
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
        ("dns-excluded", r#"{"version":1,"dnsServers":["198.19.0.10"],"excludeOutboundPorts":[53]}"#),
    ] {
        let got = RuleSet::new(&CaptureSettings::from_json(json).unwrap()).to_string();
        let path = folder.join(format!("{name}.nft"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &got).unwrap();
        }
        let want = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(got, want, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
    }
}
