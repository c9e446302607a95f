//! Ctrl-C and SIGTERM as one event that a command waits for.

use crate::error::CliError;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals that ask a process to stop. A second one, while the first is obeyed, ends the
/// process at once.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Starts to listen; from here on the signals no longer kill the process by themselves.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen =
            |kind| signal(kind).map_err(|error| CliError::because("cannot listen for signals", error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next signal and names it.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    /// Waits for one more signal, in the background, and ends the process on it: the way out of a
    /// stop that hangs.
    pub(crate) fn exit_on_next(mut self) {
        tokio::spawn(async move {
            let name = self.next().await;
            imt_live::terminal::restore();
            tracing::warn!("second {name}: leaving at once");
            std::process::exit(130);
        });
    }
}

/// Sends this process the signal of Ctrl-C, for a terminal in raw mode, which sends none.
pub(crate) fn interrupt_self() {
    // This process exists and may signal itself.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT);
}

/// Time for threads that still wait for a disk when a command has ended. Everything that must be
/// durable has been waited for by then; a thread that hangs (a network file system that is away)
/// must not keep the process.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// Runs a future on a runtime made for it.
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
