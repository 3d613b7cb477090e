//! Stored objects of any source to access rules.

use serde_json::Value as Json;
use weir_config::{
    Problem,
    manifest::{Source, parse_value_stored, trim},
};

use crate::source::Item;

/// Reads a stored PeerAuthentication or AuthorizationPolicy, of which only name, namespace and time of making count besides its
/// `spec`. There is a rule in any case, closed where something is wrong with it; `None` only for what is no such object.
pub fn stored(mut raw: Json, place: &str) -> Option<(Item, Vec<Problem>)> {
    trim(&mut raw);
    let read = parse_value_stored(raw, Source::named(place));
    let item = read.manifests.first().and_then(|manifest| Item::of(&manifest.object));
    let item = item.filter(|item| matches!(item, Item::PeerAuthentication(_) | Item::AuthorizationPolicy(_)))?;
    Some((item, read.problems))
}
