//! Precedence, matching, and the evenness of splits.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::http::{Edits, Limits, RequestHead, h1::RequestDecoder};

fn head(line: &str, headers: &str) -> RequestHead {
    let bytes = format!("{line} HTTP/1.1\r\nHost: catalog\r\n{headers}\r\n");
    RequestDecoder::new()
        .decode(&mut BytesMut::from(bytes.as_bytes()), &Limits::default())
        .expect("a valid request")
        .expect("a whole head")
}

fn get(path: &str) -> RequestHead {
    head(&format!("GET {path}"), "")
}

fn route(name: &str, matches: MatchSpec) -> RouteSpec<()> {
    RouteSpec {
        name: name.to_owned(),
        object: Some("HTTPRoute/shop/catalog".to_owned()),
        matches,
        action: ActionSpec::Respond(204),
        request_edits: Edits::new(),
        response_edits: Edits::new(),
        policy: None,
    }
}

fn path(path: PathSpec) -> MatchSpec {
    MatchSpec { path, ..MatchSpec::default() }
}

fn exact(text: &str) -> PathSpec {
    PathSpec::Exact(text.to_owned())
}

fn prefix(text: &str) -> PathSpec {
    PathSpec::Prefix(text.to_owned())
}

fn regex(text: &str) -> PathSpec {
    PathSpec::Regex(text.to_owned())
}

fn takes(matches: MatchSpec, head: &RequestHead) -> bool {
    RouteTable::new(vec![route("r", matches)], None).expect("it compiles").find(head).is_some()
}

#[test]
fn paths() {
    for (spec, hits, misses) in [
        (PathSpec::Any, &["/", "/a", "*"][..], &[][..]),
        (
            exact("/v1"),
            &["/v1", "/v1?x=y", "//v1", "/a/../v1", "/%76%31"],
            &["/v1/", "/v1/a", "/V1", "/v", "/", "/v1%2F"],
        ),
        (exact("/a/../b"), &["/b"], &["/a"]),
        (prefix("/v2"), &["/v2", "/v2/", "/v2/a", "/v2?q"], &["/v2example", "/v", "/v1/v2", "/", "*", "/v2%2Fa"]),
        (prefix("/v2/"), &["/v2", "/v2/", "/v2/a"], &["/v2example"]),
        (prefix("/"), &["/", "/a", "*"], &[]),
        (regex("/v[12](/.*)?"), &["/v1", "/v2/x"], &["/v3", "/v1x", "/a/v1"]),
        (regex("/a|/b"), &["/a", "/b"], &["/ax", "/xb"]),
        (regex(""), &[], &["/"]),
    ] {
        for hit in hits {
            let method = if *hit == "*" { "OPTIONS" } else { "GET" };
            assert!(takes(path(spec.clone()), &head(&format!("{method} {hit}"), "")), "{spec:?} takes {hit}");
        }
        for miss in misses {
            let method = if *miss == "*" { "OPTIONS" } else { "GET" };
            assert!(!takes(path(spec.clone()), &head(&format!("{method} {miss}"), "")), "{spec:?} leaves {miss}");
        }
    }
    let connect = head("CONNECT other:443", "");
    assert!(takes(MatchSpec::default(), &connect) && !takes(path(exact("/")), &connect));
}

