//! The life of a pod: order up and down, volumes, privileges, restarts.

use std::fs;

use super::support::{Sandbox, root};

/// Containers that write what happens to them into one file of the machine.
fn ordered(folder: &str) -> String {
    let app = |name: &str| {
        format!(
            "trap 'echo {name} stopped >> /order/log; exit 0' TERM; echo {name} started >> /order/log; while :; do sleep 0.05; done"
        )
    };
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: p, namespace: default}}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
    - name: first
      image: host
      command: [sh, -c, "sleep 0.2; echo first done >> /order/log"]
      volumeMounts: [{{name: order, mountPath: /order}}]
    - name: sidecar-a
      image: host
      restartPolicy: Always
      command: [sh, -c, "{a}"]
      lifecycle:
        postStart: {{exec: {{command: [sh, -c, "sleep 0.2; echo sidecar-a hook >> /order/log"]}}}}
      volumeMounts: [{{name: order, mountPath: /order}}]
    - name: sidecar-b
      image: host
      restartPolicy: Always
      command: [sh, -c, "{b}"]
      startupProbe: {{exec: {{command: [sh, -c, "sleep 0.2; echo sidecar-b probed >> /order/log"]}}, periodSeconds: 1}}
      volumeMounts: [{{name: order, mountPath: /order}}]
    - name: second
      image: host
      command: [sh, -c, "echo second done >> /order/log"]
      volumeMounts: [{{name: order, mountPath: /order}}]
  containers:
    - name: app
      image: host
      command: [sh, -c, "{c}"]
      lifecycle:
        preStop: {{exec: {{command: [sh, -c, "echo app hook >> /order/log"]}}}}
      volumeMounts: [{{name: order, mountPath: /order}}]
  volumes: [{{name: order, hostPath: {{path: {folder}, type: Directory}}}}]
"#,
        a = app("sidecar-a"),
        b = app("sidecar-b"),
        c = app("app"),
    )
}

#[test]
fn order_up_and_down() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("order");
    let folder = sandbox.folder.join("order");
    fs::create_dir(&folder).unwrap();
    sandbox.write("pod.yaml", &ordered(folder.to_str().unwrap()));
    sandbox.must_be_up();
    sandbox.wait("the app's start", |_| fs::read_to_string(folder.join("log")).unwrap().contains("app started"));
    sandbox.down();
    let log = fs::read_to_string(folder.join("log")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(
        lines,
        [
            "first done",
            "sidecar-a started",
            "sidecar-a hook",
            "sidecar-b started",
            "sidecar-b probed",
            "second done",
            "app started",
            "app hook",
            "app stopped",
            "sidecar-b stopped",
            "sidecar-a stopped",
        ]
    );
}

const VOLUMES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: default}
data: {color: red, size: big}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: buyer, namespace: default}
---
apiVersion: v1
kind: Pod
metadata:
  name: p
  namespace: default
  labels: {app: shop}
spec:
  serviceAccountName: buyer
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 4321, runAsGroup: 4322, fsGroup: 4323}
  containers:
    - name: c
      image: host
      command: [sleep, infinity]
      workingDir: /tmp
      env:
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
        - {name: BOTH, value: "$(POD) is $(COLOR), $$(POD), $(NONE)"}
      securityContext:
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: settings, mountPath: /etc/settings}
        - {name: all, mountPath: /var/run/all}
        - {name: scratch, mountPath: /scratch}
        - {name: settings, mountPath: /one/size, subPath: size}
  volumes:
    - {name: settings, configMap: {name: settings}}
    - {name: scratch, emptyDir: {}}
    - name: all
      projected:
        sources:
          - serviceAccountToken: {audience: weir-control, path: token, expirationSeconds: 600}
          - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
"#;

#[test]
fn volumes_environment_and_privileges() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("volumes");
    sandbox.write("pod.yaml", VOLUMES);
    sandbox.must_be_up();
    let sh = |script: &str| sandbox.says("p", &["sh", "-c", script]);
    assert_eq!(sh("echo $BOTH; pwd; hostname"), "p is red, $(POD), $(NONE)\n/tmp\np\n");
    assert_eq!(sh("id -u; id -g; id -G"), "4321\n4322\n4322 4323\n");
    let status = sh("grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status");
    assert_eq!(
        status.split_whitespace().collect::<Vec<_>>(),
        [
            "CapPrm:",
            "0000000000000000",
            "CapEff:",
            "0000000000000000",
            "CapBnd:",
            "0000000000000000",
            "NoNewPrivs:",
            "1"
        ]
    );
    let writable =
        sh("for d in / /tmp /etc /usr /etc/settings /scratch; do touch $d/x 2>/dev/null && echo $d; done; true");
    assert_eq!(writable, "/scratch\n");
    assert_eq!(sh("cat /var/run/all/labels /one/size"), "app=\"shop\"big");
    // The same process space for the container alone, and none of the machine's processes in it.
    assert_eq!(sh("ls -d /proc/1 /proc/2 | wc -l; ls -d /proc/[0-9]* | wc -l").lines().next(), Some("2"));

    let token = sh("cat /var/run/all/token");
    assert_eq!(token.split('.').count(), 3, "{token}");
    assert!(
        !sandbox
            .exec("p", &["sh", "-c", "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern"])
            .status
            .success()
    );

    // An edited ConfigMap arrives under the running container, in one step.
    sandbox.write("pod.yaml", &VOLUMES.replace("color: red", "color: blue"));
    sandbox.wait("the new colour", |_| sh("cat /etc/settings/color") == "blue");
    sandbox.down();
}

#[test]
fn restarts_and_liveness() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("restart");
    let pod = |name: &str, policy: &str, container: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  restartPolicy: {policy}\n  terminationGracePeriodSeconds: 1\n  containers:\n    - {{name: c, image: host, {container}}}\n---\n"
        )
    };
    let sick = "command: [sh, -c, \"rm -f /tmp/ok; sleep infinity\"], livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}";
    let all = [
        pod("job", "Never", "command: [sh, -c, \"echo done\"]"),
        pod("retry", "OnFailure", "command: [sh, -c, \"echo reason > /dev/termination-log; exit 4\"]"),
        pod("sick", "Always", sick),
    ];
    sandbox.write("pods.yaml", &all.concat());
    let mut up = sandbox.start_up("60");
    sandbox.wait_for_socket();
    sandbox.wait("an end, a second try and a kill", |status| {
        let container = |pod: &str| status["pods"][format!("default/{pod}")]["status"]["containers"][0].clone();
        let ended = status["pods"]["default/job"]["status"]["phase"] == "Succeeded";
        let retried = container("retry")["restarts"].as_u64().is_some_and(|n| n >= 1);
        let why = container("retry")["last_end"] == serde_json::json!([4, "reason"]);
        let killed = container("sick")["restarts"].as_u64().is_some_and(|n| n >= 1);
        ended && retried && why && killed
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(up.id().try_into().unwrap()), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    up.wait().unwrap();
    assert!(!sandbox.exists());
}
