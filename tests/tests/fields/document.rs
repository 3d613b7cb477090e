//! The tables in `docs/traffic.md`, and the definitions of the kinds.

use std::{
    fmt::Write as _,
    fs,
    sync::{Mutex, PoisonError},
};

use weir_config_generate::{VERSION, definition, destination_rule, fields, module};

use crate::table::Table;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/traffic.md");
const TRAFFIC_POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/weir/crds/trafficpolicies.yaml");
/// Kinds are shown side by side; one at a time writes.
static WRITING: Mutex<()> = Mutex::new(());

/// An empty table of a kind. `None` where its definition can not be had, as there is no Go, or nothing can be fetched: said, and a
/// failure where tests must not be left out (`CI=true`).
pub(crate) fn table(kind: &'static str) -> Option<Table> {
    let gateway_api = |plural: &str| fields(&definition(&module()?, plural)?, VERSION);
    let fields = match kind {
        "TrafficPolicy" => {
            fs::read_to_string(TRAFFIC_POLICY).map_err(Into::into).and_then(|text| fields(&text, "v1alpha1"))
        }
        "DestinationRule" => destination_rule().and_then(|text| fields(&text, VERSION)),
        kind => gateway_api(&format!("{}s", kind.to_ascii_lowercase())),
    };
    match fields {
        Ok(fields) => Some(Table::new(kind, fields)),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{kind}: {error:#}");
            eprintln!("SKIPPED: {kind}: {error:#}");
            None
        }
    }
}

/// The section of a kind is what was shown.
pub(crate) fn compare(kind: &str, accepted: &[Vec<String>], refused: &[Vec<String>]) {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut made = String::new();
    table_of(&mut made, &["field", "what was asked", "with it", "otherwise"], accepted);
    table_of(&mut made, &["refused", "why, and what to do instead"], refused);
    let text = fs::read_to_string(DOCUMENT).unwrap();
    let begin = format!("<!-- fields of {kind}: made by cargo test --test fields -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{DOCUMENT} has no line {begin}"));
    let (there, after) = rest.split_once("\n<!-- end -->").unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(DOCUMENT, format!("{before}{begin}{made}\n<!-- end -->{after}")).unwrap();
        return;
    }
    let different = made.lines().zip(there.lines()).find(|(made, there)| made != there);
    assert!(made == there, "docs/traffic.md is not what was shown of {kind}: run with UPDATE_GOLDEN=1; {different:#?}");
}

fn table_of(text: &mut String, head: &[&str], rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n| {} |\n|{}", head.join(" | "), " --- |".repeat(head.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
}