#[test]
fn headers() {
    let spec = |name: &str, value: TextSpec| MatchSpec {
        headers: vec![HeaderSpec { name: name.to_owned(), value }],
        ..MatchSpec::default()
    };
    let is = |text: &str| TextSpec::Exact(text.to_owned());
    let like = |text: &str| TextSpec::Regex(text.to_owned());
    let head = head("GET /", "X-Canary: yes\r\nver: one\r\nVER: two\r\nempty:\r\nbytes: \u{e4}\r\n");
    for (name, value, expected) in [
        ("x-canary", is("yes"), true),
        ("X-CANARY", is("yes"), true),
        ("x-canary", is("Yes"), false),
        ("x-canary", is("ye"), false),
        // any value of a repeated header, never the joined text
        ("ver", is("one"), true),
        ("ver", is("two"), true),
        ("ver", is("one,two"), false),
        ("ver", is("one, two"), false),
        ("ver", like("tw."), true),
        ("ver", like("w"), false),
        ("ver", like("o.*o"), false),
        ("empty", TextSpec::Present, true),
        ("empty", is(""), true),
        ("none", TextSpec::Present, false),
        ("none", is(""), false),
        ("bytes", like(".+"), true),
        ("host", is("catalog"), true),
        (":authority", is("catalog"), true),
    ] {
        assert_eq!(takes(spec(name, value.clone()), &head), expected, "{name} {value:?}");
    }
    let both = MatchSpec {
        headers: vec![
            HeaderSpec { name: "x-canary".into(), value: is("yes") },
            HeaderSpec { name: "ver".into(), value: is("three") },
        ],
        ..MatchSpec::default()
    };
    assert!(!takes(both, &head), "each must hold");
}

#[test]
fn the_absolute_targets_authority_counts_as_host() {
    let spec = MatchSpec {
        headers: vec![HeaderSpec { name: "Host".into(), value: TextSpec::Exact("other".into()) }],
        ..MatchSpec::default()
    };
    assert!(takes(spec, &get("http://other/")));
}

#[test]
fn methods_and_parameters() {
    let method = MatchSpec { method: Some("POST".into()), ..MatchSpec::default() };
    assert!(
        takes(method.clone(), &head("POST /", ""))
            && !takes(method.clone(), &get("/"))
            && !takes(method, &head("post /", ""))
    );
    let spec = |name: &str, value: TextSpec| MatchSpec {
        query: vec![QuerySpec { name: name.to_owned(), value }],
        ..MatchSpec::default()
    };
    let is = |text: &str| TextSpec::Exact(text.to_owned());
    for (target, name, value, expected) in [
        ("/?animal=whale", "animal", is("whale"), true),
        ("/?a=b&animal=whale", "animal", is("whale"), true),
        ("/?animal=whale&animal=dolphin", "animal", is("dolphin"), false),
        ("/?Animal=whale", "animal", is("whale"), false),
        ("/?animal=whales", "animal", is("whale"), false),
        ("/?animals=whale", "animal", is("whale"), false),
        ("/?animal", "animal", is(""), true),
        ("/?animal=", "animal", TextSpec::Present, true),
        ("/", "animal", TextSpec::Present, false),
        ("/?", "animal", TextSpec::Present, false),
        ("/?&&", "", TextSpec::Present, false),
        ("/?=x", "", is("x"), true),
        ("/?animal=a=b", "animal", is("a=b"), true),
        ("/?animal=%77hale", "animal", is("whale"), false),
        ("/?animal=dolphin", "animal", TextSpec::Regex("d.*|whale".into()), true),
    ] {
        assert_eq!(takes(spec(name, value.clone()), &get(target)), expected, "{target} {name} {value:?}");
    }
}

#[test]
fn the_first_match_wins() {
    let canary = MatchSpec {
        headers: vec![HeaderSpec { name: "x-canary".into(), value: TextSpec::Exact("yes".into()) }],
        ..MatchSpec::default()
    };
    let table = RouteTable::new(
        vec![route("canary", canary), route("first", path(prefix("/"))), route("second", path(exact("/a")))],
        None,
    )
    .expect("it compiles");
    let name = |head| table.find(&head).map(Route::name);
    assert_eq!(name(get("/a")), Some("first"));
    assert_eq!(name(head("GET /a", "X-Canary: yes\r\n")), Some("canary"));
    assert_eq!(table.find(&get("/")).and_then(Route::object), Some("HTTPRoute/shop/catalog"));
    assert!(RouteTable::<()>::new(vec![], None).expect("it compiles").find(&get("/")).is_none());
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let header = |pattern: &str| MatchSpec {
        headers: vec![HeaderSpec { name: "a".into(), value: TextSpec::Regex(pattern.to_owned()) }],
        ..MatchSpec::default()
    };
    let deep = "(".repeat(100) + &")".repeat(100);
    for (spec, reason) in [
        (path(regex("/a(")), "path: the regular expression is malformed: unclosed group"),
        (path(regex("a)(?:b")), "path: the regular expression is malformed: unopened group"),
        (
            path(regex("(?=a)")),
            "path: the regular expression is malformed: look-around, including look-ahead and look-behind, is not supported",
        ),
        (header(r"(a)\1"), "header a: the regular expression is malformed: backreferences are not supported"),
        (header("((a{99}){99}){99}"), "header a: the regular expression is too large when compiled"),
        (header(&"a".repeat(4097)), "header a: the regular expression is longer than 4096 bytes"),
        (path(exact("a")), "path: the path does not begin with a slash"),
        (path(prefix("/a%00")), "path: the path has an encoded NUL"),
    ] {
        let error = RouteTable::new(vec![route("r", spec)], None).expect_err(reason);
        assert_eq!(error.to_string(), format!("route r: {reason}"));
    }
    assert!(RouteTable::new(vec![route("r", header(&deep))], None).is_err(), "nested too deep");
}

