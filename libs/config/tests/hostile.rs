//! Whatever is in a file: an answer, never a panic, and every problem in one printable line.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use proptest::prelude::*;

const GOOD: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalog, namespace: shop, labels: {a: b}}
spec:
  parentRefs: [{kind: Service, group: '', name: catalog, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /a}, headers: [{name: x, value: 'y'}], method: GET}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}]
    backendRefs: [{name: v1, port: 80, weight: 1}]
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {clusterIP: 198.19.0.1, selector: {app: catalog}, ports: [{name: http, port: 80, targetPort: web}]}
";

fn check(text: &str) {
    if let Err(problems) = weir_config::parse("f.yaml", text) {
        assert!(!problems.is_empty());
        for problem in problems {
            let line = problem.to_string();
            assert!(line.starts_with("f.yaml"), "{line}");
        }
    }
}

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,200}") {
        check(&text);
    }

    #[test]
    fn any_structure(text in "([a-z]{1,4}|[:{}\\[\\],&*!|>'\"#%@`~? \n-]){0,120}") {
        check(&text);
    }

    #[test]
    fn a_good_file_with_a_piece_replaced(at in 0..GOOD.len(), len in 0_usize..40, with in "([a-z0-9]{0,3}|[:{}\\[\\],&*!'\" \n-]{0,3}|null|-1|99999999999|\\{\\}|\\[\\])") {
        let end = (at + len).min(GOOD.len());
        check(&format!("{}{with}{}", &GOOD[..at], &GOOD[end..]));
    }
}
