//! Runs the test binary as a second process. Environment variables name its work (`part`) and its
//! folder, and a pipe carries its output.
//!
//! The pipe outlives the process, so output from before a kill can still be read.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const PART: &str = "MICRODB_TEST_PART";
const FOLDER: &str = "MICRODB_TEST_FOLDER";

/// Returns the work that this process was started to do, and its folder; `None` if this process is
/// not a second process.
pub(crate) fn part() -> Option<(String, PathBuf)> {
    Some((std::env::var(PART).ok()?, std::env::var_os(FOLDER)?.into()))
}

/// A running second process of this test binary.
pub(crate) struct Other {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    /// Starts this test binary as a second process, which runs only the test with the module path
    /// `entry`. `part` selects the work of that process, and `folder` is its folder.
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

    /// Returns the next line that the process printed with [`say`]; `None` after the end of the
    /// process. Other output of the test harness is skipped, and so is a line that a kill has cut
    /// short.
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

/// Prints `text` as a line for [`Other::said`], with one write, so that a kill hardly ever cuts the
/// line short.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n> {text};\n").as_bytes()).unwrap();
    out.flush().unwrap();
}