fn rewritten(spec: PathSpec, rewrite: PathRewrite, target: &str) -> String {
    let spec =
        RouteSpec { policy: Some(Policy { path: Some(rewrite), ..Policy::default() }), ..route("r", path(spec)) };
    let table = RouteTable::new(vec![spec], None).expect("it compiles");
    let head = get(target);
    let new = table.find(&head).expect("it matches").path_and_query(&head);
    new.map_or_else(|bad| bad.to_string(), |new| String::from_utf8(new.expect("another path")).unwrap())
}

#[test]
fn paths_are_rewritten() {
    let with = |text: &str| PathRewrite::Matched(text.as_bytes().into());
    let pattern = |regex: &str, with: &str| PathRewrite::Pattern(Substitution::new(regex, with).unwrap());
    for (spec, rewrite, target, wanted) in [
        (prefix("/a"), with("/b"), "/a/c?x=1", "/b/c?x=1"),
        (prefix("/a"), with("/b"), "/a", "/b"),
        (prefix("/a"), with("/"), "/a/c", "/c"),
        (prefix("/a"), with("/"), "/a", "/"),
        (prefix("/a"), with(""), "/a", "/"),
        (prefix("/a"), with(""), "/a/c", "/c"),
        (PathSpec::Any, with("/b/"), "/c", "/b/c"),
        (exact("/a/c"), with("/b"), "/a/c?x", "/b?x"),
        (regex("/a.*"), with("/b"), "/abc", "/b"),
        (PathSpec::Any, pattern("^/.*$", "/whole"), "/a/b?c=/d", "/whole?c=/d"),
        (PathSpec::Any, pattern("^/([^/]+)/([^/]+)", "/\\2/\\1"), "/a/b/c", "/b/a/c"),
        (PathSpec::Any, pattern("o", "0"), "/foo/o", "/f00/0"),
        (PathSpec::Any, pattern("/(x)?", "/\\1\\\\"), "/a", "/a"),
        (PathSpec::Any, pattern("^/ab", "/../"), "/abc", "/c"),
        (
            PathSpec::Any,
            pattern("b", "%00"),
            "/b",
            "the path that it becomes is not valid: the path has an encoded NUL",
        ),
        (
            PathSpec::Any,
            pattern("^/", ""),
            "/b",
            "the path that it becomes is not valid: the path does not begin with a slash",
        ),
    ] {
        assert_eq!(rewritten(spec.clone(), rewrite.clone(), target), wanted, "{spec:?} {rewrite:?} {target}");
    }
    let growing = PathRewrite::Pattern(Substitution::new(".", &"x".repeat(4000)).unwrap());
    assert!(rewritten(PathSpec::Any, growing, &format!("/{}", "a".repeat(8000))).contains("too long"));
    for (regex, with) in [("(a", ""), ("a", "\\1"), ("(a)", "\\2"), ("a", "\\x"), ("a", "\\")] {
        assert!(Substitution::new(regex, with).is_err(), "{regex} {with}");
    }
}

