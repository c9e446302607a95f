//! Reads settings from a file. The environment and the flags take precedence.
//!
//! Each flag with an environment variable `IMT_X` can be set as `x = VALUE` in `imt.toml`, or in
//! the file that `--config` or `IMT_CONFIG` names.
//!
//! Invariants:
//! - The clap definitions of the flags are the only list of settings.
//! - Values of the file become the defaults of the flags. Therefore a flag overrides the
//!   environment, and the environment overrides the file.
//! - An unknown key, or a value that its flag would reject, is an error that names the file and the
//!   line. The error comes before any command runs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use toml::de::{DeTable, DeValue};

use crate::error::CliError;

/// File that is read if it exists and no other file is named.
pub(crate) const USUAL_FILE: &str = "imt.toml";
/// Prefix of all environment variables.
const PREFIX: &str = "IMT_";
/// Key of `--config`, which names the file and therefore cannot be set in the file.
const CONFIG_KEY: &str = "config";

/// A setting in the file, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileValue {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// The settings of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigFile {
    /// Path of the file, or `None` without a file.
    pub(crate) path: Option<PathBuf>,
    values: BTreeMap<String, FileValue>,
}

/// A setting that flags know: its key, and the flags with that key.
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) variable: String,
    pub(crate) args: Vec<(String, Arg)>,
}

/// Returns the key of a flag in the file: the name of its environment variable without the prefix,
/// in lower case.
fn key_of(arg: &Arg) -> Option<String> {
    let variable = arg.get_env()?.to_str()?;
    let key = variable.strip_prefix(PREFIX)?.to_lowercase();
    (key != CONFIG_KEY).then_some(key)
}

/// Returns all settings of all commands.
pub(crate) fn settings(command: &Command) -> Vec<Setting> {
    fn collect(command: &Command, path: &str, found: &mut BTreeMap<String, Setting>) {
        for arg in command.get_arguments() {
            let Some(key) = key_of(arg) else { continue };
            let setting = found.entry(key.clone()).or_insert_with(|| Setting {
                variable: format!("{PREFIX}{}", key.to_uppercase()),
                key,
                args: Vec::new(),
            });
            setting.args.push((path.to_owned(), arg.clone()));
        }
        for inner in command.get_subcommands() {
            collect(inner, format!("{path} {}", inner.get_name()).trim(), found);
        }
    }
    let mut found = BTreeMap::new();
    collect(command, "", &mut found);
    found.into_values().collect()
}

impl ConfigFile {
    /// Reads the file that the arguments or the environment name, or `imt.toml` if it exists.
    ///
    /// # Errors
    /// Fails if a named file cannot be read, or if the file has a key or value that no flag
    /// accepts.
    pub(crate) fn find(args: &[OsString], command: &Command) -> Result<ConfigFile, CliError> {
        let named = named_file(args).or_else(|| std::env::var_os("IMT_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| PathBuf::from(USUAL_FILE));
        let text = match &named {
            // Only `imt.toml` must be a regular file. A shell may pass a pipe as `--config`.
            Some(path) => std::fs::read_to_string(path),
            None => read_usual(&path),
        };
        match text {
            Ok(text) => ConfigFile::parse(&path, &text, command),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(ConfigFile::default())
            }
            Err(error) => Err(CliError::Usage(format!(
                "cannot read the configuration {}: {error}",
                path.display()
            ))),
        }
    }

    fn parse(path: &Path, text: &str, command: &Command) -> Result<ConfigFile, CliError> {
        let line_of = |at: usize| text.get(..at).unwrap_or(text).matches('\n').count() + 1;
        let wrong = |at: usize, reason: String| {
            CliError::Usage(format!("{}, line {}: {reason}", path.display(), line_of(at)))
        };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            wrong(at, error.message().to_owned())
        })?;
        let known: BTreeMap<String, Setting> = settings(command)
            .into_iter()
            .map(|setting| (setting.key.clone(), setting))
            .collect();
        let mut values = BTreeMap::new();
        for (key, value) in table.get_ref() {
            let (name, at) = (key.get_ref().to_string(), key.span().start);
            let Some(setting) = known.get(&name) else {
                return Err(wrong(at, unknown(&name, known.keys())));
            };
            let text = text_of(value.get_ref()).ok_or_else(|| {
                let kind = value.get_ref().type_str();
                wrong(
                    at,
                    format!("{name} must be a text, a number, true or false, not: {kind}"),
                )
            })?;
            for (_, arg) in &setting.args {
                check(arg, &text).map_err(|reason| wrong(at, format!("{name} = {text:?}: {reason}")))?;
            }
            let line = line_of(at);
            values.insert(name, FileValue { text, line });
        }
        Ok(ConfigFile {
            path: Some(path.to_owned()),
            values,
        })
    }

    /// Returns the file's value of a setting.
    pub(crate) fn value(&self, key: &str) -> Option<&FileValue> {
        self.values.get(key)
    }

    /// Returns the command with the file's values as defaults of its flags.
    pub(crate) fn apply(&self, command: Command) -> Command {
        command
            .mut_args(|arg| match key_of(&arg).and_then(|key| self.values.get(&key)) {
                // Leaked: clap keeps defaults for the life of the process.
                Some(value) => arg.default_value(&*value.text.clone().leak()),
                None => arg,
            })
            .mut_subcommands(|inner| self.apply(inner))
    }
}

