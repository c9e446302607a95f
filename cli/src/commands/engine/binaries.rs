//! Finds the programs of an installed PostgreSQL server, and the user who may run them.

use crate::error::CliError;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs of PostgreSQL that `imt engine demo` runs.
const PROGRAMS: [&str; 3] = ["initdb", "pg_basebackup", "postgres"];
/// Folder in which Debian and Ubuntu install each version of PostgreSQL in a subfolder.
const DEBIAN: &str = "/usr/lib/postgresql";

/// An installed PostgreSQL server: the folder of its programs, and the user to run them as.
pub(super) struct Binaries {
    folder: PathBuf,
    user: Option<User>,
}

/// A user without privileges, who runs the servers if this process runs as root. PostgreSQL refuses
/// to run as root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl Binaries {
    /// Finds PostgreSQL in PATH, in the folder that `pg_config` names, or in Debian's folders.
    pub(super) fn find() -> Result<Self, CliError> {
        let is_complete = |folder: &PathBuf| PROGRAMS.iter().all(|program| folder.join(program).is_file());
        let folder = candidates().into_iter().find(is_complete).ok_or_else(|| {
            CliError::failed(format!(
                "no PostgreSQL server is installed here ({} are in no folder of PATH, of `pg_config --bindir` or of {DEBIAN}); install one, such as Debian's package postgresql",
                PROGRAMS.join(", ")
            ))
        })?;
        let user = if rustix::process::geteuid().is_root() {
            Some(User::unprivileged()?)
        } else {
            None
        };
        Ok(Self { folder, user })
    }

    /// Returns the command that runs a program of PostgreSQL, or the program at an absolute path.
    /// The program runs as the unprivileged user if this process runs as root.
    ///
    /// With `ends_with_us`, the kernel sends SIGINT to the program when this process ends, even if
    /// this process is killed. If the program `setpriv` is not installed, `ends_with_us` has no
    /// effect, and the command cannot be started if this process runs as root.
    pub(super) fn command(&self, program: &str, ends_with_us: bool) -> Command {
        let path = self.folder.join(program);
        let has_setpriv = self.user.is_some() || in_path("setpriv").is_some();
        if !has_setpriv {
            return Command::new(path);
        }
        let mut command = Command::new("setpriv");
        if let Some(user) = &self.user {
            command.args([
                format!("--reuid={}", user.uid),
                format!("--regid={}", user.gid),
                "--clear-groups".to_owned(),
            ]);
        }
        if ends_with_us {
            command.args(["--pdeathsig", "INT"]);
        }
        command.arg("--").arg(path);
        // Another user cannot read root's home folder and perhaps not the working directory. So `/`
        // replaces both, even if the program runs as the user of this process.
        command.current_dir("/").env("HOME", "/");
        command
    }

    /// Returns `true` if the user of the servers can enter the folder at an absolute path. This
    /// also needs the right to enter each folder above it.
    pub(super) fn can_enter(&self, path: &Path) -> Result<bool, CliError> {
        // The shell changes the folder itself. `Command::current_dir` would change it before
        // `setpriv` changes the user.
        let mut shell = self.command("/bin/sh", false);
        let entered = shell.args(["-c", "cd \"$1\"", "sh"]).arg(path).output();
        let entered = entered.map_err(|error| {
            CliError::because("cannot run a shell as the user of the servers by setpriv", error)
        })?;
        Ok(entered.status.success())
    }

    /// Makes the user of the servers the owner of a file or folder.
    pub(super) fn give(&self, path: &Path) -> std::io::Result<()> {
        match &self.user {
            Some(user) => std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        }
    }

    /// Returns the name of the user who runs the servers. `None` if they run as the user of this
    /// process.
    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_ref().map(|user| user.name.as_str())
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|folder| folder.join(program).is_file())
}

/// Returns the folders in which PostgreSQL may be, in the order of the search.
fn candidates() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(asked) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim()));
    }
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.path()).collect();
    versions.sort_by_key(|folder| std::cmp::Reverse(version_of(folder)));
    folders.extend(versions.into_iter().map(|folder| folder.join("bin")));
    folders
}

fn version_of(folder: &Path) -> u32 {
    let name = folder.file_name().and_then(OsStr::to_str);
    name.and_then(|name| name.parse().ok()).unwrap_or(0)
}

impl User {
    /// Returns the user `postgres`, or `nobody` if there is no such user.
    fn unprivileged() -> Result<Self, CliError> {
        let users = std::fs::read_to_string("/etc/passwd")
            .map_err(|error| CliError::because("cannot read /etc/passwd", error))?;
        let found = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| user_in(&users, name));
        found.ok_or_else(|| {
            CliError::failed("PostgreSQL does not run as root, and there is no user postgres or nobody; run this as another user")
        })
    }
}

/// Returns the user called `name` from the lines of `/etc/passwd`.
fn user_in(users: &str, name: &str) -> Option<User> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        Some(User {
            name: name.to_owned(),
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104:,,,:/var:/bin/sh\nbad:x\n";
        let user = user_in(users, "postgres").unwrap();
        assert_eq!((user.uid, user.gid), (101, 104));
        assert_eq!(user_in(users, "nobody"), None);
        assert_eq!(user_in(users, "bad"), None);
    }

    #[test]
    #[ignore = "needs root"]
    fn a_folder_is_entered_as_the_user_of_the_servers() {
        let binaries = Binaries {
            folder: PathBuf::new(),
            user: user_in("nobody:x:65534:65534:nobody:/:/bin/false\n", "nobody"),
        };
        let folder = tempfile::tempdir().unwrap();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder.path(), owner_only).unwrap();
        assert!(!binaries.can_enter(folder.path()).unwrap());
        assert!(binaries.can_enter(Path::new("/")).unwrap());
    }

    #[test]
    fn the_newest_version_is_preferred() {
        let mut folders = ["9", "15", "x", "17"].map(|name| Path::new(DEBIAN).join(name));
        folders.sort_by_key(|folder| std::cmp::Reverse(version_of(folder)));
        assert_eq!(folders.map(|folder| version_of(&folder)), [17, 15, 9, 0]);
    }
}