#[test]
fn redirects_name_another_place() {
    let base =
        || Redirect { status: 302, scheme: None, host: None, port: None, path: RedirectPath::Same, strip_query: false };
    let location = |redirect: Redirect, spec: PathSpec, target: &str, host: &str| {
        let spec = RouteSpec { action: ActionSpec::Redirect(redirect), ..route("r", path(spec)) };
        let table = RouteTable::new(vec![spec], None).expect("it compiles");
        let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let head = RequestDecoder::new().decode(&mut BytesMut::from(text.as_bytes()), &Limits::default());
        let head = head.unwrap().unwrap();
        let route = table.find(&head).expect("it matches");
        let Action::Redirect(redirect) = route.action() else { panic!("a redirect") };
        String::from_utf8(redirect.location(route, &head).unwrap()).unwrap()
    };
    let any = || PathSpec::Any;
    assert_eq!(location(base(), any(), "/a?b", "h:8080"), "http://h:8080/a?b");
    let https = || Redirect { scheme: Some("https".into()), ..base() };
    assert_eq!(location(https(), any(), "/a", "h:80"), "https://h/a");
    assert_eq!(location(https(), any(), "/a", "h:8080"), "https://h:8080/a");
    assert_eq!(location(Redirect { port: Some(443), ..https() }, any(), "/", "[fd00::1]:80"), "https://[fd00::1]/");
    assert_eq!(location(Redirect { port: Some(80), ..https() }, any(), "/", "h"), "https://h:80/");
    assert_eq!(location(Redirect { port: Some(80), ..base() }, any(), "/", "h:8080"), "http://h/");
    assert_eq!(location(Redirect { host: Some("other".into()), ..base() }, any(), "/a", "h:80"), "http://other/a");
    let whole = |path: &str| Redirect { path: RedirectPath::Whole(path.into()), ..base() };
    assert_eq!(location(whole("/x"), any(), "/a?b", "h"), "http://h/x?b");
    assert_eq!(location(whole("/x?y"), any(), "/a?b", "h"), "http://h/x?y");
    assert_eq!(location(Redirect { strip_query: true, ..whole("/x") }, any(), "/a?b", "h"), "http://h/x");
    let changed = Redirect { path: RedirectPath::Changed(PathRewrite::Matched(b"/new"[..].into())), ..base() };
    assert_eq!(location(changed, prefix("/old"), "/old/a?b", "h"), "http://h/new/a?b");
}

