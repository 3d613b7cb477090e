//! Names and numbers of capabilities, and what a container's security context leaves of them.

/// Names by number (`linux/capability.h`), without `CAP_`.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containerd gives a container that asks for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Numbers of what is left after `add` and `drop` of a security context; `ALL` stands for all.
///
/// # Errors
/// The name that is none.
pub fn resolve(add: &[String], drop: &[String]) -> Result<Vec<u8>, String> {
    let all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut kept: Vec<u8> = if all(add) {
        (0..NAMES.len()).filter_map(|n| u8::try_from(n).ok()).collect()
    } else if all(drop) {
        Vec::new()
    } else {
        DEFAULT.iter().filter_map(|name| number(name)).collect()
    };
    for name in drop.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        let gone = number(name).ok_or_else(|| name.clone())?;
        kept.retain(|have| *have != gone);
    }
    for name in add.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        let new = number(name).ok_or_else(|| name.clone())?;
        if !kept.contains(&new) {
            kept.push(new);
        }
    }
    Ok(kept)
}

fn number(name: &str) -> Option<u8> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    u8::try_from(NAMES.iter().position(|known| *known == name)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_left() {
        assert_eq!(resolve(&[], &list(&["ALL"])).unwrap(), [] as [u8; 0]);
        assert_eq!(resolve(&list(&["NET_ADMIN"]), &list(&["ALL"])).unwrap(), [12]);
        assert_eq!(resolve(&[], &[]).unwrap().len(), 14);
        assert!(!resolve(&[], &list(&["CAP_KILL"])).unwrap().contains(&5));
        assert_eq!(resolve(&list(&["NET_ADMNI"]), &[]), Err("NET_ADMNI".into()));
    }
}
