//! Heads: from the `h2` crate's parts to the codec-neutral head, and the way back with edits.

use bytes::{BufMut, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri,
    header::{COOKIE, Entry, HOST, TE},
    request::Parts,
    uri::PathAndQuery,
};

use crate::http::{Edit, Edits, Framing, Limits, Refused, RequestHead, Version, h1::RequestDecoder};

/// The neutral head of a request; `ends` where no body follows. It is read from the text that the request would be in HTTP/1.1, by
/// the same reader: what is a host, a path or a header there is one here.
///
/// # Errors
/// [`Refused`] with the status to answer. The connection can go on: other streams are not concerned.
pub fn request(parts: &Parts, ends: bool, limits: &Limits) -> Result<RequestHead, Refused> {
    let bad = Refused::bad_request;
    let mut text = BytesMut::with_capacity(512);
    text.put_slice(parts.method.as_str().as_bytes());
    text.put_u8(b' ');
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    match (&parts.method, parts.uri.path_and_query()) {
        (&Method::CONNECT, _) => text.put_slice(authority.ok_or(bad("CONNECT without an authority"))?),
        (_, Some(path)) => text.put_slice(path.as_str().as_bytes()),
        (_, None) => return Err(bad("a request without a path")),
    }
    text.put_slice(b" HTTP/1.1\r\n");
    let mut hosts = parts.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("several Host headers"));
    }
    if let (Some(authority), Some(host)) = (authority, host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(bad("the Host header is another one than :authority"));
    }
    if let Some(host) = authority.or(host) {
        line(&mut text, "host", host);
    }
    for (name, value) in &parts.headers {
        let value = value.as_bytes();
        if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = value {
            return Err(bad("a header value begins or ends with a space"));
        }
        if name == TE && !value.eq_ignore_ascii_case(b"trailers") {
            return Err(bad("a TE header other than trailers"));
        }
        if name != HOST && name != COOKIE {
            line(&mut text, name.as_str(), value);
        }
    }
    // A browser cuts its cookies into several fields, for the sake of compression (RFC 9113, 8.2.3).
    let mut cookies = parts.headers.get_all(COOKIE).iter();
    if let Some(first) = cookies.next() {
        text.put_slice(b"cookie: ");
        text.put_slice(first.as_bytes());
        for more in cookies {
            text.put_slice(b"; ");
            text.put_slice(more.as_bytes());
        }
        text.put_slice(b"\r\n");
    }
    text.put_slice(b"\r\n");
    let head = RequestDecoder::new().decode(&mut text, limits)?;
    let mut head = head.filter(|_| text.is_empty()).ok_or(bad("the request is malformed"))?;
    head.version = Version::Http2;
    head.keep_alive = true;
    if head.framing == Framing::None && !ends {
        head.framing = Framing::Chunked;
    }
    Ok(head)
}

fn line(text: &mut BytesMut, name: &str, value: &[u8]) {
    text.put_slice(name.as_bytes());
    text.put_slice(b": ");
    text.put_slice(value);
    text.put_slice(b"\r\n");
}

/// The request as it goes on: the path as it was matched, and the edits in its headers. `None` where that is no request that HTTP/2 can
/// say, which what was read before never is. The headers are taken; the next time they are written anew from the head.
pub fn forwarded(parts: &mut Parts, head: &RequestHead, edits: &[&Edits]) -> Option<http::Request<()>> {
    let mut uri = parts.uri.clone().into_parts();
    if !head.is_connect() {
        let same = uri.path_and_query.as_ref().is_some_and(|received| {
            received.path().as_bytes() == head.path() && received.query().map(str::as_bytes) == head.query()
        });
        if !same {
            let mut path = BytesMut::from(head.path());
            if let Some(query) = head.query() {
                path.put_u8(b'?');
                path.put_slice(query);
            }
            uri.path_and_query = Some(PathAndQuery::from_maybe_shared(path.freeze()).ok()?);
        }
        // A client that names its host by a header alone: both are said, as by one that uses `:authority`.
        if uri.authority.is_none() {
            uri.authority = Some(head.authority().try_into().ok()?);
        }
        uri.scheme.get_or_insert(http::uri::Scheme::HTTP);
    }
    let mut request = http::Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    let mut headers = std::mem::take(&mut parts.headers);
    if headers.is_empty() {
        headers.extend(head.headers().filter_map(|(name, value)| {
            Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
        }));
    }
    headers.remove(HOST);
    *request.headers_mut() = headers;
    request.extensions_mut().clear();
    apply(request.headers_mut(), edits);
    Some(request)
}

