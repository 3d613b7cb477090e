//! The redirect of a pod's traffic: rules, netlink, check.
