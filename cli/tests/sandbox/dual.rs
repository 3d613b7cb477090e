//! IPv4 and IPv6 side by side: addresses, Services, names, translation, and the mesh.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::{Value, json};

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
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: echo
          image: weir.dev/echo
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: both, namespace: shop}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: six, namespace: shop}
spec:
  ipFamilies: [IPv6]
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: four, namespace: shop}
spec:
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  ipFamilies: [IPv6]
  selector: {app: echo}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec:
  ipFamilies: [IPv6]
  selector: {app: nobody}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: client
      image: host
      command: [sleep, infinity]
      env: [{name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: client, image: host, command: [sleep, infinity]}
"#;

impl Sandbox {
    /// An object as an API server would hold it.
    fn object(&self, file: &str) -> Value {
        let text = fs::read_to_string(self.state().join("cluster").join(file)).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// What the echo says to `curl`.
    fn echo(&self, pod: &str, url: &str) -> Value {
        serde_json::from_str(&self.says(pod, &["curl", "-sS", "-g", "-m", "5", url])).unwrap()
    }

    /// Addresses of a name in a family.
    fn names(&self, pod: &str, family: &str, name: &str) -> BTreeSet<String> {
        let output = self.exec(pod, &["getent", family, name]);
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().filter_map(|line| line.split_ascii_whitespace().next().map(str::to_owned)).collect()
    }

    /// Sum of the requests that a pod's proxy counted, by the labels that a line must have.
    fn counted(&self, pod: &str, labels: &[&str]) -> u64 {
        let url = "http://127.0.0.1:15090/stats/prometheus";
        let text = self.says(pod, &["curl", "-sS", "-m", "5", url]);
        let lines = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

fn addresses(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|address| address.as_str().unwrap().to_owned()).collect()
}

#[test]
fn both_families() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("dual");
    sandbox.write("all.yaml", MANIFEST);
    let output = sandbox.run("up", &[sandbox.folder.to_str().unwrap(), "--timeout", "40"]);
    assert!(output.status.success(), "{}", text(&output));
    let (client, outsider) = ("shop/client", "outside/client");

    // Pods.
    let pod = sandbox.object("pod.shop.client.yaml");
    let ips = pod["status"]["podIPs"].as_array().unwrap();
    assert!(ips.len() == 2 && ips[0]["ip"] == pod["status"]["podIP"], "{ips:?}");
    assert!(ips[0]["ip"].as_str().unwrap().starts_with("198.18.0."), "{ips:?}");
    assert!(ips[1]["ip"].as_str().unwrap().starts_with("fd00:198:18::"), "{ips:?}");
    let own = format!("{},{}\n", ips[0]["ip"].as_str().unwrap(), ips[1]["ip"].as_str().unwrap());
    assert_eq!(sandbox.says(client, &["sh", "-c", "echo $IPS"]), own);
    let echoes: Vec<String> = sandbox.pods(Some("echo"));
    let echo_v6: BTreeSet<String> = echoes
        .iter()
        .map(|name| sandbox.status()["pods"][name]["status"]["address_v6"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(echo_v6.len(), 2);

    // Services and their slices.
    let spec = |name: &str| sandbox.object(&format!("service.shop.{name}.yaml"))["spec"].clone();
    let both = spec("both");
    let ips = addresses(&both["clusterIPs"]);
    assert!(ips[0].starts_with("198.19.") && ips[1].starts_with("fd00:198:19::") && ips.len() == 2, "{both}");
    assert_eq!((&both["clusterIP"], &both["ipFamilies"]), (&json!(ips[0]), &json!(["IPv4", "IPv6"])));
    let six = spec("six");
    let six_ip = six["clusterIP"].as_str().unwrap().to_owned();
    assert!(six_ip.starts_with("fd00:198:19::"), "{six}");
    assert_eq!(six["ipFamilyPolicy"], "SingleStack");
    assert_eq!(spec("four")["ipFamilies"], json!(["IPv4"]));
    let slice = sandbox.object("endpointslice.shop.both.ipv6-0.yaml");
    assert_eq!(slice["addressType"], "IPv6");
    let in_slice = slice["endpoints"].as_array().unwrap().iter();
    let in_slice: BTreeSet<String> = in_slice.flat_map(|endpoint| addresses(&endpoint["addresses"])).collect();
    assert_eq!(in_slice, echo_v6);
    assert_eq!(sandbox.object("endpointslice.shop.both-0.yaml")["addressType"], "IPv4");
    let has = |file: &str| sandbox.state().join("cluster").join(file).exists();
    assert!(!has("endpointslice.shop.six-0.yaml") && !has("endpointslice.shop.four.ipv6-0.yaml"));

    // Names.
    let one = |address: &str| BTreeSet::from([address.to_owned()]);
    assert_eq!(sandbox.names(client, "ahostsv4", "both"), one(&ips[0]));
    let only_v6 = |name: &str| -> BTreeSet<String> {
        // getent gives IPv4 in the form of IPv6 where there is nothing else.
        sandbox.names(client, "ahostsv6", name).into_iter().filter(|address| !address.starts_with("::ffff:")).collect()
    };
    assert_eq!(only_v6("both"), one(&ips[1]));
    assert_eq!(sandbox.names(client, "ahostsv4", "six"), BTreeSet::new());
    assert_eq!(only_v6("six"), one(&six_ip));
    assert_eq!(only_v6("four"), BTreeSet::new());
    assert_eq!(only_v6("headless"), echo_v6);
    assert_eq!(sandbox.names(client, "ahostsv4", "headless").len(), 2);

    // Through both proxies, by each kind of address. What the application says shows by which family its proxy was called: that
    // of the address for a pod, the first one of the Service for a Service.
    let pod_v6 = echo_v6.first().unwrap();
    let service_v6 = format!("http://[{}]/", ips[1]);
    let pod_url = format!("http://[{pod_v6}]:8080/");
    for (url, from) in [
        (service_v6.as_str(), "127.0.0.6"),
        ("http://six.shop/", "::6"),
        (&pod_url, "::6"),
        (&format!("http://{}/", ips[0]), "127.0.0.6"),
        ("http://four.shop/", "127.0.0.6"),
    ] {
        let said = sandbox.echo(client, url);
        assert_eq!(said["from"], from, "{url}: {said}");
    }
    let mutual = "connection_security_policy=\"mutual_tls\"";
    let source = "source_principal=\"spiffe://cluster.local/ns/shop/sa/default\"";
    let count = |of: &str, labels: &[&str]| -> u64 { sandbox.counted(of, labels) };
    let served = |labels: &[&str]| -> u64 { echoes.iter().map(|pod| count(pod, labels)).sum() };
    sandbox.wait("five requests counted by both sides", |_| {
        let sent = count(client, &["reporter=\"source\"", mutual]);
        (sent, served(&["reporter=\"destination\"", mutual, source])) == (5, 5)
    });
    let both_name = "destination_service=\"both.shop.svc.cluster.local\"";
    assert_eq!(count(client, &["reporter=\"source\"", both_name]), 2);

    // Each endpoint gets its share of a Service of IPv6, with and without the mesh.
    for from in [client, outsider] {
        let load =
            ["/.weir/weir", "sandbox-load", "http://six.shop/", "--requests", "60", "--fresh", "--tally", "x-pod"];
        let report: Value = serde_json::from_str(&sandbox.says(from, &load)).unwrap();
        assert_eq!(report["failures"], 0, "{from}: {report}");
        assert_eq!(report["tally"].as_object().unwrap().len(), 2, "{from}: {report}");
    }
    sandbox.wait("plaintext counted", |_| {
        served(&["reporter=\"destination\"", "connection_security_policy=\"none\""]) == 60
    });
    // A pod reaches itself through its own Service; nobody is behind these addresses, which is said at once.
    sandbox.says(
        &echoes[0],
        &["sh", "-c", &format!("for i in 1 2 3 4 5 6; do curl -sSg -m 2 -o /dev/null {service_v6} || exit 1; done")],
    );
    for url in ["http://nobody.shop/", "http://[fd00:198:19::c8c8]/"] {
        let output = sandbox.exec(outsider, &["curl", "-sS", "-g", "-m", "3", url]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("Couldn't connect"), "{url}: {said}");
    }
    sandbox.down();
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: default}\nspec:\n  POLICY\n  selector: {app: a}\n  ports: [{port: 80}]\n";
const POD: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: default}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n    - {name: c, image: host, command: [sleep, infinity]}\n";

#[test]
fn what_can_not_be_is_refused() {
    if !root() {
        return;
    }
    for (policy, option, wanted) in [
        ("ipFamilyPolicy: RequireDualStack", "--ipv4-only", ["spec.ipFamilyPolicy", "this sandbox has IPv4 only"]),
        ("ipFamilies: [IPv6]", "--ipv4-only", ["spec.ipFamilies", "this sandbox has IPv4 only"]),
        ("ipFamilyPolicy: Both", "--without-mesh", ["spec.ipFamilyPolicy", "\"Both\" is not"]),
    ] {
        let sandbox = Sandbox::new("dual");
        sandbox.write("all.yaml", &SERVICE.replace("POLICY", policy));
        let output = sandbox.run("up", &[sandbox.folder.to_str().unwrap(), option]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in wanted.iter().chain(&["all.yaml", "Service default/s"]) {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
        sandbox.nothing_is_left(&BTreeSet::new());
    }
}

#[test]
fn a_kernel_without_ipv6() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("four");
    sandbox.write("all.yaml", &(SERVICE.replace("POLICY", "ipFamilyPolicy: PreferDualStack") + POD));
    let up = sandbox.command("up", &[sandbox.folder.to_str().unwrap(), "--without-mesh"]);
    let mut command = Command::new("unshare");
    let hide = "mount -t tmpfs none /proc/sys/net/ipv6 && exec \"$@\"";
    command.args(["--mount", "sh", "-c", hide, "sh"]).arg(up.get_program()).args(up.get_args());
    command.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("this kernel has no IPv6: pods and Services have IPv4 only").count(), 1, "{said}");
    let status = sandbox.status();
    assert_eq!(status["pods"]["default/p"]["status"]["address_v6"], Value::Null);
    assert!(status["services"]["default/s"]["address"].as_str().unwrap().starts_with("198.19."), "{status}");
    assert_eq!(sandbox.object("pod.default.p.yaml")["status"]["podIPs"].as_array().unwrap().len(), 1);
    assert!(!sandbox.says("p", &["ip", "-6", "address", "show", "dev", "eth0"]).contains("fd00:"));
    sandbox.down();
}
