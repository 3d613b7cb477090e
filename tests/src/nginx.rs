//! nginx as the application of a pod.

use std::{fs, path::Path};

use crate::{Netns, Process, until, world::at};

/// Starts nginx with these `server` blocks, and waits until it listens on a port. `ROOT` in them is the folder, whose one document has
/// 1,024 bytes. What it keeps for itself it keeps there.
pub fn start(netns: &Netns, folder: &Path, servers: &str, port: u16) -> Process {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("index.html"), "x".repeat(1024)).unwrap();
    let here = folder.display().to_string();
    let config = format!(
        "daemon off; master_process off; pid {here}/pid; error_log {here}/error;
         events {{ worker_connections 4096; }}
         http {{
             access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;
             fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
             {}
         }}",
        servers.replace("ROOT", &here)
    );
    fs::write(folder.join("conf"), config).unwrap();
    let mut command = netns.command("setpriv");
    command.args(["--pdeathsig=KILL", "nginx", "-c"]).arg(folder.join("conf")).arg("-e").arg(folder.join("error"));
    let mut process = Process::start("nginx", &mut command);
    until("nginx listens", || {
        assert!(process.is_running(), "{:?}", fs::read_to_string(folder.join("error")));
        netns.connect(at([127, 0, 0, 1], port)).ok()
    });
    process
}
