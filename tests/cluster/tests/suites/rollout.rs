//! `examples/rollout` as it is: the scripts that step weights, switch, and turn back, and the same edits as Argo Rollouts and Flagger make them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use weir_cluster::{Case, Suite, cases, mesh, suite::LIMIT};

use crate::callers::{self, RATE, answers, asked, requests, share};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/rollout");
/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bakes long enough for a step of 5 % to be judged.
const BRIEF: [(&str, &str); 3] = [("BAKE", "12"), ("CHECK", "2"), ("MIN_REQUESTS", "30")];

/// The example's objects, with programs of ours in the place of nginx, of which the canary answers so many percent with 500; and callers.
async fn shop(case: &Case<'_>, fail: u32) {
    mesh::experimental_gateway_api(case.cluster).unwrap();
    mesh::joined(case).await;
    let file = |name: &str| std::fs::read_to_string(format!("{EXAMPLE}/{name}")).unwrap();
    let serve = |version: &str, fail: u32| {
        let arguments = format!("[serve, '--listen=[::]:80', --version={version}, --fail={fail}]");
        format!("image: weir.test/app:1\n          args: {arguments}")
    };
    let app = file("app.yaml")
        .replace("image: nginx:1.28", &serve("stable", 0))
        .replace("image: nginx:1.29", &serve("canary", fail))
        .replace("image: busybox:1.37", "image: weir.test/app:1");
    case.apply(&app);
    case.apply(&file("route.yaml"));
    case.ready_with("app=catalog", 4).await;
    case.ready_with("app=caller", 1).await;
    callers::start(case).await;
    in_force(case).await;
    asked(case, "/reset");
}

/// One of the example's scripts while it runs. It is killed with the test.
struct Script {
    child: Child,
    output: BufReader<ChildStdout>,
    said: String,
}

