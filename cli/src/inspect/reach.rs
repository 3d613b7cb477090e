//! The ways to the admin pages of proxies and of the control plane. Both listen on their pod's loopback only, so their own program asks
//! there: started by `kubectl exec` in a cluster, by the supervisor in a sandbox.

use std::process::{Command, Output, Stdio};

use weir_mesh::names::{CONTROL_SERVICE, INJECT_ENABLED, INJECT_LABEL, PROXY_CONTAINER, SYSTEM_NAMESPACE};
use weir_sandbox::Client;

use super::checked;
use crate::failure::Failure;

/// Where a cluster or a sandbox can be asked.
pub(super) enum Reach {
    /// The cluster that kubectl speaks to.
    Cluster {
        /// Namespace that Weir is in.
        system: String,
    },
    /// A sandbox of this machine.
    Sandbox {
        /// The way to its supervisor.
        client: Client,
        /// Its name.
        name: String,
    },
}

/// A pod, or one of a Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodRef {
    /// Its namespace.
    pub(super) namespace: String,
    /// `POD` or `deploy/NAME`
    pub(super) name: String,
}

impl Reach {
    pub(super) fn cluster(system: String) -> Self {
        Self::Cluster { system }
    }

    pub(super) fn sandbox(client: Client, name: &str) -> Self {
        Self::Sandbox { client, name: name.to_owned() }
    }

    /// The namespace where none is given.
    fn default_namespace(&self) -> Result<String, Failure> {
        let given = match self {
            Self::Sandbox { .. } => String::new(),
            Self::Cluster { .. } => {
                let output = kubectl(&["config", "view", "--minify", "--output", "jsonpath={..namespace}"])?;
                String::from_utf8_lossy(&output.stdout).trim().to_owned()
            }
        };
        Ok(if given.is_empty() { "default".to_owned() } else { given })
    }

    /// The namespace that is given, or else that of kubectl's context.
    pub(super) fn namespace(&self, given: Option<&str>) -> Result<String, Failure> {
        match given {
            Some(given) => checked(given).map(str::to_owned),
            None => self.default_namespace(),
        }
    }

    /// Reads `POD`, `POD.NAMESPACE`, `pod/POD` or `deploy/NAME`.
    pub(super) fn pod(&self, text: &str, namespace: Option<&str>) -> Result<PodRef, Failure> {
        let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
        let is_pod = matches!(kind, "pod" | "pods" | "po");
        if !is_pod && !matches!(kind, "deploy" | "deployment" | "deployments") {
            return Err(Failure::usage(format!("{text:?} is not POD, POD.NAMESPACE or deploy/NAME")));
        }
        let (name, namespace) = match (namespace, name.rsplit_once('.')) {
            (None, Some((name, namespace))) => (name, Some(namespace)),
            (namespace, _) => (name, namespace),
        };
        let name = checked(name)?;
        let name = if is_pod { name.to_owned() } else { format!("deploy/{name}") };
        Ok(PodRef { namespace: self.namespace(namespace)?, name })
    }

    /// A page of a pod's proxy.
    pub(super) fn proxy(&self, pod: &PodRef, page: &str) -> Result<Vec<u8>, Failure> {
        let PodRef { namespace, name } = pod;
        let what = format!("pod {namespace}/{name}");
        let command = ["/weir-proxy", "admin", page];
        match self {
            Self::Cluster { .. } => {
                let begin = ["exec", "--namespace", namespace, name, "--container", PROXY_CONTAINER, "--"];
                let output = kubectl(&[&begin[..], &command].concat())?;
                stdout(output).map_err(|said| explain(&said, &what, namespace))
            }
            Self::Sandbox { client, name: sandbox } => {
                let output = client.run_in(&format!("{namespace}/{name}"), Some(PROXY_CONTAINER), &command);
                in_sandbox(output, &what, sandbox, namespace)
            }
        }
    }

    /// A page of the control plane.
    pub(super) fn control(&self, page: &str) -> Result<Vec<u8>, Failure> {
        let command = ["/weir-control", "admin", page];
        let what = "the control plane";
        match self {
            Self::Cluster { system } => {
                let deployment = format!("deployment/{CONTROL_SERVICE}");
                let begin = ["exec", "--namespace", system, &deployment, "--"];
                let output = kubectl(&[&begin[..], &command].concat())?;
                stdout(output).map_err(|said| match answer(&said, "weir-control") {
                    Some(reason) => Failure::failed(reason),
                    None if said.contains("(NotFound)") => Failure::failed(format!(
                        "there is no Deployment {CONTROL_SERVICE} in namespace {system}: install Weir, or name its namespace by --system-namespace"
                    )),
                    None => explain(&said, what, system),
                })
            }
            Self::Sandbox { client, name } => {
                let pod = format!("{SYSTEM_NAMESPACE}/deploy/{CONTROL_SERVICE}");
                in_sandbox(client.run_in(&pod, None, &command), what, name, SYSTEM_NAMESPACE)
            }
        }
    }
}

/// kubectl knows where the cluster is and who asks.
fn kubectl(arguments: &[&str]) -> Result<Output, Failure> {
    let output = Command::new("kubectl").args(arguments).stdin(Stdio::null()).output();
    output.map_err(|error| Failure::usage(format!("kubectl can not be run: {error}; put it into PATH")))
}

