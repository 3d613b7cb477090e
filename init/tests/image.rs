//! The image with iptables: what `tools/iptables` puts into it is enough for every rule, and no more is there to help.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::path::PathBuf;

use support::{Netns, can_run, command};
use weir_init::Variant;

/// The root of the image, gone when dropped.
struct Root(PathBuf);

impl Root {
    fn new() -> Self {
        let root = std::env::temp_dir().join(format!("weir-image-{}", std::process::id()));
        std::fs::create_dir_all(root.join("proc")).unwrap();
        command("../tools/iptables", &[root.to_str().unwrap()], None);
        Self(root)
    }

    /// Runs a program of the image, with nothing but the image in sight.
    fn run(&self, netns: &Netns, program: &str, arguments: &str, input: &str) -> String {
        let root = self.0.display();
        let script = format!(
            "mount -t proc proc {root}/proc && export XTABLES_LOCKFILE=/proc/self/fd/0 &&
             exec chroot {root} /usr/sbin/{program} {arguments}"
        );
        netns.exec_with("unshare", &["--mount", "sh", "-c", &script], Some(input))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_images_programs_take_every_rule() {
    if !can_run() {
        return;
    }
    let root = Root::new();
    let mut goldens = 0;
    for golden in std::fs::read_dir("tests/golden").unwrap() {
        let path = golden.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "iptables") {
            continue;
        }
        goldens += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let (v4, v6) = text.split_once("# ip6tables-restore --noflush\n").unwrap();
        for variant in Variant::ALL {
            let netns = Netns::new("image");
            for (program, rules) in [("iptables", v4), ("ip6tables", v6)] {
                root.run(&netns, &format!("{program}-{variant}-restore"), "--noflush --wait=5", rules);
                let saved = root.run(&netns, &format!("{program}-{variant}-save"), "", "");
                let count = |text: &str| text.lines().filter(|line| line.starts_with("-A WEIR_")).count();
                assert_eq!(count(&saved), count(rules), "{} by {program}-{variant}:\n{saved}", path.display());
            }
        }
    }
    assert!(goldens >= 6);
}
