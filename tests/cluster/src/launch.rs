//! Starting a cluster from outside, by a test or by a person.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{control::Facts, guard, images, layout::Layout, options::Options, requirements, supervisor::STAY, tools};

/// A cluster that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) layout: Layout,
    pub(crate) facts: Facts,
    pub(crate) guard: Child,
}

/// Lets a cluster stay when this process ends.
pub(crate) fn let_go(guard: &mut Child, layout: &Layout) -> Result<()> {
    let mut stdin = guard.stdin.take().context("the guard has no input")?;
    stdin.write_all(STAY.as_bytes())?;
    fs::remove_file(layout.attached())?;
    Ok(())
}

/// Starts a cluster and waits until it is ready. It ends with this process, whatever ends that, unless it is let go.
pub(crate) fn start(options: &Options) -> Result<Launched> {
    if let Some(missing) = requirements::missing() {
        bail!(missing);
    }
    ensure!((1..=9).contains(&options.nodes), "a cluster has 1 to 9 nodes, not {}", options.nodes);
    let swept = guard::sweep().context("remove what an earlier cluster left")?;
    if swept > 0 {
        eprintln!("weir-cluster: removed what {swept} earlier cluster(s) left");
    }
    let tools = tools::built("cluster")?;
    let (layout, hold) = Layout::create().context("a folder for the cluster")?;
    let started =
        images::base(&layout.images(), &tools, options.dns).and_then(|()| start_guard(&layout, options, &tools));
    match started {
        Ok((guard, facts)) => {
            drop(hold);
            Ok(Launched { layout, facts, guard })
        }
        Err(error) => {
            drop(hold);
            guard::end(&layout)?;
            Err(error)
        }
    }
}

fn start_guard(layout: &Layout, options: &Options, tools: &Path) -> Result<(Child, Facts)> {
    let log = File::create(layout.logs().join("supervisor.log"))?;
    let mut command = Command::new(own_program()?);
    command.arg("guard").arg(layout.root()).arg(serde_json::to_string(options)?).arg(tools);
    command.stdout(Stdio::piped()).stderr(log);
    // Interrupting a test at the terminal reaches the test; the cluster then ends in order, by the end of its input.
    command.process_group(0);
    command.stdin(Stdio::piped());
    layout.set_attached()?;
    let mut guard = command.spawn().context("start the guard")?;
    let mut line = String::new();
    BufReader::new(guard.stdout.take().context("the guard has no output")?).read_line(&mut line)?;
    let said: Result<Facts, String> = match serde_json::from_str(&line) {
        Ok(said) => said,
        // Its log is with the folder, which is removed by now.
        Err(_) => Err(format!("the cluster ended before it said anything ({})", guard.wait()?)),
    };
    match said {
        Ok(facts) => Ok((guard, facts)),
        Err(error) => {
            guard.wait()?;
            Err(anyhow!(error).context("the cluster did not start"))
        }
    }
}

/// The program of this crate, also from within a test.
fn own_program() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folders = this.ancestors().skip(1).take(2);
    let program = folders.map(|folder| folder.join("weir-cluster")).find(|path| fs::exists(path).unwrap_or(false));
    program.context("the program weir-cluster is not beside this one: build it by `cargo build -p weir-cluster`")
}
