//! The test binary as a second process, with its part given by the environment and its output read
//! through a pipe.
//!
//! The pipe outlives the process, so the output before a kill can still be read.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const PART: &str = "MICRODB_TEST_PART";
const FOLDER: &str = "MICRODB_TEST_FOLDER";

/// Returns the part of this process and its folder, if it is the second process of another test.
pub(crate) fn part() -> Option<(String, PathBuf)> {
    Some((std::env::var(PART).ok()?, std::env::var_os(FOLDER)?.into()))
}

/// This test binary as a second process.
pub(crate) struct Other {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    /// Starts the test with the path `entry` as a second process.
    pub(crate) fn start(entry: &str, part: &str, folder: &Path) -> Self {
        let (_crate, test) = entry.split_once("::").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--include-ignored", "--nocapture"])
            .env(PART, part)
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Returns the next line for the test (the harness prints too), or `None` once the process has
    /// ended. A line cut short by a kill is no promise.
    pub(crate) fn said(&mut self) -> Option<String> {
        let ours = |line: &String| line.starts_with("> ") && line.ends_with(';');
        let line = self.lines.by_ref().map_while(Result::ok).find(ours)?;
        Some(line[2..line.len() - 1].to_owned())
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    pub(crate) fn ended_well(mut self) {
        drop(self.child.stdin.take());
        while self.said().is_some() {}
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the other process ended with {status}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints a whole line in one write, so that a kill leaves all of it or nothing.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n> {text};\n").as_bytes()).unwrap();
    out.flush().unwrap();
}
