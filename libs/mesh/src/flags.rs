//! What response flags mean, for people: the proxy puts them into metrics and logs, the command line explains them.

/// A response flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Its short name, as metrics and logs have it.
    pub name: &'static str,
    /// What has happened.
    pub means: &'static str,
    /// What to look at, or to change.
    pub remedy: &'static str,
}

impl Flag {
    /// The flag with this name, in any case of its letters.
    pub fn find(name: &str) -> Option<&'static Self> {
        FLAGS.iter().find(|flag| flag.name.eq_ignore_ascii_case(name))
    }
}

macro_rules! flags {
    ($($name:literal: $means:literal, $remedy:literal;)*) => {
        /// Every flag that a proxy may set, and `-` for none.
        pub const FLAGS: &[Flag] = &[$(Flag { name: $name, means: $means, remedy: $remedy },)*];
    };
}

flags! {
    "-":
        "no flag: the application's own answer, or one that a rule asks for: a redirect, 500 for a bad backend, 413 for too large a body, 403 for a caller that no access rule lets in",
        "the log's `reason` and `route_object` say which; `weir describe service/NAME` names bad backends, `weir describe pod/NAME` the access rules";
    "UH":
        "no endpoint of the service is healthy, or none is known, or the endpoint of a strict session is gone",
        "look at the Service's selector and its pods' readiness; `weir proxy-config POD endpoints` shows which are ejected or not well";
    "UF":
        "no connection to the endpoint could be made, or TLS with it failed",
        "see whether the application listens on the targetPort, whether a NetworkPolicy is in the way, and whether both proxies trust the same root";
    "UO":
        "a limit of the DestinationRule's connectionPool was reached",
        "raise the limit or add pods; `weir proxy-config POD clusters` shows the limits and how much of them is used";
    "NR":
        "no rule of the Service matches the request (404), or no server name of its TLSRoutes the connection",
        "add a rule without matches for everything else; `weir describe service/NAME` shows what is compared, in order";
    "NC":
        "the address is of no Service or pod any more, or its rules are not known yet",
        "see whether the Service was deleted; else `weir proxy-config POD` says whether the control plane is connected";
    "URX":
        "the request was sent again as often as its rule and the retry budget allow, and failed each time",
        "the flags beside it say how the last attempt failed";
    "UT":
        "the answer did not come within the rule's timeout, the attempt's, or the caller's own deadline",
        "see why the application is slow, or raise `timeouts` of the rule";
    "UC":
        "the endpoint closed its connection after the request was sent, and before its answer was whole",
        "look for restarts and crashes of the application, and for a keep-alive time shorter than its clients'";
    "UR":
        "the endpoint reset the request's stream",
        "the application gave the request up, or a limit of its HTTP/2 server was reached: its log says which";
    "LR":
        "this proxy ended the stream or the connection itself",
        "most often an access rule that no longer lets the caller in: `reason` in the access log says it";
    "DC":
        "the caller went away before it had its answer",
        "the caller's own time-out is shorter than the answer takes, or it was stopped";
    "DT":
        "the connection reached the longest time that it may last",
        "nothing: clients connect again";
    "SI":
        "nothing moved on the stream for as long as it may be idle",
        "send keep-alives, or have the stalled side read or write";
    "DPE":
        "the caller broke the protocol: what it sent is no valid HTTP",
        "`reason` in the access log says what was wrong; mend the client, or name the port's protocol where it is not HTTP";
    "UPE":
        "the endpoint broke the protocol: its answer is no valid HTTP",
        "mend the server, or name the port's protocol where it is not HTTP";
    "RL":
        "the rate limit of a TrafficPolicy refused the request",
        "raise `rateLimit`, or have the caller send less: it is counted for each client's proxy";
    "UAEX":
        "an external authorization refused the request",
        "ask whoever runs that authorization";
    "DF":
        "a name could not be resolved",
        "look at the cluster's DNS";
    "OM":
        "the proxy takes nothing new because its memory runs out",
        "raise the proxy's memory limit by the annotation weir.dev/proxy-memory-limit, or have it hold fewer connections";
    "DI":
        "a TrafficPolicy delayed the request on purpose",
        "take `fault.delay` away when the experiment is over";
    "FI":
        "a TrafficPolicy let the request fail on purpose",
        "take `fault.abort` away when the experiment is over";
    "IH":
        "a header that is checked strictly has a bad value",
        "mend the caller";
    "UMSDR":
        "the stream reached the longest time that it may last",
        "split what takes so long, or have the client go on with a new request";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_by_name_and_each_is_there_once() {
        for flag in FLAGS {
            assert_eq!(Flag::find(&flag.name.to_lowercase()), Some(flag));
            assert_eq!(FLAGS.iter().filter(|other| other.name == flag.name).count(), 1, "{}", flag.name);
            assert!(!flag.means.is_empty() && !flag.remedy.is_empty(), "{}", flag.name);
        }
        assert_eq!(Flag::find("XX"), None);
    }
}
