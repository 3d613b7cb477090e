//! Every target on its saved corpus, and for a moment on mutations of it.

use std::time::Duration;

use weir_fuzz::{ALL, engine};

/// Always the same numbers: a run that fails fails again.
const SEED: u64 = 1;

/// A second, or what `WEIR_FUZZ_SECONDS` says.
fn seconds() -> f64 {
    std::env::var("WEIR_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0)
}

fn holds(name: &str) {
    let target = ALL.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target {name}"));
    let budget = engine::Budget { time: Duration::from_secs_f64(seconds()), seed: SEED };
    match engine::run(target, budget) {
        Ok(report) => println!("seed {SEED}: {report:?}"),
        Err(failure) => panic!("{failure:#}"),
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        #[test]
        fn every_target_is_here() {
            let here = [$(stringify!($name)),*];
            let all: Vec<&str> = ALL.iter().map(|target| target.name).collect();
            assert_eq!(all, here);
        }
    };
}

targets! {
    http1_request http1_response http1_chunks http2_server http2_client http2_head path authority header_edits first_bytes
    client_hello
    xds_wire xds_resources resource_names manifests objects translation access_rules
    shadowed_rules
    identity csr token annotations capture netlink_rule cni_stdin cni_conflist cni_note
    admission_review injection dns
}
