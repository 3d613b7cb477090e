//! Who calls, as the API server says: a TokenReview for each token, kept for a few seconds.
//!
//! The identity comes from the review alone. What the token says of itself is read for two things only: to refuse at once what
//! could not be ours (so that noise does not become load of the API server), and for the time at which it ends, which a review
//! does not tell and which the review has proven by accepting the signature.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time::timeout};
use weir_config::model::Name;
use weir_mesh::{Identity, TrustDomain};

use crate::{
    auth::{Caller, Refused},
    metrics::Metrics,
};

/// An accepted token is not asked about again for this long. The API server itself keeps its answers for 10 s, so asking more
/// often would learn nothing; a pod that is deleted meanwhile is noticed by the watch of pods. It spares the second review of a
/// starting proxy (certificate, then stream) and most of those after a reconnect of all.
const KEEP_ACCEPTED: Duration = Duration::from_secs(10);
/// A refused one: long enough against a caller that tries in a loop, short enough for a pod that another API server has not
/// heard of yet.
const KEEP_REFUSED: Duration = Duration::from_secs(2);
/// Answers that are kept: a few MiB.
const MAX_KEPT: usize = 20_000;
/// Reviews at a time; a restart with thousands of proxies is not let loose on the API server.
const MAX_AT_ONCE: usize = 64;
/// Time for one review, with the wait for a turn: proxies give up later.
const PATIENCE: Duration = Duration::from_secs(8);
/// Clocks may differ by this much.
const LEEWAY: Duration = Duration::from_secs(10);
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server who callers are.
pub(crate) struct TokenReviews {
    client: Client,
    audience: String,
    trust_domain: TrustDomain,
    metrics: Arc<Metrics>,
    turns: Semaphore,
    /// By hash: the process' memory has no use for tokens.
    kept: Mutex<HashMap<[u8; 32], Kept>>,
}

struct Kept {
    until: Instant,
    answer: Result<Caller, Refused>,
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviews").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// What a token says of itself.
#[derive(Deserialize)]
struct Claims {
    exp: u64,
    aud: Audience,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl TokenReviews {
    pub(crate) fn new(client: Client, audience: String, trust_domain: TrustDomain, metrics: Arc<Metrics>) -> Self {
        let turns = Semaphore::new(MAX_AT_ONCE);
        Self { client, audience, trust_domain, metrics, turns, kept: Mutex::default() }
    }

    /// Says who has this token.
    ///
    /// # Errors
    /// [`Refused`] says why nobody does, or that the API server does not answer.
    pub(crate) async fn verify(&self, token: &str) -> Result<Caller, Refused> {
        let expires = plausible(token, &self.audience)?;
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(kept) = self.lock().get(&hash).filter(|kept| kept.until > Instant::now()) {
            return kept.answer.clone();
        }
        let asked = timeout(PATIENCE, async {
            let _turn = self.turns.acquire().await;
            self.ask(token).await
        });
        let user = match asked.await {
            Ok(Ok(user)) => user,
            Ok(Err(error)) => {
                self.metrics.token_reviews.add("none", 1);
                let reason = super::explain(&error);
                tracing::error!(reason, "tokens can not be reviewed by the API server");
                return Err(Refused::Unanswered("the API server can not review tokens now".into()));
            }
            Err(_) => {
                self.metrics.token_reviews.add("none", 1);
                return Err(Refused::Unanswered("the API server does not answer".into()));
            }
        };
        let answer = user.and_then(|user| caller(&user, &self.trust_domain, expires));
        self.metrics.token_reviews.add(if answer.is_ok() { "accepted" } else { "refused" }, 1);
        let keep = if answer.is_ok() { KEEP_ACCEPTED } else { KEEP_REFUSED };
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        self.keep(hash, Kept { until: Instant::now() + keep.min(left), answer: answer.clone() });
        answer
    }

    /// Asks the API server; an answer that does not name our audience is none for us.
    async fn ask(&self, token: &str) -> Result<Result<UserInfo, Refused>, kube::Error> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.into()), audiences: Some(vec![self.audience.clone()]) },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let reason = status.error.unwrap_or_else(|| "the API server does not accept it".into());
            // Nothing of a token is in it, but its length is the API server's choice.
            return Ok(Err(Refused::Invalid(reason.chars().take(512).collect())));
        }
        if !status.audiences.unwrap_or_default().contains(&self.audience) {
            return Ok(Err(Refused::Invalid(format!("it is not for the audience {}", self.audience))));
        }
        Ok(Ok(status.user.unwrap_or_default()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, hash: [u8; 32], answer: Kept) {
        let mut kept = self.lock();
        if kept.len() >= MAX_KEPT {
            let now = Instant::now();
            kept.retain(|_, kept| kept.until > now);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(hash, answer);
        }
    }
}

