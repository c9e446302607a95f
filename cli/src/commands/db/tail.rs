//! `imt db tail`: prints the change feed, and checks by the hash chain that each change follows the
//! one before it.
//!
//! A database that is open read-only shows its state at the time of the open. MicroDb does not
//! notify a process of commits by another process. To follow a database, this command polls the
//! lengths and times of the files. It opens the database again only if they have changed, and once
//! more after they have stopped changing. Following an idle database is therefore cheap.
//!
//! Deliberately absent: notifications of the file system (inotify). They would give no more
//! information than lengths and times do, and not every file system sends them.

use super::key_types::DataType;
use super::open;
use super::show::{self, Form, FormArgs};
use crate::args;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use microdb::{Change, Db, Error, Operation, Sequence};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// Arguments of `imt db tail`.
#[derive(clap::Args)]
pub(crate) struct TailArgs {
    /// Folder of the database
    path: PathBuf,
    /// Only changes of this table
    #[arg(long)]
    table: Option<String>,
    /// Begin after this commit instead of near the end; 0 is the beginning
    #[arg(long, value_name = "SEQUENCE")]
    since: Option<u64>,
    /// Begin this number of commits before the end
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 10,
        conflicts_with = "since"
    )]
    last: u64,
    /// Only changes of this key, and of the keys below it (KEY/...)
    #[arg(long)]
    key: Option<String>,
    /// Follow new commits until stopped
    #[arg(short, long)]
    follow: bool,
    /// Time between two polls of a followed database, at least 50ms
    #[arg(long, default_value = "500ms", value_name = "TIME", value_parser = args::interval)]
    interval: Duration,
    /// Print whole lines, even if they are wider than the terminal
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    form: FormArgs,
}

