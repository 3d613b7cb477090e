//! A browser asks across origins: Chromium without a screen, a page of one Service and rules of another, all through the mesh.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{io::Write as _, net::Ipv4Addr};

use serde_json::json;
use weir_tests::{App, Flow, Pod, PodSpec, Process, World, is_root, tool, until};

/// Asks the other origin in several ways, and writes what came of each into the document.
const PAGE: &str = r#"<!doctype html><body>asking<script>
const ask = async (name, path, options) => {
    try {
        const answer = await fetch("http://api.test" + path, options);
        return name + "=" + answer.status + "," + answer.headers.get("x-pod") + "," + answer.headers.get("x-received");
    } catch { return name + "=refused"; }
};
(async () => {
    const said = [
        await ask("put", "/ruled", {method: "PUT", headers: {"x-token": "1"}, credentials: "include"}),
        await ask("get", "/ruled"),
        await ask("delete", "/ruled", {method: "DELETE"}),
        await ask("header", "/ruled", {headers: {"x-other": "1"}}),
        await ask("elsewhere", "/free", {method: "PUT"}),
    ];
    document.body.textContent = said.join(" ");
})();
</script></body>"#;

struct Browser<'a> {
    pod: &'a Pod,
    page: Ipv4Addr,
    api: Ipv4Addr,
    folder: std::path::PathBuf,
}

impl Browser<'_> {
    /// What the page has become.
    fn reads(&self, origin: &str) -> String {
        let names = format!(
            "--host-resolver-rules=MAP page.test {page}, MAP other.test {page}, MAP api.test {}",
            self.api,
            page = self.page
        );
        let mut command = self.pod.netns.command("timeout");
        command
            .args(["--kill-after=5", "40", "chromium-headless-shell", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-features=HttpsUpgrades", "--virtual-time-budget=20000", "--dump-dom", &names])
            .arg(format!("--user-data-dir={}", self.folder.display()))
            .arg(format!("{origin}/"));
        let mut browser = Process::start("chromium", &mut command);
        browser.wait(std::time::Duration::from_secs(60));
        let document = browser.out.all().join("\n");
        let text = document.split("<body>").nth(1).and_then(|body| body.split("</body>").next());
        text.unwrap_or_else(|| panic!("no page: {document}, {:?}", browser.err.all())).trim().to_owned()
    }
}

/// The browser asks first and believes the rule; the application never hears of the question.
#[test]
fn a_page_may_ask_what_the_rule_allows() {
    if !is_root() || tool::debian("chromium-headless-shell").is_none() {
        return;
    }
    let world = World::new("browser");
    let server = |name: &str| world.pod_unready(PodSpec::new(name).port("http", 8080));
    let (page, api) = (server("page"), server("api"));
    let _site = App::http(&page.netns, 8080, |_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n{PAGE}", PAGE.len())?;
        Ok(Flow::Keep)
    });
    let app = App::echo(&api.netns, 8080, "api");
    let ports = [("http", 80, 8080)];
    let addresses =
        [("page", 10), ("api", 11)].map(|(name, last)| world.service(name, last, &json!({"app": name}), &ports));
    let cors = json!({"type": "CORS", "cors": {
        "allowOrigins": ["http://page.test"], "allowMethods": ["GET", "PUT"], "allowHeaders": ["x-token"],
        "exposeHeaders": ["x-pod"], "allowCredentials": true, "maxAge": 60}});
    let backend = json!([{"name": "api", "port": 80}]);
    world.route(
        "api",
        &json!([
            {"matches": [{"path": {"type": "Exact", "value": "/ruled"}}], "filters": [cors], "backendRefs": backend},
            {"backendRefs": backend},
        ]),
    );
    let client = world.pod(PodSpec::new("client"));
    [&page, &api].iter().for_each(|pod| pod.wait_ready());
    until("the client's proxy has the rules", || {
        let _ = client.connect((addresses[1], 80).into()).get("/warm");
        client.admin("/config_dump").contains("HTTPRoute/shop/api/0/0").then_some(())
    });
    let browser = Browser { pod: &client, page: addresses[0], api: addresses[1], folder: world.path("chromium") };
    let asked = || -> Vec<String> {
        let all = app.requests.lock().unwrap();
        all.iter()
            .filter_map(|request| request.head.lines().next().map(str::to_owned))
            .filter(|line| !line.contains("/warm"))
            .collect()
    };

    let said = browser.reads("http://page.test");
    // What the rule does not expose the page does not see.
    assert_eq!(said, "put=200,api,null get=200,api,null delete=refused header=refused elsewhere=refused");
    let arrived = asked();
    assert_eq!(
        arrived,
        ["PUT /ruled HTTP/1.1", "GET /ruled HTTP/1.1", "OPTIONS /free HTTP/1.1"],
        "the questions for /ruled were answered by the proxy, the one for /free by the application"
    );

    // The request of another origin is refused by its browser, also where it needed no question.
    let said = browser.reads("http://other.test");
    assert_eq!(said, "put=refused get=refused delete=refused header=refused elsewhere=refused");
    let changed = asked().split_off(arrived.len());
    assert!(changed.iter().all(|line| !line.starts_with("PUT") && !line.starts_with("DELETE")), "{changed:?}");
}
