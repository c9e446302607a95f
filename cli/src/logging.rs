//! Writes the log to standard error, as text or as JSON lines.
//!
//! Invariants:
//! - A log line is printed above the progress bar and never splits it.
//! - While the live view (`imt_live::View`) uses the terminal, log lines go to the view's pane, and
//!   to the log file of the simulation run once the run has one. They also go to standard error if
//!   that is not a terminal.
//! - A closed standard error does not end the process.

use crate::error::CliError;
use crate::output;
use imt_live::{LogLines, terminal};
use indicatif::MultiProgress;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::OnceLock;
use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

/// Format of the log.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Returns the progress bars of the process. Log lines are printed above them.
pub(crate) fn progress_display() -> &'static MultiProgress {
    static DISPLAY: OnceLock<MultiProgress> = OnceLock::new();
    DISPLAY.get_or_init(MultiProgress::new)
}

/// Installs the logger of the process. `filter` is a level or a filter by module.
pub(crate) fn start(format: LogFormat, filter: &str) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        CliError::Usage(format!(
            "--log-level '{filter}' is not a level or a filter: {error}"
        ))
    })?;
    let colour = output::is_coloured(&std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(AboveProgress);
    match format {
        LogFormat::Text => builder.with_target(false).fmt_fields(TextFields).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// Fields of the events of a simulation run (`Telemetry::event`). Text lines leave out these
/// fields, because the message repeats their content. No other log line has both fields.
const RUN_EVENT_FIELDS: [&str; 2] = ["kind", "subject"];

/// Formats the fields of log lines for people. Leaves out [`RUN_EVENT_FIELDS`] in a line that has
/// both.
struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> std::fmt::Result {
        let mut found = RunEventFields(0);
        fields.record(&mut found);
        let mut shown = ShownFields {
            inner: DefaultVisitor::new(writer, true),
            is_run_event: found.0 == RUN_EVENT_FIELDS.len(),
        };
        fields.record(&mut shown);
        shown.inner.finish()
    }
}

/// Number of the [`RUN_EVENT_FIELDS`] that a log line has.
struct RunEventFields(usize);

impl Visit for RunEventFields {
    fn record_debug(&mut self, field: &Field, _: &dyn std::fmt::Debug) {
        self.0 += usize::from(RUN_EVENT_FIELDS.contains(&field.name()));
    }
}

struct ShownFields<'writer> {
    inner: DefaultVisitor<'writer>,
    is_run_event: bool,
}

impl ShownFields<'_> {
    fn shows(&self, field: &Field) -> bool {
        !self.is_run_event || !RUN_EVENT_FIELDS.contains(&field.name())
    }
}

impl Visit for ShownFields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.shows(field) {
            self.inner.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        if self.shows(field) {
            self.inner.record_error(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if self.shows(field) {
            self.inner.record_debug(field, value);
        }
    }
}

/// Maximum number of warnings and errors that are printed again after a live view has ended. They
/// were logged while the view used the terminal.
const WARNINGS_REPEATED: usize = 20;

/// File that receives the log lines while a live view uses the terminal. `None` before the run has
/// a folder.
static VIEW_FILE: Mutex<Option<File>> = Mutex::new(None);

/// Returns the newest log lines of the time in which the live view uses the terminal. The view
/// shows them.
pub(crate) fn view_lines() -> &'static LogLines {
    static LINES: OnceLock<LogLines> = OnceLock::new();
    LINES.get_or_init(LogLines::default)
}

/// Makes the log also write to the file `path` while a live view uses the terminal.
pub(crate) fn keep_view_lines_in(path: &Path) -> std::io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    *VIEW_FILE.lock() = Some(file);
    Ok(())
}

/// Prints the newest warnings and errors of the live view on standard error. Call this after the
/// view has left the terminal. Does nothing if standard error is not a terminal, because these
/// lines were then written to standard error at once.
pub(crate) fn repeat_warnings() {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let lines = view_lines().newest(usize::MAX);
    let warnings: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .collect();
    for warning in &warnings[warnings.len().saturating_sub(WARNINGS_REPEATED)..] {
        write_line(format!("{warning}\n").as_bytes());
    }
}

/// Copies lines from the output of another process to this log, with a prefix, until that process
/// closes its output. A new thread does the work.
pub(crate) fn forward(source: impl Read + Send + 'static, prefix: String) -> std::io::Result<()> {
    let copy = move || {
        for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            write_line(format!("{prefix}: {line}\n").as_bytes());
        }
    };
    std::thread::Builder::new()
        .name("log-forward".to_owned())
        .spawn(copy)?;
    Ok(())
}

fn write_line(line: &[u8]) {
    let is_viewed = terminal::is_taken();
    if is_viewed {
        view_lines().push(&String::from_utf8_lossy(line));
        let mut file = VIEW_FILE.lock();
        if let Some(file) = file.as_mut() {
            // The error is ignored, because a full disk must not end the run.
            let _ = file.write_all(line);
        }
    }
    let mut stderr = std::io::stderr();
    if !is_viewed || !stderr.is_terminal() {
        let _ = progress_display().suspend(|| stderr.write_all(line));
    }
}

/// Writer of log lines. Each call of `write` receives one whole line.
#[derive(Clone, Copy)]
struct AboveProgress;

impl Write for AboveProgress {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        write_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for AboveProgress {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imt_sim::Telemetry;
    use imt_sim::telemetry::EventKind;
    use std::sync::Arc;

    /// Returns the log lines that `log` writes, as text or as JSON.
    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let builder = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(Arc::clone(&file));
        match format {
            LogFormat::Text => {
                let subscriber = builder.with_target(false).fmt_fields(TextFields).finish();
                tracing::subscriber::with_default(subscriber, log);
            }
            LogFormat::Json => tracing::subscriber::with_default(builder.json().finish(), log),
        }
        let mut text = String::new();
        std::io::Seek::rewind(&mut file.as_ref()).unwrap();
        file.as_ref().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn text_lines_leave_out_the_fields_of_a_run_event_and_json_lines_have_them() {
        let killed = || Telemetry::default().event(EventKind::Kill, "node-3", "node-3 killed");
        let text = logged(LogFormat::Text, killed);
        assert!(text.ends_with("INFO node-3 killed\n"), "{text}");
        let json = logged(LogFormat::Json, killed);
        assert!(json.contains(r#""kind":"kill","subject":"node-3""#), "{json}");
    }

    #[test]
    fn text_lines_keep_the_fields_of_other_events() {
        let text = logged(LogFormat::Text, || {
            tracing::info!(kind = "announce", order = 17, "not stored");
        });
        assert!(
            text.ends_with("INFO not stored kind=\"announce\" order=17\n"),
            "{text}"
        );
    }
}
