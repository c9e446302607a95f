//! Named contexts: settings of a cluster, such as addresses, under a name. They are stored in one
//! file in the user's configuration folder.
//!
//! Invariants:
//! - The file is created for its owner alone, because addresses may contain a password. A file that
//!   other users may read or write is refused.
//! - The file is replaced as a whole, so that a crash leaves either the old or the new file.
//! - Commands for which `config::follows_context` returns `false` do not read the file, so a broken
//!   file does not stop them.

use crate::config::flag_value;
use crate::error::CliError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the file in `$XDG_CONFIG_HOME/imt`, or in `~/.config/imt`.
const FILE: &str = "contexts.json";
/// Maximum size of the file. A thousand contexts take about 200 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A context: settings, such as addresses, under a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) name: String,
    values: BTreeMap<String, String>,
}

impl Context {
    pub(crate) fn new(name: &str, values: BTreeMap<String, String>) -> Self {
        let name = name.to_owned();
        Self { name, values }
    }

    /// Returns the value that the context gives to a setting.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }
}

/// All contexts of a user.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// Name of the context that commands use by default, chosen by `imt context use` or
    /// `imt context add --use`. `None` if no context is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// Settings of each context by its name.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, BTreeMap<String, String>>,
}

/// Returns the path of the contexts file. `None` if neither `XDG_CONFIG_HOME` nor `HOME` is an
/// absolute path.
pub(crate) fn path() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let base = variable("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let home = || variable("HOME").filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(home()?.join(".config")))?;
    Some(base.join("imt").join(FILE))
}

impl Contexts {
    /// Reads all contexts. Returns no contexts if the file does not exist or has no path.
    pub(crate) fn read() -> Result<Self, CliError> {
        match path() {
            Some(path) => Self::read_from(&path),
            None => Ok(Self::default()),
        }
    }

    fn read_from(path: &Path) -> Result<Self, CliError> {
        let wrong = |reason: String| {
            CliError::Usage(format!(
                "cannot read the contexts in {}: {reason}",
                path.display()
            ))
        };
        let unreadable = |error: std::io::Error| wrong(error.to_string());
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut options = fs::OpenOptions::new();
        let file = match options.read(true).custom_flags(nonblocking).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unreadable(error)),
        };
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(wrong("it is not a regular file; move it away".to_owned()));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let advice = format!(
                "other users may read or write the file (mode {mode:o}); run: chmod 600 {}",
                path.display()
            );
            return Err(wrong(advice));
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
        read.map_err(unreadable)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(wrong(format!(
                "it is larger than {FILE_BYTES_MAX} bytes; move it away"
            )));
        }
        serde_json::from_str(&text).map_err(|error| {
            wrong(format!(
                "it is not a file of contexts ({error}); correct it, or move it away"
            ))
        })
    }

    /// Replaces the contexts file by a new file with these contexts.
    pub(crate) fn write(&self) -> Result<(), CliError> {
        let path = path().ok_or_else(|| {
            CliError::Usage("there is no folder for contexts; set HOME or XDG_CONFIG_HOME".to_owned())
        })?;
        self.write_to(&path)
    }

    fn write_to(&self, path: &Path) -> Result<(), CliError> {
        let failed =
            |error: std::io::Error| CliError::because(format!("cannot write {}", path.display()), error);
        let mut json = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        json.push(b'\n');
        if let Some(folder) = path.parent() {
            let mut builder = fs::DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed)?;
        }
        let unfinished = path.with_extension(format!("{}.new", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let written = options
            .open(&unfinished)
            .and_then(|mut file| file.write_all(&json).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&unfinished, path));
        written.map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            failed(error)
        })
    }

    /// Returns the context with this name. If it does not exist, the error lists all names.
    pub(crate) fn get(&self, name: &str) -> Result<Context, CliError> {
        let values = self.contexts.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let there = match names.is_empty() {
                true => "there are none; imt context add makes one".to_owned(),
                false => format!("there are {}", names.join(", ")),
            };
            CliError::Usage(format!("there is no context {name:?}; {there}"))
        })?;
        Ok(Context::new(name, values.clone()))
    }

    /// Returns the context that the command line or the environment names, else the current one.
    /// Returns `None` if no context is named and none is current, or if the given name is empty.
    pub(crate) fn chosen(args: &[OsString]) -> Result<Option<Context>, CliError> {
        let named = flag_value(args, "context", None).or_else(|| std::env::var_os("IMT_CONTEXT"));
        if named.as_ref().is_some_and(|name| name.is_empty()) {
            return Ok(None);
        }
        let contexts = Self::read()?;
        match named {
            Some(name) => contexts.get(&name.to_string_lossy()).map(Some),
            None => contexts
                .current
                .as_deref()
                .map(|name| contexts.get(name))
                .transpose(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/imt").join(FILE);
        (folder, path)
    }

    #[test]
    fn contexts_are_written_for_the_owner_alone_and_read_back() {
        let (_kept, path) = file();
        assert!(Contexts::read_from(&path).unwrap().contexts.is_empty());
        let mut contexts = Contexts {
            current: Some("prod".to_owned()),
            ..Contexts::default()
        };
        let values: BTreeMap<_, _> = [("oms".to_owned(), "http://10.0.0.7:9090".to_owned())].into();
        contexts.contexts.insert("prod".to_owned(), values);
        contexts.write_to(&path).unwrap();
        contexts.write_to(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let read = Contexts::read_from(&path).unwrap();
        assert_eq!(
            read.get("prod").unwrap().value("oms"),
            Some("http://10.0.0.7:9090")
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_no_file_of_contexts_is_refused() {
        let (_kept, path) = file();
        Contexts::default().write_to(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Contexts::read_from(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{\"context\":{}}").unwrap();
        let error = Contexts::read_from(&path).unwrap_err().to_string();
        assert!(error.contains("is not a file of contexts"), "{error}");
    }

    #[test]
    fn an_unknown_context_is_refused_with_the_known_ones() {
        let mut contexts = Contexts::default();
        assert!(
            contexts
                .get("x")
                .unwrap_err()
                .to_string()
                .contains("imt context add")
        );
        contexts.contexts.insert("prod".to_owned(), BTreeMap::new());
        assert!(
            contexts
                .get("x")
                .unwrap_err()
                .to_string()
                .contains("there are prod")
        );
    }
}