/// Patterns that take exponential time where an engine goes back.
#[test]
fn regular_expressions_take_linear_time() {
    let table = RouteTable::new(vec![route("r", path(regex("/(a+)+b|/(a|aa)+c|/(.*)*d")))], None).expect("it compiles");
    let long = get(&format!("/{}", "a".repeat(16_000)));
    let start = Instant::now();
    assert!(table.find(&long).is_none());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

proptest! {
    /// With the index the same route is found as by trying all in order.
    #[test]
    fn the_index_keeps_the_order(
        specs in proptest::collection::vec((0_usize..5, proptest::sample::select(vec!["/", "/a", "/a/b", "/a/b/c", "/b", "/ab", "/a/"]), any::<bool>()), 8..40),
        wanted in proptest::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c/d", "/b/a", "/ab", "/abc", "/c", "/a/bc"]),
        canary in any::<bool>(),
    ) {
        let spec = |(kind, text, canary): &(usize, &str, bool)| MatchSpec {
            path: match kind {
                0 => exact(text),
                1 | 2 => prefix(text),
                3 => regex(&format!("{text}.")),
                _ => PathSpec::Any,
            },
            headers: canary.then(|| HeaderSpec { name: "c".into(), value: TextSpec::Present }).into_iter().collect(),
            ..MatchSpec::default()
        };
        let head = head(&format!("GET {wanted}"), if canary { "c: 1\r\n" } else { "" });
        let all = specs.iter().enumerate().map(|(at, one)| route(&at.to_string(), spec(one))).collect();
        let table = RouteTable::new(all, None).expect("it compiles");
        let expected = specs.iter().position(|one| takes(spec(one), &head)).map(|at| at.to_string());
        prop_assert_eq!(table.find(&head).map(Route::name), expected.as_deref());
    }
}

/// 1,000 routes on one host, the wanted one last, cost about what one route costs.
#[test]
fn a_thousand_routes_cost_little_more_than_one() {
    let per_find = |table: &RouteTable<()>, head: &RequestHead| {
        let best = (0..20).map(|_| {
            let start = Instant::now();
            for _ in 0..500 {
                assert!(std::hint::black_box(table).find(std::hint::black_box(head)).is_some());
            }
            start.elapsed() / 500
        });
        best.min().expect("twenty rounds")
    };
    let one = RouteTable::new(vec![route("r", path(exact("/service-0999/items")))], None).expect("it compiles");
    let head = get("/service-0999/items");
    let single = per_find(&one, &head);
    for spec in [|text: String| exact(&format!("{text}/items")), |text: String| prefix(&text)] {
        let routes = (0..1000).map(|at| route(&at.to_string(), path(spec(format!("/service-{at:04}"))))).collect();
        let table = RouteTable::new(routes, None).expect("it compiles");
        assert_eq!(table.find(&head).map(Route::name), Some("999"));
        let indexed = per_find(&table, &head);
        println!("1 route: {single:?}, 1,000 routes: {indexed:?}");
        assert!(indexed < single * 10 + Duration::from_micros(1), "1 route: {single:?}, 1,000 routes: {indexed:?}");
    }
}

fn splitting(weights: &[u32], previous: Option<&RouteTable<usize>>) -> RouteTable<usize> {
    let targets = weights.iter().enumerate().map(|(at, weight)| TargetSpec {
        name: format!("v{at}"),
        weight: *weight,
        cluster: at,
        request_edits: Edits::new(),
        response_edits: Edits::new(),
    });
    let spec = RouteSpec {
        name: "r".into(),
        object: None,
        matches: MatchSpec::default(),
        action: ActionSpec::Forward(targets.collect()),
        request_edits: Edits::new(),
        response_edits: Edits::new(),
        policy: None,
    };
    RouteTable::new(vec![spec], previous).expect("it compiles")
}

fn split(table: &RouteTable<usize>) -> &Split<usize> {
    match table.routes().first().map(Route::action) {
        Some(Action::Forward(split)) => split,
        other => panic!("{other:?}"),
    }
}

fn counts(split: &Split<usize>, requests: usize) -> HashMap<usize, usize> {
    let mut counts = HashMap::new();
    for _ in 0..requests {
        *counts.entry(*split.pick().cluster()).or_default() += 1;
    }
    counts
}

#[test]
fn ninety_to_ten_over_any_run() {
    for (requests, small) in [(10, 1), (100, 10), (1000, 100)] {
        for start in 0..100 {
            let table = splitting(&[90, 10], None);
            split(&table).set_next(start);
            assert_eq!(counts(split(&table), requests).get(&1), Some(&small), "{requests} from {start}");
        }
    }
    let table = splitting(&[90, 10], None);
    let picks: Vec<usize> = (0..400).map(|_| *split(&table).pick().cluster()).collect();
    let gaps: Vec<usize> = picks
        .iter()
        .enumerate()
        .filter(|(_, pick)| **pick == 1)
        .map(|(at, _)| at)
        .collect::<Vec<_>>()
        .windows(2)
        .map(|w| w[1] - w[0])
        .collect();
    assert!(gaps.iter().all(|gap| *gap == 10), "every tenth: {gaps:?}");
}

/// The furthest that any target is from its share, over all runs of up to `longest` requests.
fn worst(weights: &[u32], longest: usize) -> f64 {
    let table = splitting(weights, None);
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let picks: Vec<usize> = (0..longest * 3).map(|_| *split(&table).pick().cluster()).collect();
    let mut worst = 0_f64;
    for (target, weight) in weights.iter().enumerate() {
        for start in 0..longest * 2 {
            let mut count = 0_f64;
            for (length, pick) in picks[start..start + longest].iter().enumerate() {
                count += f64::from(u8::from(*pick == target));
                worst = worst.max((count - (length as f64 + 1.0) * f64::from(*weight) / total).abs());
            }
        }
    }
    worst
}

#[test]
fn runs_are_as_even_as_they_can_be() {
    for weights in [&[1, 1][..], &[90, 10], &[99, 1], &[70, 30], &[1, 2], &[999_999, 7], &[123, 457]] {
        assert!(worst(weights, 300) < 1.0, "{weights:?}: {}", worst(weights, 300));
    }
    for weights in [&[1, 1, 1][..], &[50, 30, 20], &[80, 10, 10], &[1, 1, 1, 1, 1, 1, 1, 1], &[60, 25, 10, 5]] {
        assert!(worst(weights, 200) < 2.0, "{weights:?}: {}", worst(weights, 200));
    }
    let table = splitting(&[50, 50], None);
    let picks: Vec<usize> = (0..100).map(|_| *split(&table).pick().cluster()).collect();
    assert!(picks.windows(2).all(|pair| pair[0] != pair[1]), "no run of the same pick");
}

#[test]
fn odd_weights() {
    let table = splitting(&[0, 0], None);
    assert!(matches!(table.routes()[0].action(), Action::Respond(500)));
    assert!(matches!(splitting(&[], None).routes()[0].action(), Action::Respond(500)));
    assert_eq!(counts(split(&splitting(&[0, 5], None)), 50), HashMap::from([(1, 50)]));
    assert_eq!(counts(split(&splitting(&[0, 5, 0, 5], None)), 50), HashMap::from([(1, 25), (3, 25)]));
    assert_eq!(counts(split(&splitting(&[7], None)), 50), HashMap::from([(0, 50)]));
    let table = splitting(&[u32::MAX, u32::MAX, u32::MAX, 1], None);
    split(&table).set_next(u64::MAX - 100);
    let counts = counts(split(&table), 3000);
    assert!((0..3).all(|target| (990..=1010).contains(&counts[&target])), "{counts:?}");
    assert_eq!(
        split(&table).targets().iter().map(Target::weight).collect::<Vec<_>>(),
        [u32::MAX, u32::MAX, u32::MAX, 1]
    );
}

/// What has no weight any more is still known, for the sessions that began there.
#[test]
fn a_target_without_a_weight_gets_nothing_new_and_is_not_forgotten() {
    let table = splitting(&[0, 100, 0], None);
    let split = split(&table);
    let names = |targets: &[Target<usize>]| targets.iter().map(|target| target.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        (names(split.shares()), names(split.targets())),
        (vec!["v1".into()], ["v1", "v0", "v2"].map(String::from).to_vec())
    );
    assert_eq!(counts(split, 1000), HashMap::from([(1, 1000)]));
}

/// A table is swapped after every request: with unchanged weights the sequence goes on.
#[test]
fn a_swap_does_not_disturb_the_proportion() {
    let mut table = splitting(&[90, 10], None);
    let mut small = 0;
    for _ in 0..100 {
        small += *split(&table).pick().cluster();
        table = splitting(&[90, 10], Some(&table));
    }
    assert_eq!(small, 10);
    let changed = splitting(&[50, 50], Some(&table));
    assert_eq!(counts(split(&changed), 100), HashMap::from([(0, 50), (1, 50)]));
}

#[test]
fn proxies_do_not_march_in_step() {
    let first: Vec<usize> = (0..400).map(|_| *split(&splitting(&[50, 50], None)).pick().cluster()).collect();
    let ones = first.iter().sum::<usize>();
    assert!((100..=300).contains(&ones), "{ones} of 400 proxies begin with the second");
}

#[test]
fn four_threads_share_one_sequence() {
    let table = Arc::new(splitting(&[90, 10], None));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let table = Arc::clone(&table);
            std::thread::spawn(move || counts(split(&table), 25_000))
        })
        .collect();
    let small: usize =
        threads.into_iter().map(|thread| thread.join().expect("it ends").get(&1).copied().unwrap_or(0)).sum();
    assert_eq!(small, 10_000);
}
