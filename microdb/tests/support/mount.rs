//! Helpers to run commands of the system and to mount file systems.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command. Returns its output, or its error output if it failed.
pub(crate) fn command(name: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(name).args(args).output();
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} {}: {}", args.join(" "), told.trim()))
}

/// A mounted file system. Dropping this value unmounts the file system.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn new(args: &[&str], folder: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(folder).unwrap();
        command("mount", &[args, &[folder.to_str().unwrap()]].concat())?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let place = self.0.to_str().unwrap();
        // A segment may still be mapped, because the engine releases it only when no reader can use
        // it. So a normal unmount can fail.
        let _ = command("umount", &[place]).or_else(|_| command("umount", &["--lazy", place]));
    }
}