/// Changes headers: the lists one after the other. What is added to a header with a value is joined to its last one, but for `set-cookie`.
pub fn apply(headers: &mut HeaderMap, edits: &[&Edits]) {
    for edit in edits.iter().flat_map(|list| list.iter()) {
        let Ok(name) = HeaderName::from_bytes(edit.name()) else { continue };
        match edit {
            Edit::Remove(_) => {
                headers.remove(&name);
            }
            Edit::Set(_, value) => {
                if let Ok(value) = HeaderValue::from_maybe_shared(value.shared()) {
                    headers.insert(name, value);
                }
            }
            Edit::Add(_, value) => add(headers, name, value.as_bytes()),
        }
    }
}

fn add(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    let Ok(alone) = HeaderValue::from_bytes(value) else { return };
    if name == http::header::SET_COOKIE {
        headers.append(name, alone);
        return;
    }
    match headers.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(alone);
        }
        Entry::Occupied(mut entry) => {
            if let Some(last) = entry.iter_mut().next_back() {
                let joined = if last.is_empty() {
                    alone
                } else {
                    let text = [last.as_bytes(), b",", value].concat();
                    HeaderValue::from_bytes(&text).unwrap_or(alone)
                };
                *last = joined;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Name, Value};

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn read(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<RequestHead, Refused> {
        request(&parts(method, uri, headers), false, &Limits::default())
    }

    #[test]
    fn a_request_reads_as_it_would_in_http1() {
        let parts = parts(
            "POST",
            "http://Shop.test:80/a/../b//c?x=/../y",
            &[("x-a", "1"), ("cookie", "a=1"), ("cookie", "b=2")],
        );
        let head = request(&parts, false, &Limits::default()).unwrap();
        assert_eq!((head.method(), head.path(), head.query()), (&b"POST"[..], &b"/b/c"[..], Some(&b"x=/../y"[..])));
        assert_eq!(
            (head.authority(), head.version(), head.framing()),
            (&b"Shop.test:80"[..], Version::Http2, Framing::Chunked)
        );
        assert_eq!(head.header("cookie").collect::<Vec<_>>(), [b"a=1; b=2"]);
        let mut edits = Edits::new();
        edits.set(Name::new("x-b").unwrap(), Value::new("2").unwrap());
        edits.add(Name::new("x-a").unwrap(), Value::new("3").unwrap());
        let mut parts = parts;
        for cookies in [2, 1] {
            let on = forwarded(&mut parts, &head, &[&edits]).unwrap();
            assert_eq!(on.uri(), "http://Shop.test:80/b/c?x=/../y");
            assert_eq!((on.headers()["x-a"].as_bytes(), on.headers()["x-b"].as_bytes()), (&b"1,3"[..], &b"2"[..]));
            assert_eq!(on.headers().get_all("cookie").iter().count(), cookies, "as they came, and then from the head");
            assert_eq!(on.headers().len(), 2 + cookies);
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (method, uri, headers) in [
            ("GET", "http://h/%00", &[][..]),
            ("GET", "http://h/..%2f..", &[]),
            ("GET", "http://h/", &[("host", "other")]),
            ("GET", "http://h/", &[("host", "h"), ("host", "h")]),
            ("GET", "/", &[]),
            ("GET", "http://h/", &[("x", " a")]),
            ("GET", "http://h/", &[("te", "gzip")]),
            ("GET", "http://u@h/", &[]),
            ("CONNECT", "h", &[]),
            ("GET", "http://h/", &[("expect", "something")]),
        ] {
            let result = read(method, uri, headers);
            if uri == "http://h/..%2f.." {
                // Whatever the normaliser says of it, it is the same as in HTTP/1.1.
                let mut text = BytesMut::from(&b"GET /..%2f.. HTTP/1.1\r\nhost: h\r\n\r\n"[..]);
                let same = RequestDecoder::new().decode(&mut text, &Limits::default());
                assert_eq!(result.is_err(), same.is_err());
                continue;
            }
            assert!(result.is_err(), "{method} {uri} {headers:?}");
        }
        assert!(read("GET", "http://h/", &[("host", "H")]).is_ok());
        assert!(read("GET", "/", &[("host", "h")]).is_ok());
    }

    #[test]
    fn limits_hold() {
        let long = "a".repeat(17_000);
        assert_eq!(read("GET", &format!("http://h/{long}"), &[]).unwrap_err().status, 414);
        let headers: Vec<(String, String)> = (0..101).map(|n| (format!("x-{n}"), "1".into())).collect();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(read("GET", "http://h/", &headers).unwrap_err().status, 431);
    }

    #[test]
    fn a_host_alone_becomes_the_authority() {
        let mut parts = parts("GET", "/x", &[("host", "h:1")]);
        let head = request(&parts, true, &Limits::default()).unwrap();
        let on = forwarded(&mut parts, &head, &[]).unwrap();
        assert_eq!((on.uri().to_string(), on.headers().contains_key("host")), ("http://h:1/x".into(), false));
        assert_eq!(head.framing(), Framing::None);
    }
}
