#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{cell::RefCell, pin::pin, rc::Rc};

use tokio::sync::Notify;

use super::*;
use crate::config::Inbound;

fn identity(text: &str) -> Identity {
    format!("spiffe://{text}").parse().unwrap()
}

fn facts<'a>(principal: Option<&'a Identity>, from: &str, to: &str) -> Facts<'a> {
    Facts { principal, from: from.parse().unwrap(), to: to.parse().unwrap() }
}

fn rule(index: &str, when: Condition) -> Rule {
    Rule { policy: "shop/p".into(), index: index.into(), when }
}

fn access(deny: Vec<Rule>, allow: Option<Vec<Rule>>) -> Access {
    Access { strict: None, rules: Arc::new(Rules { deny, allow }) }
}

#[test]
fn each_condition() {
    let cart = identity("cluster.local/ns/shop/sa/a.cart");
    // Namespaces and accounts with the names of the form's own parts must not be taken for one another.
    let odd = identity("ns/ns/sa/sa/ns");
    let known = facts(Some(&cart), "10.1.2.3", "10.9.9.9:80");
    let plain = facts(None, "fd00::5", "[fd00::9]:81");
    let odd = facts(Some(&odd), "10.1.2.3", "10.9.9.9:80");
    let text = |text: &str| text.to_owned().into_boxed_str();
    let table = [
        (Condition::Always, [true, true, true]),
        (Condition::Principal(Text::Any), [true, false, true]),
        (Condition::Principal(Text::Exact(text("spiffe://cluster.local/ns/shop/sa/a.cart"))), [true, false, false]),
        (Condition::Principal(Text::Exact(text("spiffe://cluster.local/ns/shop/sa/aXcart"))), [false, false, false]),
        (Condition::Principal(Text::Prefix(text("spiffe://cluster.local/ns/shop"))), [true, false, false]),
        (Condition::Principal(Text::Suffix(text("/ns/shop/sa/a.cart"))), [true, false, false]),
        (Condition::Principal(Text::Suffix(text("/sa/ns"))), [false, false, true]),
        (Condition::Namespace(Text::Any), [true, false, true]),
        (Condition::Namespace(Text::Exact(text("shop"))), [true, false, false]),
        (Condition::Namespace(Text::Exact(text("ns"))), [false, false, false]),
        (Condition::Namespace(Text::Exact(text("sa"))), [false, false, true]),
        (Condition::Namespace(Text::Prefix(text("sh"))), [true, false, false]),
        (Condition::Namespace(Text::Suffix(text("op"))), [true, false, false]),
        (Condition::From("10.1.0.0/16".parse().unwrap()), [true, false, true]),
        (Condition::From("fd00::/8".parse().unwrap()), [false, true, false]),
        (Condition::From("0.0.0.0/0".parse().unwrap()), [true, false, true]),
        (Condition::To("10.9.9.9/32".parse().unwrap()), [true, false, true]),
        (Condition::Port(80), [true, false, true]),
        (Condition::Port(8080), [false, false, false]),
    ];
    for (condition, expected) in table {
        assert_eq!(
            [known, plain, odd].map(|facts| rule("0", clone(&condition)).matches(&facts)),
            expected,
            "{condition:?}"
        );
        let not = Condition::Not(Box::new(condition));
        assert_eq!([known, plain, odd].map(|facts| !rule("0", clone(&not)).matches(&facts)), expected, "{not:?}");
    }
    assert!(!rule("0", Condition::One([].into())).matches(&known));
    assert!(rule("0", Condition::All([].into())).matches(&known));
}

fn clone(condition: &Condition) -> Condition {
    let text = |text: &Text| match text {
        Text::Any => Text::Any,
        Text::Exact(text) => Text::Exact(text.clone()),
        Text::Prefix(text) => Text::Prefix(text.clone()),
        Text::Suffix(text) => Text::Suffix(text.clone()),
    };
    match condition {
        Condition::Always => Condition::Always,
        Condition::All(list) => Condition::All(list.iter().map(clone).collect()),
        Condition::One(list) => Condition::One(list.iter().map(clone).collect()),
        Condition::Not(one) => Condition::Not(Box::new(clone(one))),
        Condition::Principal(one) => Condition::Principal(text(one)),
        Condition::Namespace(one) => Condition::Namespace(text(one)),
        Condition::From(net) => Condition::From(*net),
        Condition::To(net) => Condition::To(*net),
        Condition::Port(port) => Condition::Port(*port),
    }
}