impl Script {
    fn start(case: &Case<'_>, name: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(format!("{EXAMPLE}/{name}"));
        let path = format!("{}:{}", case.cluster.facts().tools.display(), std::env::var("PATH").unwrap());
        command.args(arguments).env("PATH", path).env("KUBECONFIG", case.cluster.kubeconfig());
        command.env("NAMESPACE", case.namespace).envs(settings.iter().copied()).stdin(Stdio::null());
        // One stream of both, in their order. A shell can not trap what was ignored when it began, as SIGINT is where tests run in the background.
        let mut shell = Command::new("env");
        shell
            .args(["--default-signal=INT", "sh", "-c", r#"exec "$@" 2>&1"#, "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
        let mut child = shell.stdout(Stdio::piped()).spawn().unwrap();
        Self { output: BufReader::new(child.stdout.take().unwrap()), child, said: String::new() }
    }

    /// Reads on until it has said this.
    fn until(&mut self, text: &str) {
        while !self.said.contains(text) {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended, and never said {text:?}:\n{}", self.said);
            self.said += &line;
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its exit code, and all that it said.
    fn end(mut self) -> (i32, String) {
        let mut said = std::mem::take(&mut self.said);
        self.output.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), None, "it is not to die of a signal: {said}");
        for line in said.lines() {
            println!("    {line}");
        }
        (status.code().unwrap(), said)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rollout(case: &Case<'_>, settings: &[(&str, &str)]) -> Script {
    Script::start(case, "rollout.sh", &["catalog", "catalog-stable", "catalog-canary"], settings)
}

fn route(case: &Case<'_>) -> Value {
    serde_json::from_str(&case.kubectl(&["get", "httproute", "catalog", "--output=json"])).unwrap()
}

/// Weights of the stable and the new version.
fn weights(case: &Case<'_>) -> (u64, u64) {
    let route = route(case);
    let of = |at: usize| route["spec"]["rules"][0]["backendRefs"][at]["weight"].as_u64().unwrap();
    (of(0), of(1))
}

/// Waits until the route as it is now is in force.
async fn in_force(case: &Case<'_>) {
    let end = Instant::now() + PATIENCE;
    loop {
        let route = route(case);
        let conditions = route["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let holds = |kind: &str| {
            conditions.iter().any(|condition| {
                condition["type"] == kind
                    && condition["status"] == "True"
                    && condition["observedGeneration"] == route["metadata"]["generation"]
            })
        };
        if holds("Accepted") && holds("ResolvedRefs") {
            return;
        }
        assert!(Instant::now() < end, "{route:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until the client's proxy gives the new version this share of 100 requests, which are all answered.
async fn until_share(case: &Case<'_>, percent: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let share = share(case, 100, "canary");
        if share == percent {
            return;
        }
        assert!(Instant::now() < end, "{share} and not {percent} %");
    }
}

async fn a_good_version_goes_all_the_way_and_nothing_is_lost(case: &Case<'_>) {
    shop(case, 0).await;
    let (code, said) = rollout(case, &BRIEF).end();
    assert_eq!(code, 0, "{said}");
    let mut rest = said.as_str();
    for text in ["5 % to", "0 of", "25 % to", "0 of", "50 % to", "0 of", "100 % to", "0 of", "done"] {
        let at = rest.find(text).unwrap_or_else(|| panic!("no {text:?} at its place: {said}"));
        rest = &rest[at + text.len()..];
    }
    assert_eq!(weights(case), (0, 100));
    until_share(case, 100).await;
    let (sent, ok, failed) = asked(case, "/stop");
    println!("  {sent} requests meanwhile, {failed} failed");
    assert!(sent > 40 * u64::from(RATE) && ok == sent && failed == 0, "{sent} sent, {ok} answered, {failed} failed");
}

async fn a_bad_version_is_turned_back_by_itself(case: &Case<'_>) {
    shop(case, 60).await;
    let (code, said) = rollout(case, &BRIEF).end();
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("requests to catalog-canary failed: more than 1 %") && said.contains("turned back"),
        "{said}"
    );
    assert!(said.contains(" 5 % to") && !said.contains("25 % to"), "at its first step: {said}");
    assert_eq!(weights(case), (100, 0));
    until_share(case, 0).await;
    callers::saw_little_of_it(case).await;
}

async fn what_can_not_be_judged_is_turned_back_or_not_begun(case: &Case<'_>) {
    shop(case, 0).await;
    let (code, said) = rollout(case, &[("BAKE", "4"), ("CHECK", "2"), ("MIN_REQUESTS", "100000")]).end();
    assert!(code == 1 && said.contains("too few to judge") && said.contains("turned back"), "{code}: {said}");
    assert_eq!(weights(case), (100, 0));
    let before = route(case)["metadata"]["generation"].clone();
    let (code, said) = rollout(case, &[("CLIENTS", "kube-system")]).end();
    assert!(code == 1 && said.contains("no metrics of the callers in kube-system"), "{code}: {said}");
    case.kubectl(&["scale", "deployment", "catalog-canary", "--replicas=0"]);
    let end = Instant::now() + PATIENCE;
    let ready = "--output=jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
    while !case
        .kubectl(&["get", "endpointslices", "--selector=kubernetes.io/service-name=catalog-canary", ready])
        .is_empty()
    {
        assert!(Instant::now() < end, "the pods stay");
    }
    let (code, said) = rollout(case, &BRIEF).end();
    assert!(code == 1 && said.contains("has no ready pod"), "{code}: {said}");
    let (code, said) = Script::start(case, "rollout.sh", &["catalog", "catalog-stable", "catalog"], &[]).end();
    assert!(code == 2 && said.contains("has the backends 'catalog-stable catalog-canary'"), "{code}: {said}");
    assert_eq!(route(case)["metadata"]["generation"], before, "nothing was changed");
    let (sent, _, failed) = asked(case, "/stop");
    assert!(sent > 0 && failed == 0, "{failed} of {sent}");
}

async fn a_script_that_is_ended_turns_back(case: &Case<'_>) {
    shop(case, 0).await;
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let mut script = rollout(case, &[("STEPS", "50"), ("BAKE", "120")]);
        script.until("50 % to");
        assert_eq!(weights(case), (50, 50));
        until_share(case, 50).await;
        let begun = Instant::now();
        script.signal(signal);
        let (ended, said) = script.end();
        assert!(ended == code && said.contains("turned back"), "{ended} after {signal}: {said}");
        println!("  {signal}: turned back after {:?}", begun.elapsed());
        assert_eq!(weights(case), (100, 0));
        until_share(case, 0).await;
    }
    let (sent, _, failed) = asked(case, "/stop");
    assert!(sent > 0 && failed == 0, "{failed} of {sent}");
}

/// One answer: its head, and its body.
fn head(case: &Case<'_>, path: &str, more: &[&str]) -> String {
    case.exec(
        "client",
        &[&["/app", "fetch", "--head", "--seconds=30", &format!("http://catalog{path}")], more].concat(),
    )
}

async fn blue_green_switches_at_once_and_sessions_are_drained(case: &Case<'_>) {
    shop(case, 0).await;
    let session = r#"[{"op": "add", "path": "/spec/rules/0/sessionPersistence", "value": {"sessionName": "shop", "type": "Cookie"}}]"#;
    case.kubectl(&["patch", "httproute", "catalog", "--type=json", "--patch", session]);
    in_force(case).await;
    let end = Instant::now() + PATIENCE;
    let cookie = loop {
        let said = head(case, "/", &[]);
        assert!(said.contains("x-version: stable\n"), "{said}");
        if let Some(line) = said.lines().find_map(|line| line.strip_prefix("set-cookie: ")) {
            break format!("cookie: {}", line.split(';').next().unwrap());
        }
        assert!(Instant::now() < end, "no session begins: {said}");
    };
    let switch = |from, to, drain| {
        let settings = [("QUIET", "4"), ("DRAIN", drain)];
        Script::start(case, "bluegreen.sh", &["catalog", from, to], &settings)
    };
    thread::scope(|scope| {
        // Under way at the switch: a slow request, and a session that goes on for longer than all else.
        let slow = scope.spawn(|| head(case, "/delay/8000", &[]));
        let in_session = scope.spawn(|| requests(case, &["--count=60", "--pause-ms=250", "--header", &cookie]));
        thread::sleep(Duration::from_secs(1)); // they have begun: what they prove does not depend on it
        let mut script = switch("catalog-stable", "catalog-canary", "60");
        script.until("switched");
        assert_eq!(weights(case), (0, 100));
        let end = Instant::now() + PATIENCE;
        while answers(&requests(case, &["--count=20"]), "canary") < 20 {
            assert!(Instant::now() < end, "new requests go to the old version");
        }
        script.until("requests to catalog-stable in");
        let said = in_session.join().unwrap();
        assert_eq!(
            (&said["statuses"], answers(&said, "stable")),
            (&json!({"200": 60}), 60),
            "the session stays: {said}"
        );
        let said = slow.join().unwrap();
        assert!(said.starts_with("200 ") && said.contains("x-version: stable\n"), "under way at the switch: {said}");
        let (code, said) = script.end();
        assert!(code == 0 && said.contains("drained: no request to catalog-stable in 4 s"), "{code}: {said}");
    });
    // And back.
    let (code, said) = switch("catalog-canary", "catalog-stable", "0").end();
    assert_eq!(code, 0, "{said}");
    until_share(case, 0).await;
    // Once the old pods go, so do their sessions: to the version that there is.
    let (code, said) = switch("catalog-stable", "catalog-canary", "0").end();
    assert_eq!(code, 0, "{said}");
    case.kubectl(&["scale", "deployment", "catalog-stable", "--replicas=0"]);
    case.ready_with("app=catalog", 2).await;
    let end = Instant::now() + PATIENCE;
    loop {
        let said = requests(case, &["--count=20", "--header", &cookie]);
        assert_eq!(said["statuses"], json!({"200": 20}), "{said}");
        if answers(&said, "canary") == 20 {
            break;
        }
        assert!(Instant::now() < end, "{said}");
    }
    let (sent, ok, failed) = asked(case, "/stop");
    println!("  {sent} requests meanwhile, {failed} failed");
    assert!(ok == sent && failed == 0, "{failed} of {sent} failed");
}

/// Reads the route, changes it, and writes all of it again, as controllers do; once more where somebody else was quicker.
fn update(case: &Case<'_>, change: impl Fn(&mut Value)) {
    let file = case.cluster.layout().root().join("route.json");
    let replace = ["--namespace", case.namespace, "replace", "--filename", file.to_str().unwrap()];
    let end = Instant::now() + PATIENCE;
    loop {
        let mut object = route(case);
        change(&mut object);
        std::fs::write(&file, object.to_string()).unwrap();
        match case.cluster.kubectl(&replace) {
            Ok(_) => return,
            Err(error) => {
                assert!(
                    error.to_string().contains("the object has been modified") && Instant::now() < end,
                    "{error:#}"
                );
            }
        }
    }
}

/// What the plugin of Argo Rollouts does for `setWeight` and `setHeaderRoute` (`pkg/plugin/httproute.go`): the weights of both Services in every rule,
/// a label while it lasts, and a rule of its own at the end, with the matches of the first and nothing but the canary.
async fn the_edits_of_argo_rollouts_are_followed(case: &Case<'_>) {
    const LABEL: &str = "rollouts.argoproj.io/gatewayapi-canary";
    shop(case, 0).await;
    let set_weight = |percent: u64| {
        update(case, |route| {
            let backends = &mut route["spec"]["rules"][0]["backendRefs"];
            (backends[0]["weight"], backends[1]["weight"]) = (json!(100 - percent), json!(percent));
            let labels = if percent > 0 { json!({LABEL: "in-progress"}) } else { json!({}) };
            route["metadata"]["labels"] = labels;
        });
    };
    update(case, |route| {
        let mut matches = route["spec"]["rules"][0]["matches"].clone();
        for one in matches.as_array_mut().unwrap() {
            one["headers"] = json!([{"type": "Exact", "name": "x-canary", "value": "yes"}]);
        }
        let backend = json!({"group": "", "kind": "Service", "name": "catalog-canary", "port": 80});
        let rule = json!({"name": "testers", "matches": matches, "backendRefs": [backend]});
        route["spec"]["rules"].as_array_mut().unwrap().push(rule);
    });
    for percent in [0, 5, 25, 50, 100, 0] {
        set_weight(percent);
        in_force(case).await;
        until_share(case, percent).await;
        let said = requests(case, &["--count=20", "--header", "x-canary: yes"]);
        assert_eq!(answers(&said, "canary"), 20, "testers, at {percent} %: {said}");
    }
    update(case, |route| drop(route["spec"]["rules"].as_array_mut().unwrap().pop()));
    in_force(case).await;
    let end = Instant::now() + PATIENCE;
    while answers(&requests(case, &["--count=20", "--header", "x-canary: yes"]), "stable") < 20 {
        assert!(Instant::now() < end, "the rule of the testers is still there");
    }
    let (sent, ok, failed) = asked(case, "/stop");
    assert!(ok == sent && failed == 0, "{failed} of {sent} failed");
}

/// What Flagger writes (`pkg/router/gateway_api.go`): a route of its own on the Service as parent, the whole of it anew for each step, and with
/// sessions a rule by a cookie, which the canary's answers set.
async fn the_edits_of_flagger_are_followed(case: &Case<'_>) {
    shop(case, 0).await;
    case.kubectl(&["delete", "httproute", "catalog"]);
    let backends = |canary: u64| {
        let backend = |name: &str, weight: u64| json!({"group": "", "kind": "Service", "name": name, "port": 80, "weight": weight});
        json!([backend("catalog-stable", 100 - canary), backend("catalog-canary", canary)])
    };
    let rule = |canary: u64| json!({"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": backends(canary)});
    let parents = json!([{"group": "core", "kind": "Service", "name": "catalog", "port": 80}]);
    let made = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "catalog"},
        "spec": {"parentRefs": parents, "rules": [rule(0)]},
    });
    case.apply(&made.to_string());
    in_force(case).await;
    let set = |rules: Value| update(case, |route| route["spec"] = json!({"parentRefs": parents, "rules": rules}));
    for percent in [5, 25, 50, 0] {
        set(json!([rule(percent)]));
        in_force(case).await;
        until_share(case, percent).await;
    }
    // With sessions.
    let cookie = |value: &str, age: i32| json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "Set-Cookie", "value": format!("{value}; Max-Age={age}")}]}});
    let by_cookie = json!([{"path": {"type": "PathPrefix", "value": "/"},
        "headers": [{"type": "RegularExpression", "name": "Cookie", "value": ".*flagger.*tZkQbPwA.*"}]}]);
    let mut weighted = rule(25);
    weighted["backendRefs"][1]["filters"] = json!([cookie("flagger=tZkQbPwA", 86400)]);
    set(json!([{"matches": by_cookie, "backendRefs": backends(100)}, weighted]));
    in_force(case).await;
    until_share(case, 25).await;
    let header = ["--header", "cookie: a=b; flagger=tZkQbPwA"];
    let said = requests(case, &[&["--count=20"], &header[..]].concat());
    assert_eq!(answers(&said, "canary"), 20, "a session of the canary: {said}");
    let end = Instant::now() + PATIENCE;
    loop {
        let said = head(case, "/", &[]);
        let gives = said.contains("set-cookie: flagger=tZkQbPwA; Max-Age=86400\n");
        assert_eq!(gives, said.contains("x-version: canary\n"), "{said}");
        if gives {
            break;
        }
        assert!(Instant::now() < end, "the canary answers nothing");
    }
    // Turned back: the cookie leads nowhere any more, and is taken away.
    let gone = json!({"matches": by_cookie, "filters": [cookie("flagger=tZkQbPwA", -1)], "backendRefs": backends(0)});
    set(json!([gone, rule(0)]));
    in_force(case).await;
    until_share(case, 0).await;
    let said = head(case, "/", &header);
    assert!(said.contains("x-version: stable\n") && said.contains("Max-Age=-1\n"), "{said}");
    let (sent, ok, failed) = asked(case, "/stop");
    assert!(ok == sent && failed == 0, "{failed} of {sent} failed");
}

pub(crate) const SUITE: Suite = Suite {
    name: "rollout",
    title: "Staged roll-outs",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        a_good_version_goes_all_the_way_and_nothing_is_lost,
        a_bad_version_is_turned_back_by_itself,
        what_can_not_be_judged_is_turned_back_or_not_begun,
        a_script_that_is_ended_turns_back,
        blue_green_switches_at_once_and_sessions_are_drained,
        the_edits_of_argo_rollouts_are_followed,
        the_edits_of_flagger_are_followed,
    ],
};
