//! Container images without Docker: static binaries, and Debian's buildah that puts them into images from scratch.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};

/// The container that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "weir.test/pause:1";
/// What the pods of tests run: the crate `weir-test-app`, with busybox beside it.
pub const APP: &str = "weir.test/app:1";

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const BUSYBOX: &str = "/bin/busybox";

/// An image that is to be built.
#[derive(Debug)]
pub struct Image<'a> {
    /// With its tag: a kubelet tries to pull what has none.
    pub name: &'a str,
    /// Files of the machine, by the names that the Dockerfile has for them.
    pub files: Vec<(PathBuf, &'a str)>,
    /// How to build it.
    pub dockerfile: &'a str,
}

impl Image<'_> {
    /// Writes it into a `docker-archive` file, which appears complete or not at all.
    ///
    /// # Errors
    /// When buildah fails; what it said is in the error.
    pub fn build(&self, tar: &Path) -> Result<()> {
        let work = tar.with_extension(format!("{}.work", std::process::id()));
        let built = self.build_in(&work, tar);
        // What buildah leaves may be read-only to others, not to root.
        fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
        built.with_context(|| format!("image {}", self.name))
    }

    fn build_in(&self, work: &Path, tar: &Path) -> Result<()> {
        let context = work.join("context");
        fs::create_dir_all(&context)?;
        for (file, name) in &self.files {
            fs::copy(file, context.join(name)).with_context(|| file.display().to_string())?;
        }
        fs::write(context.join("Dockerfile"), self.dockerfile)?;
        let policy = work.join("policy.json");
        fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        let partial = work.join("image.tar");
        // Storage of its own: nothing stays in the machine's.
        let storage = |command: &mut Command| {
            command.arg("--root").arg(work.join("root")).arg("--runroot").arg(work.join("run"));
            command.args(["--storage-driver", "vfs"]);
        };
        let mut build = Command::new("buildah");
        storage(&mut build);
        build.args(["bud", "--isolation", "chroot", "--quiet", "--signature-policy"]).arg(&policy);
        build.args(["--tag", self.name]).arg(&context);
        run(&mut build)?;
        let mut push = Command::new("buildah");
        storage(&mut push);
        push.args(["push", "--quiet", "--signature-policy"]).arg(&policy).arg(self.name);
        push.arg(format!("docker-archive:{}:{}", partial.display(), self.name));
        run(&mut push)?;
        fs::rename(&partial, tar)?;
        Ok(())
    }
}

/// Builds packages of this workspace as static programs, and says where the programs lie.
///
/// # Errors
/// When cargo fails; what it said is on standard error.
pub fn static_binaries(packages: &[&str], release: bool) -> Result<Vec<PathBuf>> {
    let version = Command::new("rustc").arg("-vV").output().context("rustc")?;
    let version = String::from_utf8(version.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    // The target is named, though it is the machine's own: so procedural macros are built without the flag.
    let flags = format!("{} -C target-feature=+crt-static", std::env::var("RUSTFLAGS").unwrap_or_default());
    let mut command = Command::new("cargo");
    command.args(["build", "--locked", "--quiet", "--message-format=json-render-diagnostics", "--target", host]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    command.args(release.then_some("--release"));
    command.current_dir(WORKSPACE).env("RUSTFLAGS", flags.trim()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("cargo")?;
    if !output.status.success() {
        bail!("cargo build of {} failed", packages.join(", "));
    }
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    Ok(messages.filter_map(|message| Some(message.get("executable")?.as_str()?.into())).collect())
}

/// Puts the images that every cluster needs into a folder.
pub(crate) fn base(folder: &Path, tools: &Path, dns: bool) -> Result<()> {
    let app = static_binaries(&["weir-test-app"], false)?.pop().ok_or_else(|| anyhow!("cargo built no program"))?;
    let pause = Image {
        name: PAUSE,
        files: vec![(app.clone(), "app")],
        dockerfile: "FROM scratch\nCOPY app /pause\nUSER 65535:65535\nENTRYPOINT [\"/pause\", \"pause\"]\n",
    };
    pause.build(&folder.join("pause.tar"))?;
    let tools_image = Image {
        name: APP,
        files: vec![(app, "app"), (BUSYBOX.into(), "busybox")],
        dockerfile: "FROM scratch\nCOPY app /app\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n\
                     ENV PATH=/bin\nENTRYPOINT [\"/app\"]\n",
    };
    tools_image.build(&folder.join("app.tar"))?;
    if dns {
        // It changes with its program only, and lies beside it.
        let kept = tools.join("coredns.tar");
        if !kept.exists() {
            let coredns = Image {
                name: "weir.test/coredns:1",
                files: vec![(tools.join("coredns"), "coredns")],
                dockerfile: "FROM scratch\nCOPY coredns /coredns\nENTRYPOINT [\"/coredns\"]\n",
            };
            coredns.build(&kept)?;
        }
        fs::copy(&kept, folder.join("coredns.tar"))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().context("buildah")?;
    if !output.status.success() {
        bail!("buildah: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
