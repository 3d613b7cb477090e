//! Istio's kinds for security (`security.istio.io/v1`, and `v1beta1`, which is the same): PeerAuthentication and
//! AuthorizationPolicy.
//!
//! Their `spec` is kept as it was written and read by [`crate::frontend::security`], which gives a rule in any case: one that
//! can not be accepted is closed, never left out. So an object of these kinds is there as soon as its metadata can be read.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::path::FieldPath;

/// Group of the API.
pub const GROUP: &str = "security.istio.io";
/// The version that both versions are read as.
pub const API_VERSION: &str = "security.istio.io/v1";
/// The earlier version, with the same fields.
pub const EARLIER_API_VERSION: &str = "security.istio.io/v1beta1";

/// Declares the kinds, which differ in nothing but their name.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident;)*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $kind {
            /// `security.istio.io/v1` or `security.istio.io/v1beta1`
            pub api_version: String,
            /// The kind's name.
            pub kind: String,
            /// Name, namespace and the rest.
            #[serde(default)]
            pub metadata: ObjectMeta,
            /// What is wanted, as it was written; nothing is the same as no fields.
            #[serde(default)]
            pub spec: Json,
            /// Written by controllers; not read.
            #[serde(default, skip_serializing)]
            pub status: Option<Json>,
            /// What is wrong with the object besides its `spec`.
            #[serde(skip)]
            pub wrong: Vec<(FieldPath, String)>,
        })*
    };
}

kinds! {
    /// Which workloads accept plaintext.
    PeerAuthentication;
    /// Who may call which workloads.
    AuthorizationPolicy;
}
