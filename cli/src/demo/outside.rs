//! Part 4: a pod that is not part of the mesh.

use weir_mesh::names::PREFIX as MARK;

use super::{CLIENT, Demo, OUTSIDER, Step, metrics, split::errors, view};

pub(super) fn run(demo: &mut Demo) -> Step {
    view::title("4. The pod of namespace outside, which has no label", "permissive: plaintext is let in, and seen");
    let status = demo.client.status()?;
    let outside = status.pods.iter().find(|(name, _)| name.starts_with("outside/"));
    let containers = outside.map_or(0, |(_, pod)| pod.status.containers.len());
    demo.expect(containers == 1, &format!("it has {containers} container and nothing else was added"));
    let marks: Vec<&str> = outside.map_or_else(Vec::new, |(_, pod)| {
        let keys = pod.annotations.keys().chain(pod.labels.keys());
        keys.map(String::as_str).filter(|key| key.starts_with(MARK)).collect()
    });
    demo.expect(
        outside.is_some() && marks.is_empty(),
        &format!(
            "it has no label and no annotation {MARK}{}",
            if marks.is_empty() { "…" } else { "… but it has some" }
        ),
    );
    // The same look at a pod of the mesh shows that the look itself works.
    let (without, with) = (demo.client.rules(OUTSIDER)?, demo.client.rules(CLIENT)?);
    let lines = |rules: &str| rules.lines().filter(|line| !line.trim().is_empty()).count();
    demo.expect(
        lines(&without) == 0 && with.contains("15001"),
        &format!(
            "its network namespace has {} lines of nft rules, that of the mesh's client {}",
            lines(&without),
            lines(&with)
        ),
    );
    let before = plaintext(demo)?;
    let report = demo.load(OUTSIDER, &["http://catalog.shop/", "--requests", "100"])?;
    let ok = report.statuses.get(&200).copied().unwrap_or(0);
    demo.expect(
        ok == 100 && report.failures == 0,
        &format!("{ok} of its 100 calls to http://catalog.shop/ succeeded{}", errors(&report)),
    );
    let seen = plaintext(demo)? - before;
    demo.expect(
        (seen - 100.0).abs() < 0.5,
        &format!("the proxies of catalog counted {seen:.0} plaintext requests (connection_security_policy=\"none\")"),
    );
    let output =
        demo.run(CLIENT, &["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://catalog/"])?;
    demo.expect(output.stdout == "200", "and the mesh's own client goes on as before");
    Ok(())
}

fn plaintext(demo: &Demo) -> Step<f64> {
    let status = demo.client.status()?;
    let mut count = 0.0;
    for (name, _) in status.pods.iter().filter(|(_, pod)| pod.labels.get("app").is_some_and(|app| app == "catalog")) {
        for sample in metrics::of(demo, name)? {
            if sample.name == "istio_requests_total"
                && sample.is("reporter", "destination")
                && sample.is("connection_security_policy", "none")
            {
                count += sample.value;
            }
        }
    }
    Ok(count)
}
