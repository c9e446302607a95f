//! `imt db salvage`, `heal` and `diff`: rescue records, repair bytes, and compare databases.

use super::show::Form;
use super::{open, verdict};
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use microdb::{Db, DifferenceKind, Error, KeyName, Manifest};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn salvage(path: &Path, to: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    let manifest = microdb::salvage(path, to).map_err(|error| match &error {
        Error::NotADatabase { .. } => open::refused(path, error),
        Error::Invalid { .. } => CliError::because(
            format!("cannot salvage {} to {}; nothing was changed", path.display(), to.display()),
            error,
        ),
        _ => {
            let state = format!(
                "the source was not changed. If {} holds anything, it is an unfinished copy: remove it, and try again",
                to.display()
            );
            open::failed(to, &state, error)
        }
    })?;
    match output {
        OutputFormat::Json => output::print_json(&manifest)?,
        OutputFormat::Table => {
            let advice = if manifest.is_complete() {
                format!(
                    "Nothing is lost. Look at the copy (imt db inspect {}); `imt db verify {}` tells whether the source needs to be replaced at all.",
                    to.display(),
                    path.display()
                )
            } else {
                format!(
                    "Look at the copy (imt db inspect {}), then put it in the place of the damaged one.",
                    to.display()
                )
            };
            let keys = lost_keys(&manifest, &open::to_look(to)?);
            output::print_text(&format!("{manifest}{keys}\nThe source was not changed. {advice}"))?;
        }
    }
    Ok(verdict(manifest.is_complete()))
}

/// Returns the keys of lost records and of records with an old value, as far as they are known. The
/// keys are written as `imt db get` reads them from the copy `db`.
fn lost_keys(manifest: &Manifest, db: &Db) -> String {
    let key = |name: &KeyName| {
        let form = Form::recorded_in(db, &name.table);
        format!("{} {}", name.table, form.key(&name.table, &name.key))
    };
    let listed = |names: Vec<&KeyName>| {
        let mut keys: Vec<String> = names.into_iter().map(key).collect();
        keys.sort();
        keys.dedup();
        keys.iter().map(|key| format!("    {key}\n")).collect::<String>()
    };
    let lost = listed(manifest.losses.iter().flat_map(|loss| &loss.keys).collect());
    let stale = listed(manifest.stale.iter().collect());
    let mut text = String::new();
    for (title, keys) in [("lost keys", lost), ("keys with an old value", stale)] {
        if !keys.is_empty() {
            text.push_str(&format!("\n{title}, as far as they are known:\n{keys}"));
        }
    }
    text
}

pub(super) fn heal(path: &Path, backup: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    let report = microdb::heal(path, backup).map_err(|error| match error {
        Error::Invalid { ref reason, .. } if reason.contains("lies within") => CliError::because(
            "nothing was changed; move the backup to a folder apart from the database, and try again",
            error,
        ),
        Error::Invalid { .. } => CliError::because(
            format!(
                "{} cannot heal {}; nothing was changed. A database with another id, such as an imported or a salvaged one, can only take the place of the damaged one (`imt db restore`)",
                backup.display(),
                path.display()
            ),
            error,
        ),
        Error::NotADatabase { path: ref missing } => {
            let missing = missing.display();
            CliError::failed(format!("there is no database at {missing}; nothing was changed"))
        }
        error => open::failed(
            path,
            "parts of it may be healed already, and no others were touched; heal it again once the cause is gone",
            error,
        ),
    })?;
    match output {
        OutputFormat::Json => output::print_json(&report)?,
        OutputFormat::Table => output::print_text(report.to_string().trim_end())?,
    }
    Ok(verdict(report.is_healed()))
}

pub(super) fn diff(
    first: &Path,
    second: &Path,
    limit: u64,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let (one, two) = (open::to_look(first)?, open::to_look(second)?);
    let (mut listed, mut left) = (Vec::new(), limit);
    let compared = microdb::diff(&one, &two, |difference| {
        if left > 0 {
            left -= 1;
            listed.push(difference.clone());
        }
        ControlFlow::Continue(())
    });
    let report = compared.map_err(|error| open::refused(first, error))?;
    // The type of a key is read from the first database, or from the second database if the first
    // has no table of this name.
    let has_table = |db: &Db, table: &str| db.tables().iter().any(|info| info.name == table);
    let key = |difference: &microdb::Difference| {
        let db = [&two, &one][usize::from(has_table(&one, &difference.table))];
        Form::recorded_in(db, &difference.table).key(&difference.table, &difference.key)
    };
    if output == OutputFormat::Json {
        let keys: Vec<_> = listed
            .iter()
            .map(|difference| json!({ "table": difference.table, "key": key(difference), "kind": difference.kind }))
            .collect();
        output::print_json(&json!({ "equal": report.is_equal(), "report": report, "keys": keys }))?;
        return Ok(verdict(report.is_equal()));
    }
    let mut text = String::new();
    for difference in &listed {
        let sign = match difference.kind {
            DifferenceKind::OnlyInFirst => "-",
            DifferenceKind::OnlyInSecond => "+",
            _ => "~",
        };
        text.push_str(&format!("{sign} {} {}\n", difference.table, key(difference)));
    }
    if report.differences() > listed.len() as u64 {
        text.push_str(&format!(
            "... and {} more (--limit N lists them)\n",
            report.differences() - listed.len() as u64
        ));
    }
    text.push_str(&if report.is_equal() {
        format!("equal: {} in both", output::count(report.keys.0, "key"))
    } else {
        format!(
            "{} only in {} (-), {} only in {} (+), {} with different values (~); of {} and {}",
            output::count(report.only_in_first, "key"),
            first.display(),
            report.only_in_second,
            second.display(),
            report.values_differing,
            report.keys.0,
            output::count(report.keys.1, "key"),
        )
    });
    output::print_text(&text)?;
    Ok(verdict(report.is_equal()))
}