/// Every caller of the matrix against every order of rules.
#[test]
fn denials_come_first_and_then_somebody_must_allow() {
    let cart = identity("cluster.local/ns/shop/sa/cart");
    let known = facts(Some(&cart), "10.1.2.3", "10.9.9.9:80");
    let plain = facts(None, "10.1.2.4", "10.9.9.9:80");
    let anybody = || rule("0", Condition::Always);
    let nobody = || rule("1", Condition::Not(Box::new(Condition::Always)));
    let meshed = || rule("2", Condition::Principal(Text::Any));
    let word = |access: &Access, facts| access.judge(facts).map_or_else(|denied| denied.reason(), |()| "ok");
    for (deny, allow, expected) in [
        (vec![], None, ["ok", "ok"]),
        (vec![nobody()], None, ["ok", "ok"]),
        (vec![anybody()], None, ["denied_by_rule", "denied_by_rule"]),
        (vec![nobody(), meshed()], None, ["denied_by_rule", "ok"]),
        (vec![], Some(vec![]), ["allowed_by_no_rule", "allowed_by_no_rule"]),
        (vec![], Some(vec![nobody()]), ["allowed_by_no_rule", "allowed_by_no_rule"]),
        (vec![], Some(vec![nobody(), meshed()]), ["ok", "allowed_by_no_rule"]),
        (vec![], Some(vec![anybody()]), ["ok", "ok"]),
        (vec![meshed()], Some(vec![anybody()]), ["denied_by_rule", "ok"]),
        (vec![anybody()], Some(vec![anybody()]), ["denied_by_rule", "denied_by_rule"]),
    ] {
        let open = access(deny, allow);
        assert_eq!([word(&open, &known), word(&open, &plain)], expected, "{open:?}");
        let strict = Access { strict: Some("PeerAuthentication shop/default".into()), ..open };
        assert_eq!([word(&strict, &known), word(&strict, &plain)], [expected[0], "plaintext_refused"], "{strict:?}");
    }
}

#[test]
fn a_refusal_names_object_and_rule() {
    let plain = facts(None, "10.1.2.4", "10.9.9.9:80");
    let denied = access(vec![rule("3", Condition::Always)], None).judge(&plain).unwrap_err();
    assert_eq!((denied.object().as_str(), denied.rule()), ("AuthorizationPolicy shop/p", "3"));
    assert_eq!(denied.to_string(), "AuthorizationPolicy shop/p denies it by rule 3");
    let denied = access(vec![rule("refused", Condition::Always)], None).judge(&plain).unwrap_err();
    assert!(denied.to_string().contains("not accepted by the control plane"), "{denied}");
    let never = |policy: &str| Rule { policy: policy.into(), ..rule("0", Condition::One([].into())) };
    let many: Vec<Rule> = (0..12).map(|n| never(&format!("shop/{n:02}"))).chain([never("shop/00")]).collect();
    let denied = access(vec![], Some(many)).judge(&plain).unwrap_err();
    assert_eq!(
        denied.object(),
        "AuthorizationPolicy shop/00,shop/01,shop/02,shop/03,shop/04,shop/05,shop/06,shop/07 and 4 more"
    );
}

#[tokio::test]
async fn work_ends_when_its_connection_is_refused() {
    let admissions = Rc::new(Admissions::default());
    let open = Inbound::default();
    let closed =
        Inbound { others: access(vec![rule("0", Condition::Principal(Text::Any))], None), ..Inbound::default() };
    let (peer, app) = ("10.0.0.1:999".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let cart = admissions.judge(Some(&open), Some(identity("cluster.local/ns/shop/sa/cart")), peer, app);
    let plain = admissions.judge(Some(&open), None, peer, app);
    assert_eq!((admissions.len(), cart.is_refused(), plain.is_refused()), (2, false, false));
    let ended = RefCell::new(Vec::new());
    let over = Notify::new();
    let work = async |name: &'static str, admission: &Admission| {
        let result = until_refused(Some(admission), pin!(over.notified())).await;
        ended.borrow_mut().push((name, result.is_none()));
    };
    let change = async {
        tokio::task::yield_now().await;
        admissions.judge_again(Some(&closed));
        assert!(cart.is_refused() && cart.is_news() && !cart.is_news());
        admissions.judge_again(Some(&closed));
        assert!(!cart.is_news(), "told once");
        tokio::task::yield_now().await;
        over.notify_waiters();
    };
    tokio::join!(work("cart", &cart), work("plain", &plain), change);
    assert_eq!(*ended.borrow(), [("cart", true), ("plain", false)]);
    admissions.judge_again(Some(&open));
    assert!(!cart.is_refused() && cart.denied().is_none());
    admissions.judge_again(Some(&closed));
    assert!(cart.is_news(), "a new refusal is news");
    drop(cart);
    assert_eq!(admissions.len(), 1);
    drop(plain);
    assert!(admissions.is_empty());
}
