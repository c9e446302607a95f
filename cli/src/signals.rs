//! Waits for Ctrl-C and SIGTERM. If a second signal ends this process at once, its registered child
//! processes are killed with it.

use crate::error::CliError;
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, kill_process};
use std::collections::BTreeSet;
use std::process::Child;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listener for SIGINT (Ctrl-C) and SIGTERM, the two signals that ask a process to stop.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Starts to listen. From then on, neither signal ends the process directly.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen =
            |kind| signal(kind).map_err(|error| CliError::because("cannot listen for signals", error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next signal and returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    /// Starts a task that ends this process and its registered child processes at the next signal.
    /// The second signal is a way out of a shutdown that hangs.
    pub(crate) fn exit_on_next(mut self) {
        tokio::spawn(async move {
            let name = self.next().await;
            imt_live::terminal::restore();
            tracing::warn!("second {name}: exiting at once");
            kill_children();
            std::process::exit(130);
        });
    }
}

/// Ids of the child processes that are killed if this process exits at a second signal.
static CHILDREN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn children() -> MutexGuard<'static, BTreeSet<u32>> {
    CHILDREN.lock()
}

/// Registration of a child process that is killed if this process exits at a second signal. Drop it
/// as soon as the child was waited for, because another process may then get the same id.
pub(crate) struct Registered(u32);

impl Registered {
    /// Registers a child process.
    pub(crate) fn new(child: &Child) -> Self {
        children().insert(child.id());
        Self(child.id())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        children().remove(&self.0);
    }
}

fn kill_children() {
    for id in children().iter() {
        if let Some(pid) = i32::try_from(*id).ok().and_then(Pid::from_raw) {
            // The error is ignored, because the process may have ended already.
            let _ = kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Sends SIGINT, the signal of Ctrl-C, to this process. The live view calls this function when the
/// user ends the run by a key, because a terminal in raw mode sends no signal for Ctrl-C.
pub(crate) fn interrupt_self() {
    // This call cannot fail, because the process exists and may signal itself.
    let _ = kill_process(rustix::process::getpid(), rustix::process::Signal::INT);
}

/// Maximum time for blocking threads to end after a command, when its durable work is finished. A
/// thread that hangs, for example on a lost network file system, must not keep the process alive.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// Runs a future to its end on a new tokio runtime.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::because("cannot start the runtime", error))?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_timeout(LAST_THREADS);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_at_once_kills_the_registered_processes_only() {
        let sleep = || {
            let mut command = std::process::Command::new("sleep");
            command.arg("600").spawn().unwrap()
        };
        let (mut registered, mut other) = (sleep(), sleep());
        let guard = Registered::new(&registered);
        drop(Registered::new(&other));
        kill_children();
        drop(guard);
        assert!(!registered.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_thread_that_hangs_does_not_keep_a_command_that_has_ended() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let outcome = block_on(async move {
            tokio::task::spawn_blocking(move || hang.recv());
            Ok(7)
        });
        assert_eq!(outcome.ok(), Some(7));
        drop(release);
    }
}
