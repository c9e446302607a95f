//! The test binary again, as another process: told by its environment which part to play, heard
//! through a pipe.
//!
//! The pipe outlives it: what it said before it was killed is there to be read.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const PART: &str = "MICRODB_TEST_PART";
const FOLDER: &str = "MICRODB_TEST_FOLDER";

/// Which part this process is to play, and in which folder, if it is another's other process.
pub(crate) fn part() -> Option<(String, PathBuf)> {
    Some((std::env::var(PART).ok()?, std::env::var_os(FOLDER)?.into()))
}

/// This test binary as another process.
pub(crate) struct Other {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    pub(crate) fn start(part: &str, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_other_process", "--nocapture"])
            .env(PART, part)
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that is for us (the test harness prints too); none once the process has ended.
    /// A kill may cut a line short: no line, no promise.
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

/// A whole line in one write, so that a kill leaves it or not.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n> {text};\n").as_bytes()).unwrap();
    out.flush().unwrap();
}