impl TailArgs {
    /// Returns `true` if an operation matches `--table` and `--key`. `shown` is the operation as
    /// JSON. An operation without a key, such as a clear of a table, does not match `--key`.
    fn wants(&self, shown: &Json) -> bool {
        let is = |field: &str, wanted: &str| shown[field] == wanted;
        let table = self.table.as_ref().is_none_or(|table| is("table", table));
        let key = self.key.as_ref().is_none_or(|wanted| {
            let found = shown["key"].as_str().unwrap_or_default();
            let below = found.strip_prefix(wanted.as_str());
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        table && key
    }
}

/// Position of this command in the change feed.
struct Place {
    sequence: u64,
    /// Link of the hash chain at this position. `None` if it is not known yet.
    chain: Option<u64>,
    /// Names of tables by id. A change that creates or renames a table sets the name of this table.
    names: HashMap<u32, String>,
    /// Recorded types of the keys of typed tables, by the id of the table.
    key_types: HashMap<u32, DataType>,
}

pub(super) fn run(args: &TailArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let db = open::to_look(&args.path)?;
    let since = args
        .since
        .unwrap_or_else(|| db.sequence().saturating_sub(args.last).0);
    let names = db
        .tables()
        .into_iter()
        .map(|table| (table.id, table.name))
        .collect();
    // The hash chain has the link 0 before the first commit. At any other position, the link is not
    // known until a change is read. Without `--since`, reading may begin at any position, because
    // compaction may have removed the first commits.
    let mut place = Place {
        sequence: since,
        chain: (args.since == Some(0)).then_some(0),
        names,
        key_types: HashMap::new(),
    };
    read(args, &db, &mut place, output)?;
    drop(db);
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let (mut seen, mut is_settled) = (traces(&args.path), false);
    loop {
        // MicroDb does not notify other processes of commits, so this command polls.
        std::thread::sleep(args.interval);
        let now = traces(&args.path);
        let is_same = now == seen;
        if is_same && is_settled {
            continue;
        }
        // The database is read once more after the files have stopped changing. File times are
        // coarse, so a write at the moment of the last poll may have left them unchanged.
        (seen, is_settled) = (now, is_same);
        let db = open::to_look(&args.path)?;
        if db.sequence().0 < place.sequence {
            return Err(CliError::failed(format!(
                "cannot follow the database {}: it is at commit {}, before commit {} that was read already; a crash lost commits that were not durable, or another database is in its place; run the command again",
                args.path.display(),
                db.sequence(),
                place.sequence
            )));
        }
        read(args, &db, &mut place, output)?;
    }
}

/// Returns the names, lengths and times of the files that a commit may change. A commit that is no
/// longer only in memory has written to at least one of them.
fn traces(path: &Path) -> Vec<(OsString, u64, Option<SystemTime>)> {
    let log = std::fs::read_dir(path.join("log")).into_iter().flatten();
    let files = log.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let about = |file: PathBuf| {
        let about = std::fs::metadata(&file).ok()?;
        Some((file.into_os_string(), about.len(), about.modified().ok()))
    };
    let mut traces: Vec<_> = files.chain([path.join("SUPER")]).filter_map(about).collect();
    traces.sort();
    traces
}

/// Reads all changes after `place`, prints those that the flags select, and moves `place` to the
/// last change.
fn read(args: &TailArgs, db: &Db, place: &mut Place, output: OutputFormat) -> Result<(), CliError> {
    let types = db.tables().into_iter();
    place.key_types = types
        .filter_map(|table| Some((table.id, DataType::of_keys(&table)?)))
        .collect();
    let changes = match db.changes_since(Sequence(place.sequence)) {
        Err(Error::FeedGone { oldest, .. }) if args.since.is_none() && place.chain.is_none() => {
            // Without `--since`, reading begins at the oldest change that the log still has.
            place.sequence = oldest.0;
            db.changes_since(oldest)
        }
        changes => changes,
    };
    let changes = changes.map_err(|error| match &error {
        Error::FeedGone { oldest, .. } => CliError::failed(format!(
            "the changes after commit {} were removed by compaction; start with the oldest that are left: --since {oldest}",
            place.sequence
        )),
        _ => open::refused(&args.path, error),
    })?;
    for change in changes {
        let change = change.map_err(|error| open::refused(&args.path, error))?;
        if place.chain.is_some_and(|chain| !change.follows(chain)) {
            return Err(CliError::failed(format!(
                "cannot follow the database {}: commit {} does not continue the history up to commit {} that was read; run the command again",
                args.path.display(),
                change.sequence,
                place.sequence
            )));
        }
        (place.sequence, place.chain) = (change.sequence.0, Some(change.chain));
        print(args, &change, place, output)?;
    }
    Ok(())
}

fn print(args: &TailArgs, change: &Change, place: &mut Place, output: OutputFormat) -> Result<(), CliError> {
    let mut operations = Vec::new();
    for operation in &change.operations {
        let recorded = match operation {
            Operation::Put { table, .. } | Operation::Delete { table, .. } => place.key_types.get(table),
            _ => None,
        };
        let form = args.form.form(recorded.copied());
        let shown = operation_json(form, operation, &mut place.names);
        if args.wants(&shown) {
            operations.push(shown);
        }
    }
    if operations.is_empty() {
        return Ok(());
    }
    if output == OutputFormat::Json {
        let line = json!({ "sequence": change.sequence, "chain": format!("{:016x}", change.chain), "operations": operations });
        return output::print_text(&line.to_string());
    }
    let width = output::width().filter(|_| !args.full);
    let mut text = String::new();
    for operation in operations {
        let line = line(change.sequence, operation);
        let line = width.map_or_else(|| line.clone(), |width| output::cut(&line, width));
        text.push_str(&coloured(&line));
        text.push('\n');
    }
    output::print_text(&text)
}

/// Returns the line that shows an operation. Times in the line are dates, and control characters
/// are escaped.
fn line(sequence: Sequence, operation: Json) -> String {
    let operation = show::dated(operation);
    let word = |name: &str| match &operation[name] {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        value => value.to_string(),
    };
    let (done, table, key, value) = (word("do"), word("table"), word("key"), word("value"));
    let line = format!("{sequence:>8}  {done:<6} {table} {key} {value}");
    output::escaped(line.trim_end())
}

/// Colours the operation's name in a line, if output is coloured: red for a removal, green for any
/// other operation.
fn coloured(line: &str) -> String {
    let removes = ["delete", "drop  ", "clear "];
    if !output::is_coloured(&std::io::stdout()) {
        return line.to_owned();
    }
    let begin = line.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(line.len());
    let end = (begin + 6).min(line.len());
    let (Some(before), Some(word), Some(after)) = (line.get(..begin), line.get(begin..end), line.get(end..))
    else {
        return line.to_owned();
    };
    let code = if removes.contains(&word) { 31 } else { 32 };
    format!("{before}\u{1b}[{code}m{word}\u{1b}[0m{after}")
}

/// Returns one operation as JSON. An operation on the catalog is shown as `table` (a table was
/// created with this name or renamed to it) or as `drop` (a table of this name was dropped or
/// renamed).
fn operation_json(form: Form, operation: &Operation, names: &mut HashMap<u32, String>) -> Json {
    let id_of = |value: &[u8]| value.first_chunk().map_or(0, |id| u32::from_le_bytes(*id));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match operation {
        Operation::Put { table: 0, key, value } => {
            names.insert(id_of(value), text(key));
            json!({ "do": "table", "table": text(key), "id": id_of(value) })
        }
        Operation::Delete { table: 0, key } => json!({ "do": "drop", "table": text(key) }),
        Operation::Put { table, key, value } => {
            let name = name(names, *table);
            json!({ "do": "put", "table": name, "key": form.key(&name, key), "value": form.value(&name, key, value) })
        }
        Operation::Delete { table, key } => {
            let name = name(names, *table);
            json!({ "do": "delete", "table": name, "key": form.key(&name, key) })
        }
        Operation::Clear { table } => json!({ "do": "clear", "table": name(names, *table) }),
        _ => json!({ "do": "something that this imt does not know" }),
    }
}

/// Returns the name of the table with this id. A table without a known name was dropped before this
/// command started, so its id is shown.
fn name(names: &HashMap<u32, String>, id: u32) -> String {
    names
        .get(&id)
        .cloned()
        .unwrap_or_else(|| format!("(table {id}, dropped)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        tail: TailArgs,
    }

    fn args(flags: &[&str]) -> TailArgs {
        Cli::parse_from([&["tail", "db"], flags].concat()).tail
    }

    #[test]
    fn changes_are_chosen_by_table_and_by_key_with_the_keys_below() {
        let of = |table: &str, key: &str| json!({ "table": table, "key": key });
        let by_key = args(&["--key", "17"]);
        assert!(by_key.wants(&of("orders", "17")) && by_key.wants(&of("reservations", "17/4")));
        assert!(!by_key.wants(&of("orders", "171")) && !by_key.wants(&json!({ "do": "clear" })));
        let both = args(&["--key", "17", "--table", "orders"]);
        assert!(both.wants(&of("orders", "17")) && !both.wants(&of("outbox", "17/announce")));
        assert!(args(&[]).wants(&json!({ "do": "clear", "table": "x" })));
    }

    #[test]
    fn a_line_shows_times_as_dates() {
        let operation =
            json!({ "do": "put", "table": "outbox", "key": "17/announce", "value": { "next_try_ms": 1000 } });
        assert_eq!(
            line(Sequence(7), operation),
            "       7  put    outbox 17/announce {\"next_try_ms\":\"1970-01-01T00:00:01.000Z\"}"
        );
    }

    #[test]
    fn a_value_with_line_breaks_takes_one_line() {
        let operation = json!({ "do": "put", "table": "notes", "key": "k", "value": "one\ntwo" });
        assert_eq!(line(Sequence(7), operation), "       7  put    notes k one\\ntwo");
    }
}
