//! Databases and proxies of other people as applications of pods. What they keep they keep in a folder of the test; they end with it.

use std::{fs, path::Path};

use crate::{Netns, Process};

/// Any program.
pub fn start(netns: &Netns, program: &str, words: &[impl AsRef<str>]) -> Process {
    let mut command = netns.command("setpriv");
    command.args(["--pdeathsig=KILL", program]).args(words.iter().map(AsRef::as_ref));
    Process::start(program, &mut command)
}

/// redis on this port.
pub fn redis(netns: &Netns, folder: &Path, port: u16) -> Process {
    fs::create_dir_all(folder).unwrap();
    let (folder, port) = (folder.display().to_string(), port.to_string());
    let words = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", &folder, "--port", &port];
    start(netns, "redis-server", &words)
}

/// MariaDB on this port, where everybody may do everything; `settings` are further words of its command line.
pub fn mariadb(netns: &Netns, folder: &Path, port: u16, settings: &[String]) -> Process {
    fs::create_dir_all(folder).unwrap();
    let here = folder.display();
    // Without InnoDB and the tables of privileges it starts in a moment.
    let mut words: Vec<String> = [
        "--no-defaults",
        "--skip-grant-tables",
        "--skip-innodb",
        "--default-storage-engine=MyISAM",
        "--skip-name-resolve",
        "--bind-address=0.0.0.0",
        "--user=root",
        "--lc-messages-dir=/usr/share/mysql",
    ]
    .map(str::to_owned)
    .to_vec();
    words.extend([format!("--datadir={here}"), format!("--socket={here}/socket")]);
    words.extend([format!("--pid-file={here}/pid"), format!("--port={port}")]);
    words.extend_from_slice(settings);
    start(netns, "mariadbd", &words)
}

/// haproxy with this configuration.
pub fn haproxy(netns: &Netns, folder: &Path, configuration: &str) -> Process {
    fs::create_dir_all(folder).unwrap();
    let file = folder.join("haproxy.cfg").display().to_string();
    fs::write(&file, configuration).unwrap();
    start(netns, "haproxy", &["-db", "-f", &file])
}

/// Runs a client of theirs to its end; what it printed.
pub fn ask(netns: &Netns, program: &str, words: &[&str]) -> String {
    let output = netns.command("timeout").args(["30", program]).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {words:?}: {text}");
    text
}