/// Standard output of a program that succeeded; else what it said.
fn stdout(output: Output) -> Result<Vec<u8>, String> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// What our own program said of why it has no answer.
fn answer(said: &str, program: &str) -> Option<String> {
    let line = said.lines().find_map(|line| line.strip_prefix(program)?.strip_prefix(": "))?;
    Some(line.strip_prefix("404: ").unwrap_or(line).to_owned())
}

/// kubectl's words, with what to do.
fn explain(said: &str, what: &str, namespace: &str) -> Failure {
    let has = |text: &str| said.contains(text);
    if let Some(reason) = answer(said, "weir-proxy") {
        return Failure::failed(format!("the proxy of {what}: {reason}"));
    }
    let line = said.lines().next().unwrap_or("kubectl said nothing");
    Failure::failed(if has("unrecognized subcommand") || has("unexpected argument") {
        format!(
            "{what} runs a Weir that is older than this command: update it (a pod gets a new proxy when it is restarted)"
        )
    } else if has("(NotFound)") {
        format!("there is no {what}: `kubectl get pods --namespace {namespace}` lists those that there are")
    } else if has("container not found (") {
        format!("the proxy of {what} does not run now: `kubectl describe` says why")
    } else if has(PROXY_CONTAINER) && (has("is not valid for pod") || has("not found in pod")) {
        not_in_mesh(what, namespace)
    } else if has("(Forbidden)") {
        format!(
            "you may not start programs in pods of namespace {namespace} ({line}): ask for the right to create pods/exec there"
        )
    } else {
        format!("{what} can not be asked by kubectl: {line}")
    })
}

fn not_in_mesh(what: &str, namespace: &str) -> String {
    format!(
        "{what} is not in the mesh: it has no container {PROXY_CONTAINER}. Label its namespace {INJECT_LABEL}={INJECT_ENABLED} \
         (`kubectl label namespace {namespace} {INJECT_LABEL}={INJECT_ENABLED}`) and restart it"
    )
}

fn in_sandbox(
    output: Result<weir_sandbox::client::Output, weir_sandbox::client::ClientError>,
    what: &str,
    sandbox: &str,
    namespace: &str,
) -> Result<Vec<u8>, Failure> {
    let output = output.map_err(|error| {
        let said = error.to_string();
        let no_proxy = said.contains("has no running container") && said.contains(PROXY_CONTAINER);
        Failure::failed(if no_proxy { not_in_mesh(what, namespace) } else { said })
    })?;
    if output.code == 0 {
        return Ok(output.stdout.into_bytes());
    }
    let said = output.stderr.trim();
    let reason = answer(said, "weir-proxy").or_else(|| answer(said, "weir-control"));
    let line = || said.lines().next().unwrap_or("it said nothing").to_owned();
    Err(Failure::failed(reason.unwrap_or_else(|| format!("{what} of sandbox {sandbox} can not be asked: {}", line()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        explain(text, "pod shop/web", "shop").to_string()
    }

    #[test]
    fn each_refusal_has_its_remedy() {
        for (text, part) in [
            ("Error from server (NotFound): pods \"web\" not found", "there is no pod shop/web: `kubectl get pods"),
            (
                "Error from server (BadRequest): container weir-proxy is not valid for pod web",
                "weir.dev/inject=enabled",
            ),
            ("error: container weir-proxy not found in pod web_shop", "is not in the mesh"),
            ("error: unable to upgrade connection: container not found (\"weir-proxy\")", "does not run now"),
            (
                "Error from server (Forbidden): pods \"web\" is forbidden: User \"u\" cannot create resource \"pods/exec\"",
                "ask for the right to create pods/exec",
            ),
            ("error: unrecognized subcommand 'admin'\n\nUsage: weir-proxy", "older than this command"),
            (
                "weir-proxy: it does not answer on 127.0.0.1:15000: refused\ncommand terminated with exit code 1",
                "the proxy of pod shop/web: it does not answer",
            ),
            ("The connection to the server x was refused", "The connection to the server x was refused"),
            ("", "kubectl said nothing"),
        ] {
            assert!(said(text).contains(part), "{text}: {}", said(text));
        }
    }

    #[test]
    fn pods_are_named_in_several_ways() {
        let reach = Reach::sandbox(Client::new(&weir_sandbox::Layout::new("default").unwrap()), "default");
        let pod = |text: &str, namespace: Option<&str>| {
            reach
                .pod(text, namespace)
                .map(|pod| format!("{} {}", pod.namespace, pod.name))
                .map_err(|error| error.to_string())
        };
        assert_eq!(pod("web", None).unwrap(), "default web");
        assert_eq!(pod("web.shop", None).unwrap(), "shop web");
        assert_eq!(pod("web.1", Some("shop")).unwrap(), "shop web.1");
        assert_eq!(pod("pod/web", Some("shop")).unwrap(), "shop web");
        assert_eq!(pod("deploy/web.shop", None).unwrap(), "shop deploy/web");
        for bad in ["", "-n", "a b", "service/web", "web/../x", "Web", "--kubeconfig=x"] {
            assert!(pod(bad, Some("shop")).is_err(), "{bad:?}");
        }
    }
}
