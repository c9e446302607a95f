//! Reads settings from a file. Flags, the environment and the context take precedence.
//!
//! Each flag with an environment variable `IMT_X`, except `--config` and `--context`, can be set as
//! `x = VALUE` in `imt.toml`, or in the file that `--config` or `IMT_CONFIG` names instead.
//!
//! Invariants:
//! - The clap definitions of the flags are the only list of settings.
//! - Values of the file and of the context become the defaults of the flags. Therefore a flag and
//!   the environment override both. A value of the context replaces one of the file.
//! - An unknown key, or a value that a flag of this key would reject, is an error that names the
//!   file and the line. The error comes before the command runs, except for `imt config`, which
//!   reports it last.
//! - `--help`, `--version`, `imt man` and `imt completions` do not read the file, so they also work
//!   if the file is broken.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use toml::de::{DeTable, DeValue};

use crate::contexts::Context;
use crate::error::CliError;
use crate::suggest;

/// Settings file that is read if it exists and no other file is named.
pub(crate) const USUAL_FILE: &str = "imt.toml";
/// Prefix of the environment variables that set flags.
const PREFIX: &str = "IMT_";
/// Keys of flags that decide which file and which context are read. The file cannot set them.
const CHOICE_KEYS: [&str; 2] = ["config", "context"];
/// Commands that ignore contexts, with all their subcommands. They can start servers or send
/// orders, and a context may name a real shop.
const WITHOUT_CONTEXT: [&str; 2] = ["sim", "node start"];

/// Maximum number of characters of a line of the file that an error message shows.
const LINE_SHOWN_MAX: usize = 70;

/// Value of a setting in the file, with the number of its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileValue {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// The settings in a configuration file.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigFile {
    /// Path of the file. `None` if no file was read.
    pub(crate) path: Option<PathBuf>,
    values: BTreeMap<String, FileValue>,
}

/// Values that become defaults of flags. A value of the context has precedence over one of the
/// file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Defaults {
    pub(crate) file: ConfigFile,
    pub(crate) context: Option<Context>,
}

impl Defaults {
    /// Returns the definition of a command, with these values as defaults of its flags.
    pub(crate) fn apply(&self, command: Command) -> Command {
        self.apply_below("", command)
    }

    fn apply_below(&self, path: &str, command: Command) -> Command {
        command
            .mut_args(|arg| match key_of(&arg).and_then(|key| self.value(path, &key)) {
                Some(value) => arg.default_value(value.to_owned()),
                None => arg,
            })
            .mut_subcommands(|inner| {
                let path = format!("{path} {}", inner.get_name());
                self.apply_below(path.trim_start(), inner)
            })
    }

    /// Returns the value of a setting for the command `path`, such as `sim run`, or for the options
    /// of all commands if `path` is empty. Returns `None` if neither the context nor the file has a
    /// value.
    pub(crate) fn value(&self, path: &str, key: &str) -> Option<&str> {
        let context = self.context.as_ref().filter(|_| follows_context(path));
        let of_context = context.and_then(|context| context.value(key));
        of_context.or_else(|| self.file.value(key).map(|value| value.text.as_str()))
    }
}

/// Returns `false` for the path of a command in [`WITHOUT_CONTEXT`], and for those of its
/// subcommands, such as `sim run`. Returns `true` for any other path.
pub(crate) fn follows_context(path: &str) -> bool {
    let is_at_or_below = |known: &&str| {
        path.strip_prefix(*known)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    !WITHOUT_CONTEXT.iter().any(is_at_or_below)
}

/// A setting: its key in the file, its environment variable, and all flags that have this key, each
/// with the path of its command.
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) variable: String,
    pub(crate) args: Vec<(String, Arg)>,
}

/// Returns the key of a flag in the file: the name of its environment variable without the prefix,
/// in lower case. Returns `None` for a flag that the file cannot set.
fn key_of(arg: &Arg) -> Option<String> {
    let variable = arg.get_env()?.to_str()?;
    let key = variable.strip_prefix(PREFIX)?.to_lowercase();
    (!CHOICE_KEYS.contains(&key.as_str())).then_some(key)
}

/// Returns the settings of a command and of all its subcommands.
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
    /// Reads the file that the arguments or the environment name, else `imt.toml`. Returns no
    /// settings if no file is named and `imt.toml` does not exist.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not TOML, has an unknown key, or has a value that is
    /// an array, a table or a date, or that a flag of its key rejects.
    pub(crate) fn find(args: &[OsString], command: &Command) -> Result<ConfigFile, CliError> {
        let named = flag_value(args, "config", None).or_else(|| std::env::var_os("IMT_CONFIG"));
        let named = named.map(PathBuf::from);
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
            let number = line_of(at);
            let line = text.lines().nth(number - 1).unwrap_or_default().trim_end();
            let shown: String = line.chars().take(LINE_SHOWN_MAX).collect();
            CliError::Usage(format!(
                "{}, line {number}: {reason}\n    {shown}",
                path.display()
            ))
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

    /// Returns the value that the file gives to a setting.
    pub(crate) fn value(&self, key: &str) -> Option<&FileValue> {
        self.values.get(key)
    }
}

