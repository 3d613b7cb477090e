//! Label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Whether labels satisfy a selector, as an API server reads it: the empty selector takes all, an unknown operator none.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|wanted| {
            let have = labels.get(&wanted.key);
            let listed = have.is_some_and(|have| wanted.values.iter().flatten().any(|value| value == have));
            match wanted.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => have.is_some(),
                "DoesNotExist" => have.is_none(),
                _ => false,
            }
        })
}

/// Whether labels hold all pairs of a Service's selector. A Service without a selector selects nothing.
pub fn selects(selector: Option<&Labels>, labels: &Labels) -> bool {
    selector.is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_an_api_server_reads_them() {
        let labels = Labels::from([("a".to_owned(), "1".to_owned())]);
        let selector = |text: &str| -> LabelSelector { serde_json::from_str(text).unwrap() };
        for (text, wanted) in [
            ("{}", true),
            (r#"{"matchLabels":{"a":"1"}}"#, true),
            (r#"{"matchLabels":{"a":"2"}}"#, false),
            (r#"{"matchExpressions":[{"key":"a","operator":"In","values":["1","2"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"b","operator":"NotIn","values":["1"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"a","operator":"DoesNotExist"}]}"#, false),
            (r#"{"matchExpressions":[{"key":"a","operator":"Gt","values":["0"]}]}"#, false),
        ] {
            assert_eq!(matches(&selector(text), &labels), wanted, "{text}");
        }
        assert!(!selects(None, &labels) && !selects(Some(&Labels::new()), &labels));
    }
}