/// Reads `imt.toml`. Only a regular file is read, because opening a FIFO would block every command.
fn read_usual(path: &Path) -> std::io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).custom_flags(nonblocking).open(path)?;
    if file.metadata()?.is_file() {
        std::io::read_to_string(file)
    } else {
        Err(std::io::Error::other("it is not a regular file"))
    }
}

/// Returns the file that the command line names. Runs before clap, because the file changes the
/// defaults that clap parses with.
fn named_file(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().skip(1).take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    None
}

/// Returns a TOML value in the form of a flag's argument.
fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(is) => Some(is.to_string()),
        _ => None,
    }
}

/// Checks a value with the parser of its flag.
fn check(arg: &Arg, text: &str) -> Result<(), String> {
    let alone = arg.clone().env(None::<&str>).long("value").required(true);
    let command = Command::new("imt").no_binary_name(true).disable_help_flag(true);
    let parsed = command
        .arg(alone)
        .try_get_matches_from([format!("--value={text}")]);
    parsed.map(|_| ()).map_err(|error| {
        // Keeps clap's reason but drops its advice, which names a flag that the user did not type.
        let words = error.to_string();
        let first = words.lines().next().unwrap_or_default();
        first
            .trim_start_matches("error: ")
            .replace(" for '--value <", " for '<")
    })
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let known: Vec<&str> = known.map(String::as_str).collect();
    format!("there is no setting {name}; there are {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let rate = Arg::new("rate")
            .long("rate")
            .env("IMT_RATE")
            .default_value("1.0")
            .value_parser(clap::value_parser!(f64));
        let plain = Arg::new("plain").long("plain");
        Command::new("imt").subcommand(Command::new("run").arg(rate).arg(plain))
    }

    fn parse(text: &str) -> Result<ConfigFile, String> {
        ConfigFile::parse(Path::new("x.toml"), text, &command()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_value_of_the_file_is_the_flags_default_and_a_flag_wins() {
        let file = parse("# how fast\nrate = 2.5\n").unwrap();
        assert_eq!(file.value("rate").unwrap().line, 2);
        for (args, expected) in [(&["imt", "run"][..], 2.5), (&["imt", "run", "--rate", "7"], 7.0)] {
            let matches = file.apply(command()).try_get_matches_from(args).unwrap();
            let run = matches.subcommand_matches("run").unwrap();
            assert_eq!(run.get_one::<f64>("rate"), Some(&expected));
        }
    }

    #[test]
    fn what_no_flag_would_take_is_named_with_its_line() {
        for (text, expected) in [
            (
                "rate = 1\n\nspeed = 4\n",
                "x.toml, line 3: there is no setting speed; there are rate",
            ),
            ("plain = 1\n", "line 1: there is no setting plain"),
            (
                "\nrate = \"fast\"\n",
                "line 2: rate = \"fast\": invalid value 'fast'",
            ),
            ("rate = [1]\n", "line 1: rate must be"),
            ("rate = 1\nrate = 2\n", "line 2: duplicate key"),
            ("rate 1\n", "line 1: "),
        ] {
            let found = parse(text).unwrap_err();
            assert!(found.contains(expected), "{text:?}: {found}");
        }
    }

    #[test]
    fn the_file_is_named_by_its_flag_in_either_form() {
        let args = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            named_file(&args("imt --config a.toml run")),
            Some("a.toml".into())
        );
        assert_eq!(
            named_file(&args("imt run --config=b.toml")),
            Some("b.toml".into())
        );
        assert_eq!(named_file(&args("imt run -- --config c.toml")), None);
    }
}
