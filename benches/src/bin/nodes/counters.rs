//! Reads the numbers of messages, frames and commits from the metrics of nodes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use imt_benches::Outcome;

/// Sums of counters over several nodes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Number of requests and answers between the nodes.
    pub(crate) messages: u64,
    /// Number of frames in which the requests and answers (`messages`) were sent.
    pub(crate) frames: u64,
    /// Number of group commits.
    pub(crate) commits: u64,
}

impl Counters {
    /// Returns the increase since the earlier counters `before`.
    pub(crate) fn since(&self, before: &Counters) -> Counters {
        Counters {
            messages: self.messages.saturating_sub(before.messages),
            frames: self.frames.saturating_sub(before.frames),
            commits: self.commits.saturating_sub(before.commits),
        }
    }
}

/// Reads the counters of all nodes and adds them up.
pub(crate) fn read_all(nodes: &[SocketAddr]) -> Outcome<Counters> {
    let mut all = Counters::default();
    for node in nodes {
        let mut stream = TcpStream::connect(node)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: imt\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        for line in answer.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let value = || value.parse::<f64>().unwrap_or(0.0) as u64;
            match name.split('{').next() {
                Some("imt_peer_messages_total") => all.messages += value(),
                Some("imt_peer_frames_total") => all.frames += value(),
                Some("imt_commits_total") => all.commits += value(),
                _ => {}
            }
        }
    }
    Ok(all)
}