/// Reads `imt.toml`. Only a regular file is read. A FIFO is refused without waiting for its writer,
/// because such a wait would block every command.
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

/// Returns the value of the first use of a flag on the command line. Does not find a short flag
/// after another one in the same word, as in `-vo json`. The first of `args` is the name of the
/// program, and arguments after `--` are ignored. Callers need the value where no clap result is
/// available. For example, `--config` and `--context` choose the defaults of other flags.
pub(crate) fn flag_value(args: &[OsString], long: &str, short: Option<char>) -> Option<OsString> {
    let long = format!("--{long}");
    let short = short.map(|short| format!("-{short}"));
    let mut args = args.iter().skip(1).take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if *arg == *long || short.as_ref().is_some_and(|short| *arg == **short) {
            return args.next().cloned();
        }
        let text = arg.to_string_lossy();
        let joined = text.strip_prefix(&long).and_then(|rest| rest.strip_prefix('='));
        let glued = || {
            text.strip_prefix(short.as_deref()?)
                .filter(|_| !text.starts_with("--"))
        };
        if let Some(value) = joined.or_else(glued) {
            return Some(value.trim_start_matches('=').into());
        }
    }
    None
}

/// Warns of each environment variable that begins with `IMT_` and sets no flag.
pub(crate) fn warn_of_unknown_variables(command: &Command) {
    let known: Vec<String> = settings(command)
        .into_iter()
        .map(|setting| setting.variable)
        .collect();
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        let is_choice = CHOICE_KEYS
            .iter()
            .any(|key| name == format!("{PREFIX}{}", key.to_uppercase()));
        if is_choice || known.iter().any(|known| known == name) {
            continue;
        }
        let nearest = suggest::nearest(name, known.iter().map(String::as_str));
        let advice = nearest.map_or_else(
            || "imt config show lists all settings".to_owned(),
            |nearest| format!("did you mean {nearest}?"),
        );
        tracing::warn!("the environment variable {name} is no setting; {advice}");
    }
}

/// Returns a TOML value in the form of a flag's argument, or `None` for an array, a table or a
/// date.
fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(is) => Some(is.to_string()),
        _ => None,
    }
}

/// Checks a value in the file with the parser of the flag that it sets.
fn check(arg: &Arg, text: &str) -> Result<(), String> {
    let alone = arg.clone().env(None::<&str>).long("value");
    let alone = alone.global(false).required(true);
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
    match suggest::nearest(name, known.iter().copied()) {
        Some(nearest) => {
            format!("there is no setting {name}; did you mean {nearest}? (imt config show lists all)")
        }
        None => format!("there is no setting {name}; there are {}", known.join(", ")),
    }
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
            let defaults = Defaults {
                file: file.clone(),
                context: None,
            };
            let matches = defaults.apply(command()).try_get_matches_from(args).unwrap();
            let run = matches.subcommand_matches("run").unwrap();
            assert_eq!(run.get_one::<f64>("rate"), Some(&expected));
        }
    }

    #[test]
    fn what_no_flag_would_take_is_named_with_its_line() {
        for (text, expected) in [
            (
                "rate = 1\n\nspeed = 4\n",
                "x.toml, line 3: there is no setting speed; there are rate\n    speed = 4",
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
    fn a_flag_is_found_in_each_form_and_not_behind_two_dashes() {
        let args = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let find = |text: &str| flag_value(&args(text), "output", Some('o'));
        for text in [
            "imt --output json run",
            "imt run --output=json",
            "imt -o json",
            "imt run -ojson",
            "imt -o=json",
        ] {
            assert_eq!(find(text), Some("json".into()), "{text}");
        }
        for text in [
            "imt run -- --output json",
            "imt --outputs json",
            "imt run --o json",
        ] {
            assert_eq!(find(text), None, "{text}");
        }
    }

    #[test]
    fn a_context_overrides_the_file_but_not_for_simulations() {
        let file = parse("rate = 2\n").unwrap();
        let context = Context::new("prod", [("rate".to_owned(), "3".to_owned())].into());
        let defaults = Defaults {
            file,
            context: Some(context),
        };
        assert_eq!(defaults.value("order list", "rate"), Some("3"));
        assert_eq!(defaults.value("sim run", "rate"), Some("2"));
        assert_eq!(defaults.value("node start", "rate"), Some("2"));
        assert_eq!(defaults.value("node list", "rate"), Some("3"));
        assert_eq!(defaults.value("simulate", "rate"), Some("3"));
    }
}