/// When a token ends that could be one for us.
fn plausible(token: &str, audience: &str) -> Result<SystemTime, Refused> {
    let invalid = |reason: &str| Refused::Invalid(reason.to_owned());
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(invalid("it is no token of a service account (a JWT)"));
    };
    let claims: Option<Claims> =
        URL_SAFE_NO_PAD.decode(payload).ok().and_then(|payload| serde_json::from_slice(&payload).ok());
    let Some(Claims { exp, aud }) = claims else {
        return Err(invalid("it is no token of a service account with exp and aud"));
    };
    let ours = match aud {
        Audience::One(one) => one == audience,
        Audience::Several(several) => several.iter().any(|one| one == audience),
    };
    if !ours {
        return Err(Refused::Invalid(format!("it is not for the audience {audience}")));
    }
    let expires = UNIX_EPOCH.checked_add(Duration::from_secs(exp)).unwrap_or(UNIX_EPOCH);
    if expires.checked_add(LEEWAY).is_none_or(|last| last <= SystemTime::now()) {
        return Err(invalid("it has expired"));
    }
    Ok(expires)
}

/// The pod that a reviewed user is.
fn caller(user: &UserInfo, trust_domain: &TrustDomain, expires: SystemTime) -> Result<Caller, Refused> {
    let username = user.username.as_deref().unwrap_or_default();
    let account = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(Refused::Invalid("it is not of a service account".into()));
    };
    let extra = |key: &str| match user.extra.as_ref().and_then(|extra| extra.get(key)).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    let (Some(pod), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err(Refused::Invalid("it is not bound to a pod".into()));
    };
    let identity =
        Identity::new(trust_domain, namespace, account).map_err(|error| Refused::Invalid(error.to_string()))?;
    Ok(Caller { pod: Name::new(namespace, pod), uid, identity, expires })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn what_could_not_be_ours_is_not_asked_about() {
        for claims in [r#"{"exp":99999999999,"aud":["weir-control"]}"#, r#"{"exp":99999999999,"aud":"weir-control"}"#] {
            assert!(plausible(&token(claims), "weir-control").is_ok());
        }
        for bad in [
            String::new(),
            "opaque".into(),
            "a.b.c.d".into(),
            token("no json"),
            token(r#"{"aud":["weir-control"]}"#),
            token(r#"{"exp":1,"aud":["weir-control"]}"#),
            token(r#"{"exp":99999999999,"aud":["https://kubernetes.default.svc"]}"#),
            token(r#"{"exp":18446744073709551615,"aud":"other"}"#),
        ] {
            assert!(matches!(plausible(&bad, "weir-control"), Err(Refused::Invalid(_))), "{bad}");
        }
        // A time beyond all clocks is no time.
        assert!(plausible(&token(r#"{"exp":18446744073709551615,"aud":"weir-control"}"#), "weir-control").is_err());
    }

    #[test]
    fn the_pod_is_what_the_review_says() {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let user = |username: &str, extra: &[(&str, &[&str])]| UserInfo {
            username: Some(username.into()),
            extra: Some(
                extra
                    .iter()
                    .map(|(key, values)| ((*key).to_owned(), values.iter().map(|value| (*value).to_owned()).collect()))
                    .collect::<BTreeMap<_, _>>(),
            ),
            ..UserInfo::default()
        };
        let bound: &[(&str, &[&str])] = &[(POD_NAME, &["p"]), (POD_UID, &["u"])];
        let known = caller(&user("system:serviceaccount:shop:catalog", bound), &domain, UNIX_EPOCH).unwrap();
        assert_eq!((known.pod, known.uid.as_str()), (Name::new("shop", "p"), "u"));
        assert_eq!(known.identity.uri(), "spiffe://cluster.local/ns/shop/sa/catalog");
        for (username, extra) in [
            ("system:serviceaccount:shop:catalog", &[][..]),
            ("system:serviceaccount:shop:catalog", &[(POD_NAME, &["p"][..])][..]),
            ("system:serviceaccount:shop:catalog", &[(POD_NAME, &["p"][..]), (POD_UID, &["u", "v"][..])][..]),
            ("system:serviceaccount:shop:a/b", bound),
            ("system:node:one", bound),
            ("admin", bound),
        ] {
            assert!(caller(&user(username, extra), &domain, UNIX_EPOCH).is_err(), "{username}");
        }
    }
}
