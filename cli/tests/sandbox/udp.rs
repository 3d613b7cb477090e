//! `weir.dev/block-udp`: from the annotation to the kernel's answer.

use super::support::{Sandbox, root, text};

const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weir.dev/inject: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: outside, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: echo
      image: weir.dev/echo
      ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: outside}
spec:
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: free, namespace: shop}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: client, image: host, command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: blocked, namespace: shop, annotations: {weir.dev/block-udp: "true"}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: client, image: host, command: [sleep, infinity]}
"#;

#[test]
fn a_pod_that_blocks_udp_sends_none_but_queries() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("udp");
    sandbox.write("all.yaml", MANIFEST);
    let output = sandbox.run("up", &[sandbox.folder.to_str().unwrap(), "--timeout", "40"]);
    assert!(output.status.success(), "{}", text(&output));
    let address = sandbox.status()["pods"]["outside/echo"]["status"]["address"].as_str().unwrap().to_owned();
    // The kernel tells the sender at once.
    let send = |pod: &str, to: &str, port: u16| {
        let output = sandbox.exec(pod, &["bash", "-c", &format!("echo hello > /dev/udp/{to}/{port}")]);
        (output.status.success(), text(&output))
    };
    for port in [443, 8125] {
        let (sent, said) = send("shop/free", &address, port);
        assert!(sent, "free, {port}: {said}");
        let (sent, said) = send("shop/blocked", &address, port);
        assert!(!sent && said.contains("Operation not permitted"), "blocked, {port}: {said}");
    }
    for pod in ["shop/free", "shop/blocked"] {
        let (sent, said) = send(pod, "127.0.0.1", 8125);
        assert!(sent, "{pod}, loopback: {said}");
        // Names are asked for by UDP, and what they stand for is called by TCP.
        let said = sandbox
            .says(pod, &["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://echo.outside/"]);
        assert_eq!(said, "200", "{pod}");
    }
}
