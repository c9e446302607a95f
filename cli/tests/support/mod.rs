//! Runs the real binary as a child process, and sends plain HTTP to its servers.
//!
//! No helper waits for a fixed time. A server has started when its log says so, and a condition is
//! polled until it holds, at most for [`HANG`].
pub mod browser;
pub mod markdown;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Maximum time to wait for the next log line, the next bytes of a response, the next message of a
/// browser, or a condition. Even a slow machine needs far less, so a longer wait means that a
/// process hangs.
pub const HANG: Duration = Duration::from_secs(120);

/// Returns a command that runs the binary. The variables `IMT_...` of the test process are removed,
/// because they would set flags.
pub fn imt(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imt"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("IMT_")) {
        command.env_remove(name);
    }
    // The user's contexts must not change the behaviour either.
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the binary and waits for its end.
pub fn run(args: &[&str]) -> Output {
    imt(args).output().expect("the binary starts")
}

/// Returns the standard output of a process as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

/// Returns the standard error of a process as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("output is UTF-8")
}

/// A server in a separate process. Dropping it kills the process.
pub struct Server {
    child: Child,
    /// Address `HOST:PORT` that the server serves, as its log names it.
    pub address: String,
    /// Lines of the log before the line with the address.
    pub start_log: Vec<String>,
    log: Receiver<String>,
}

impl Server {
    /// Starts the binary and waits until its log names the served address.
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(imt(args))
    }

    /// Starts a command that runs the binary, and waits until its log names the served address.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let lines = BufReader::new(child.stderr.take().expect("standard error is piped")).lines();
        let (send, log) = channel();
        std::thread::spawn(move || {
            // The thread reads the pipe to its end, even if nobody receives the lines. Otherwise
            // the child would block on a full pipe.
            for line in lines.map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut seen = Vec::new();
        let address = loop {
            match log.recv_timeout(HANG) {
                Ok(line) => match line.split_once("serves http://") {
                    Some((_, address)) => break address.trim().to_owned(),
                    None => seen.push(line),
                },
                Err(_) => panic!("{command:?} never said where it serves:\n{}", seen.join("\n")),
            }
        };
        Self {
            child,
            address,
            start_log: seen,
            log,
        }
    }

    /// Starts a node on a free port, unless `more` has another `--listen`.
    pub fn node(name: &str, data: &str, more: &[&str]) -> Self {
        let named = ["node", "start", "--name", name, "--data", data];
        let free_port: &[&str] = match more.contains(&"--listen") {
            true => &[],
            false => &["--listen", "127.0.0.1:0"],
        };
        Self::start(&[&named[..], free_port, more].concat())
    }

    /// Returns the URL of the server, `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the id of the server's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns `true` if a logged line that was not read before contains `text`. Reads no line
    /// after the first such line.
    pub fn said(&self, text: &str) -> bool {
        self.log.try_iter().any(|line| line.contains(text))
    }

    /// Kills the process with `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child can be waited for");
    }

    /// Waits for a process that ends without a signal. Returns its exit code.
    pub fn ended(mut self) -> Option<i32> {
        self.child.wait().expect("the child can be waited for").code()
    }

    /// Sends SIGTERM and waits for the end of the process. Returns its exit code and the log lines
    /// that were not read before, without those of `start_log`.
    pub fn terminate(mut self) -> (Option<i32>, Vec<String>) {
        let status = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
        let status = self.child.wait().expect("the child can be waited for");
        (status.code(), self.log.iter().collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process. It is no error if the process has ended already.
pub fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .output();
    sent.expect("kill runs");
}

/// An HTTP response: status, head and body.
pub struct Answer {
    /// Status code of the response.
    pub status: u16,
    /// Status line and headers, converted to lower case.
    pub head: String,
    /// Body of the response, as text.
    pub body: String,
}

impl Answer {
    /// Parses the body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }
}

/// Sends one HTTP/1.1 request on a new connection, and reads the response until the server closes
/// the connection. Returns `None` if the connection fails, if the server sends nothing for
/// [`HANG`], or if the response cannot be parsed.
pub fn try_http(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(HANG)).ok()?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

/// Sends one HTTP/1.1 request on a new connection. Panics if [`try_http`] returns `None`.
pub fn http(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    try_http(address, method, path, headers, body)
        .unwrap_or_else(|| panic!("{method} {path} at {address} was not answered"))
}

/// Sends the head of an order without its body, and waits until the node asks for the body. The
/// request is in progress until the returned connection is closed, or the node cuts it off.
pub fn begun_order(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the node accepts a connection");
    stream.set_read_timeout(Some(HANG)).expect("a timeout can be set");
    let head = format!(
        "POST /order HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("the head is sent");
    let mut answer = [0; 12];
    stream
        .read_exact(&mut answer)
        .expect("the node asks for the body");
    assert_eq!(answer, *b"HTTP/1.1 100");
    stream
}

/// Polls a condition until it is true. After [`HANG`], panics with a message that names the
/// condition.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANG, "it never came true that {what}");
        // The pause gives the processor to the awaited process. No test depends on its length.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns a free address on loopback. The kernel chooses the port among thousands of free ones, so
/// another process is unlikely to get the same port soon.
pub fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .to_string()
}
