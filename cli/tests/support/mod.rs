//! The real binary as a child process, and plain HTTP to what it serves.
//!
//! Nothing here waits for a time: a server has started when it says so in its log, and a condition
//! is asked for until it holds.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop where it stands"
)]
#![allow(unreachable_pub, reason = "shared by test files, each a crate of its own")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// No condition in these tests takes this long on any machine that runs them; past it, something
/// hangs.
pub const HANG: Duration = Duration::from_secs(120);

/// The binary, with nothing of the caller's environment that could change what it does.
pub fn imt(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imt"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("IMT_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> Output {
    imt(args).output().expect("the binary starts")
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("output is UTF-8")
}

/// A server of ours in a process of its own; killed when dropped.
pub struct Server {
    child: Child,
    /// `127.0.0.1:PORT`, as the server said it.
    pub address: String,
    log: Receiver<String>,
}

impl Server {
    /// Starts the binary and waits until its log names the address that it serves.
    pub fn start(args: &[&str]) -> Self {
        let mut child = imt(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let lines = BufReader::new(child.stderr.take().expect("standard error is piped")).lines();
        let (send, log) = channel();
        std::thread::spawn(move || {
            // The pipe is read to its end, whether anybody listens or not, so that the child never
            // blocks on it.
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
                Err(_) => panic!(
                    "`imt {}` never said where it serves:\n{}",
                    args.join(" "),
                    seen.join("\n")
                ),
            }
        };
        Self { child, address, log }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True if the log said this since it was last asked.
    pub fn said(&self, text: &str) -> bool {
        self.log.try_iter().any(|line| line.contains(text))
    }

    /// Ends the process as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child can be waited for");
    }

    /// Waits for the end of a process that ends by itself; gives its exit code.
    pub fn ended(mut self) -> Option<i32> {
        self.child.wait().expect("the child can be waited for").code()
    }

    /// Asks the process to stop (SIGTERM) and waits for its end; gives its exit code and the rest
    /// of its log.
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

/// An HTTP answer: status, head and body.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }
}

/// One HTTP/1.1 exchange on a connection of its own; `None` where nobody answers.
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

/// One HTTP exchange that must be answered.
pub fn http(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    try_http(address, method, path, headers, body)
        .unwrap_or_else(|| panic!("{method} {path} at {address} was not answered"))
}

/// Asks until the condition holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANG, "it never came true that {what}");
        // Leaves the processor to what is waited for; the condition above decides.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An address on loopback that nobody serves now. Another process could take it in between; the
/// kernel hands out such ports in turn, so it does not.
pub fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .to_string()
}
