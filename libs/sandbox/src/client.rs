//! The client's side of the control socket, for `weir sandbox`, tests and the demo.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use crate::{
    events::Event,
    fds,
    layout::Layout,
    supervisor::protocol::{Exec, Request, Response, Status},
    tap::FlowReport,
};

/// Why the supervisor gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or the supervisor ended while it was asked.
    #[error("sandbox {name} is not running ({source}); start it by `weir sandbox up DIR`")]
    NotRunning {
        /// Name of the sandbox.
        name: String,
        /// What the socket said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("sandbox {name}: {source}")]
    Broken {
        /// Name of the sandbox.
        name: String,
        /// What the socket said.
        source: io::Error,
    },
    /// The supervisor says that it can not be.
    #[error("{0}")]
    Refused(String),
}

/// A way to the supervisor of one sandbox.
#[derive(Debug, Clone)]
pub struct Client {
    layout: Layout,
}

/// What a program in a container said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Client {
    /// A client; it connects when it is used.
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }

    fn broken(&self) -> impl Fn(io::Error) -> ClientError {
        let name = self.layout.name().to_owned();
        move |source| {
            use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
            let name = name.clone();
            match source.kind() {
                BrokenPipe | ConnectionReset | UnexpectedEof => ClientError::NotRunning { name, source },
                _ => ClientError::Broken { name, source },
            }
        }
    }

    fn ask(&self, request: &Request, files: &[RawFd]) -> Result<BufReader<UnixStream>, ClientError> {
        let stream = UnixStream::connect(self.layout.socket())
            .map_err(|source| ClientError::NotRunning { name: self.layout.name().to_owned(), source })?;
        let send = || -> io::Result<()> {
            let mut line = serde_json::to_vec(request)?;
            line.push(b'\n');
            let sent = fds::send(stream.as_raw_fd(), &line, files)?;
            (&stream).write_all(line.get(sent..).unwrap_or_default())
        };
        send().map_err(self.broken())?;
        Ok(BufReader::new(stream))
    }

    fn response(&self, reader: &mut BufReader<UnixStream>) -> Result<Response, ClientError> {
        let mut line = String::new();
        let n = reader.read_line(&mut line).map_err(self.broken())?;
        if n == 0 {
            return Err(self.broken()(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_str(&line).map_err(|error| self.broken()(error.into()))? {
            Response::Error(reason) => Err(ClientError::Refused(reason)),
            response => Ok(response),
        }
    }

    fn unexpected<T>(&self) -> Result<T, ClientError> {
        Err(self.broken()(io::Error::new(io::ErrorKind::InvalidData, "the supervisor answered something else")))
    }

    /// Everything there is.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn status(&self) -> Result<Status, ClientError> {
        let mut reader = self.ask(&Request::Status, &[])?;
        match self.response(&mut reader)? {
            Response::Status(status) => Ok(status),
            _ => self.unexpected(),
        }
    }

    /// Asks the supervisor to end everything; it answers before it begins.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn stop(&self) -> Result<(), ClientError> {
        let mut reader = self.ask(&Request::Stop, &[])?;
        self.response(&mut reader).map(|_| ())
    }

    /// Events from now on.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn follow(&self) -> Result<impl Iterator<Item = Event> + use<>, ClientError> {
        let mut reader = self.ask(&Request::Follow, &[])?;
        let client = self.clone();
        Ok(std::iter::from_fn(move || match client.response(&mut reader) {
            Ok(Response::Event(event)) => Some(event),
            _ => None,
        }))
    }

    /// Runs a program in a container with this process's own streams; its exit code.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn exec(&self, exec: Exec) -> Result<i32, ClientError> {
        let files = [io::stdin().as_raw_fd(), io::stdout().as_raw_fd(), io::stderr().as_raw_fd()];
        let mut reader = self.ask(&Request::Exec(exec), &files)?;
        self.exit_code(&mut reader)
    }

    fn exit_code(&self, reader: &mut BufReader<UnixStream>) -> Result<i32, ClientError> {
        match self.response(reader)? {
            Response::Exited(code) => Ok(code),
            _ => self.unexpected(),
        }
    }

    /// Runs a program in a pod's first container and keeps what it says.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn run(&self, pod: &str, command: &[&str]) -> Result<Output, ClientError> {
        self.run_in(pod, None, command)
    }

    /// Runs a program in a container and keeps what it says.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn run_in(&self, pod: &str, container: Option<&str>, command: &[&str]) -> Result<Output, ClientError> {
        let null = std::fs::File::open("/dev/null").map_err(self.broken())?;
        let (mut out, out_end) = io::pipe().map_err(self.broken())?;
        let (mut err, err_end) = io::pipe().map_err(self.broken())?;
        let exec = Exec {
            pod: pod.to_owned(),
            container: container.map(str::to_owned),
            command: command.iter().map(|part| (*part).to_owned()).collect(),
        };
        let files = [null.as_raw_fd(), out_end.as_raw_fd(), err_end.as_raw_fd()];
        let mut reader = self.ask(&Request::Exec(exec), &files)?;
        // Ours must be closed, or the pipes never end.
        drop((out_end, err_end));
        let read = |pipe: &mut dyn io::Read| {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = std::thread::scope(|scope| {
            let other = scope.spawn(move || read(&mut err));
            let stdout = read(&mut out);
            (stdout, other.join().unwrap_or_default())
        });
        let code = self.exit_code(&mut reader)?;
        Ok(Output { code, stdout, stderr })
    }

    /// The packet rules of a pod's network namespace, as `nft list ruleset` writes them; empty where there is none.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn rules(&self, pod: &str) -> Result<String, ClientError> {
        let mut reader = self.ask(&Request::Rules { pod: pod.to_owned() }, &[])?;
        match self.response(&mut reader)? {
            Response::Rules(rules) => Ok(rules),
            _ => self.unexpected(),
        }
    }

    /// Starts to look at the link of a pod.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn tap(&self, pod: &str) -> Result<TapHandle, ClientError> {
        let mut reader = self.ask(&Request::Tap { pod: pod.to_owned() }, &[])?;
        match self.response(&mut reader)? {
            Response::Tapping { .. } => Ok(TapHandle { client: self.clone(), reader }),
            _ => self.unexpected(),
        }
    }
}

/// A capture that goes on until it is stopped or dropped.
pub struct TapHandle {
    client: Client,
    reader: BufReader<UnixStream>,
}

impl TapHandle {
    /// Stops, and gives what was seen.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn stop(mut self) -> Result<Vec<FlowReport>, ClientError> {
        self.reader.get_ref().shutdown(Shutdown::Write).map_err(self.client.broken())?;
        match self.client.response(&mut self.reader)? {
            Response::Flows(flows) => Ok(flows),
            _ => self.client.unexpected(),
        }
    }
}
