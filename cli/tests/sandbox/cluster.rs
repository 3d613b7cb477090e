//! A cluster without the mesh: Deployments, Services, names, edits.

use std::{thread::sleep, time::Duration};

use super::support::{Sandbox, root};

fn manifest(replicas: u32, version: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: a}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: echo, namespace: a}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: echo}}}}
  template:
    metadata: {{labels: {{app: echo}}}}
    spec:
      containers:
        - name: echo
          image: weir.dev/echo
          args: [--version, {version}]
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
          lifecycle: {{preStop: {{sleep: {{seconds: 1}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: a}}
spec:
  selector: {{app: echo}}
  ports: [{{name: http, port: 80, targetPort: http}}]
---
apiVersion: v1
kind: Service
metadata: {{name: headless, namespace: a}}
spec:
  clusterIP: None
  selector: {{app: echo}}
  ports: [{{name: http, port: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: nobody, namespace: a}}
spec:
  selector: {{app: nobody}}
  ports: [{{name: http, port: 80}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: a}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {{name: client, image: host, command: [sleep, infinity]}}
"#
    )
}

fn load(sandbox: &Sandbox, args: &[&str]) -> serde_json::Value {
    let mut command = vec!["/.weir/weir", "sandbox-load"];
    command.extend(args);
    serde_json::from_str(&sandbox.says("client", &command)).unwrap()
}

#[test]
fn from_up_to_down() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("plain");
    sandbox.write("all.yaml", &manifest(3, "v1"));
    sandbox.must_be_up();

    // Names and translation: every pod gets a share; a pod reaches itself through its own Service.
    let report = load(&sandbox, &["http://echo/", "--requests", "300", "--fresh", "--tally", "x-pod"]);
    assert_eq!(report["failures"], 0, "{report}");
    let shares: Vec<u64> = report["tally"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(shares.len(), 3, "{report}");
    assert!(shares.iter().all(|share| (50..=150).contains(share)), "even random choice: {shares:?}");
    let own = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do curl -sS -m 2 -o /dev/null http://echo.a/ || exit 1; done";
    sandbox.says("deploy/echo", &["sh", "-c", own]);
    let names = sandbox.says("client", &["getent", "ahostsv4", "headless.a.svc.cluster.local"]);
    assert_eq!(names.lines().filter(|line| line.contains("STREAM")).count(), 3, "{names}");

    // What is not there is refused at once, by name and by address.
    for (url, reason) in [
        ("http://nobody/", "Couldn't connect"),
        ("http://198.19.200.200/", "Couldn't connect"),
        ("http://no-such-name/", "Could not resolve"),
    ] {
        let output = sandbox.exec("client", &["curl", "-sS", "-m", "3", url]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(reason), "{url}: {said}");
    }

    // exec gives the exit code and keeps both outputs apart; logs show what was written.
    let output = sandbox.exec("client", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let logs = sandbox.run("logs", &["a/deploy/echo"]);
    assert_eq!(logs.stdout, b"listening on [::]:8080\n");
    let output = sandbox.exec("nobody", &["true"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no pod nobody; there are a/client"));

    // Scaling keeps addresses; a changed template is rolled out without a failed request.
    let address = sandbox.status()["services"]["a/echo"]["address"].clone();
    sandbox.write("all.yaml", &manifest(1, "v1"));
    sandbox.wait("one pod", |_| sandbox.pods(Some("echo")).len() == 1);
    sandbox.write("all.yaml", &manifest(2, "v1"));
    sandbox.wait("two pods", |status| status["deployments"]["a/echo"] == serde_json::json!([2, 2, 2]));
    let report = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&sandbox, &["http://echo/", "--seconds", "4", "--rate", "300", "--fresh"]));
        sleep(Duration::from_millis(300));
        sandbox.write("all.yaml", &manifest(2, "v2"));
        sandbox.wait("the new template", |status| {
            status["deployments"]["a/echo"] == serde_json::json!([2, 2, 2]) && sandbox.pods(Some("echo")).len() == 2
        });
        load.join().unwrap()
    });
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(load(&sandbox, &["http://echo/", "--requests", "20", "--fresh"])["tally"]["v2"], 20);
    assert_eq!(sandbox.status()["services"]["a/echo"]["address"], address);
    sandbox.down();
}

#[test]
fn an_edit_that_is_wrong_changes_nothing() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("edit");
    sandbox.write("all.yaml", &manifest(1, "v1"));
    sandbox.must_be_up();
    let before = sandbox.pods(None);
    sandbox.write("all.yaml", &manifest(1, "v2").replace("replicas", "replikas"));
    sandbox.wait("the refusal", |status| {
        let events = status["events"].as_array().unwrap();
        events
            .iter()
            .any(|event| event["reason"] == "NotApplied" && event["message"].as_str().unwrap().contains("replikas"))
    });
    assert_eq!(sandbox.pods(None), before);
    sandbox.down();
}
