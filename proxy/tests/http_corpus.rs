//! Every line of the saved corpus: our verdict, hyper's, cut at every byte, and what would be forwarded.

mod http_support;

use http_support::{
    Case, End, Reading, corpus, forward, hyper_requests, hyper_response, read_requests, read_response, runtime,
};
use weir_proxy::http::Asked;

/// How a reader took the first message.
fn verdict<T>(reading: &Reading<T>) -> String {
    match (reading.messages.is_empty(), reading.end) {
        (false, _) => "ok".to_owned(),
        (true, End::Refused(status, _)) => status.to_string(),
        (true, end) => format!("{end:?}"),
    }
}

fn check<T>(name: &str, case: &Case, ours: &Reading<T>, hyper: &Reading<T>, faults: &mut Vec<String>) {
    let place = format!("{name}:{}: {}", case.line, case.bytes[..case.bytes.len().min(200)].escape_ascii());
    if verdict(ours) != case.ours {
        faults.push(format!("{place}\n    ours: {} ({:?}), expected {}", verdict(ours), ours.end, case.ours));
    }
    let expected = if case.hyper == "=" { case.ours == "ok" } else { case.hyper == "ok" };
    if hyper.messages.is_empty() == expected {
        faults.push(format!("{place}\n    hyper takes it: {}, expected {expected}", !expected));
    }
}

#[test]
fn verdicts_on_requests() {
    let runtime = runtime();
    let mut faults = vec![];
    let cases = corpus("requests.txt");
    assert!(cases.len() >= 120, "{} cases", cases.len());
    for case in &cases {
        let (ours, hyper) = (read_requests(&[&case.bytes]), runtime.block_on(hyper_requests(&case.bytes)));
        check("requests.txt", case, &ours, &hyper, &mut faults);
        // Where both take it they take the same, up to the first that one of them refuses.
        for (ours, hyper) in ours.messages.iter().zip(&hyper.messages) {
            if (&ours.method, &ours.body) != (&hyper.method, &hyper.body) {
                faults.push(format!("requests.txt:{}: {ours:?}\n    is not {hyper:?}", case.line));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn verdicts_on_responses() {
    let runtime = runtime();
    let mut faults = vec![];
    for case in &corpus("responses.txt") {
        let ours = read_response(&[&case.bytes], Asked::Other);
        let hyper = runtime.block_on(hyper_response(&case.bytes, hyper::Method::GET));
        check("responses.txt", case, &ours, &hyper, &mut faults);
        if let (Some(ours), Some(hyper)) = (ours.messages.first(), hyper.messages.first())
            && (ours.status, &ours.body) != (hyper.status, &hyper.body)
        {
            faults.push(format!("responses.txt:{}: {ours:?}\n    is not {hyper:?}", case.line));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Where the network cuts a stream makes no difference.
#[test]
fn cut_at_every_byte() {
    for case in &corpus("requests.txt") {
        let whole = read_requests(&[&case.bytes]);
        let step = if case.bytes.len() > 2000 { 997 } else { 1 };
        for at in (0..=case.bytes.len()).step_by(step) {
            let (front, back) = case.bytes.split_at(at);
            assert_eq!(read_requests(&[front, back]), whole, "line {} cut at {at}", case.line);
        }
        let single: Vec<&[u8]> = case.bytes.chunks(1).collect();
        assert_eq!(read_requests(&single), whole, "line {} byte by byte", case.line);
    }
    for case in &corpus("responses.txt") {
        for asked in [Asked::Other, Asked::Head] {
            let whole = read_response(&[&case.bytes], asked);
            let single: Vec<&[u8]> = case.bytes.chunks(1).collect();
            assert_eq!(read_response(&single, asked), whole, "line {} byte by byte", case.line);
        }
    }
}

/// What leaves us is one request for hyper and for us, the same as came in; sent through us again, nothing changes.
#[test]
fn what_is_forwarded_is_one_same_request() {
    let runtime = runtime();
    for case in corpus("requests.txt").iter().filter(|case| case.ours == "ok") {
        let (received, sent) = forward(&case.bytes);
        assert_eq!(received.messages.len(), sent.len());
        for (message, bytes) in received.messages.iter().zip(&sent) {
            let text = bytes.escape_ascii();
            let hyper = runtime.block_on(hyper_requests(bytes));
            assert_eq!((hyper.messages.len(), hyper.end), (1, End::Clean), "line {}: {text}", case.line);
            assert_eq!(
                (&hyper.messages[0].method, &hyper.messages[0].body),
                (&message.method, &message.body),
                "{text}"
            );
            let (again, sent_again) = forward(bytes);
            assert_eq!((again.messages.len(), again.end), (1, End::Clean), "line {}: {text}", case.line);
            assert_eq!(again.messages[0].body, message.body, "{text}");
            assert_eq!(sent_again, std::slice::from_ref(bytes), "line {}: {text}", case.line);
            if message.method != "CONNECT" {
                assert_eq!(hyper.messages[0].target, again.messages[0].target, "{text}");
            }
            assert_eq!(hyper.messages[0].headers.len(), again.messages[0].headers.len(), "{text}");
        }
    }
}
