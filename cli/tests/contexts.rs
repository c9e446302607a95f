//! `imt context`: stores addresses under names. A flag overrides the environment, the environment
//! overrides the context, and the context overrides the file of settings.

use crate::support::{imt, stderr, stdout};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use tempfile::{TempDir, tempdir};

/// A user. The home folder is also the working directory, and contains the configuration folder.
struct User {
    home: TempDir,
}

impl User {
    fn new() -> Self {
        Self {
            home: tempdir().unwrap(),
        }
    }

    fn run_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = imt(args);
        command
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", self.home.path());
        command
            .current_dir(self.home.path())
            .envs(variables.iter().copied());
        command.output().unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        self.run_with(&[], args)
    }

    fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Returns the value and the source of the setting `oms`.
    fn oms(&self, variables: &[(&str, &str)], flags: &[&str]) -> (String, String) {
        let args = [&["config", "show", "--output", "json"], flags].concat();
        let output = self.run_with(variables, &args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let shown: Vec<Value> = serde_json::from_str(&stdout(&output)).unwrap();
        let oms = shown.iter().find(|shown| shown["setting"] == "oms").unwrap();
        let text = |field: &str| oms[field].as_str().unwrap().to_owned();
        (text("value"), text("source"))
    }

    /// Returns the address that `imt order show` calls. No node listens at this address.
    fn asked(&self, variables: &[(&str, &str)], flags: &[&str]) -> String {
        let output = self.run_with(variables, &[&["order", "show", "17"], flags].concat());
        assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
        let error = stderr(&output);
        let address = error.split("answers at ").nth(1).unwrap();
        address.split(';').next().unwrap().to_owned()
    }

    fn file(&self) -> std::path::PathBuf {
        self.home.path().join(".config/imt/contexts.json")
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_flag_beats_the_environment_the_environment_a_context_and_a_context_the_file() {
    let user = User::new();
    std::fs::write(
        user.home.path().join("imt.toml"),
        "oms = \"http://127.0.0.1:1\"\n",
    )
    .unwrap();
    assert_eq!(user.asked(&[], &[]), "http://127.0.0.1:1");
    user.done(&["context", "add", "prod", "--oms", "http://127.0.0.1:2"]);
    assert_eq!(
        user.asked(&[], &[]),
        "http://127.0.0.1:1",
        "a context must be chosen"
    );
    assert_eq!(user.asked(&[], &["--context", "prod"]), "http://127.0.0.1:2");
    user.done(&["context", "use", "prod"]);
    assert_eq!(user.asked(&[], &[]), "http://127.0.0.1:2");
    let variable = [("IMT_OMS", "http://127.0.0.1:3")];
    assert_eq!(user.asked(&variable, &[]), "http://127.0.0.1:3");
    assert_eq!(
        user.asked(&variable, &["--oms", "http://127.0.0.1:4"]),
        "http://127.0.0.1:4"
    );
    assert_eq!(user.asked(&[("IMT_CONTEXT", "")], &[]), "http://127.0.0.1:1");
    let of_context = ("http://127.0.0.1:2".to_owned(), "context prod".to_owned());
    assert_eq!(user.oms(&[], &[]), of_context);
    assert_eq!(user.oms(&variable, &[]).1, "environment IMT_OMS");
    assert!(
        user.oms(&[("IMT_CONTEXT", "")], &[])
            .1
            .ends_with("imt.toml line 1")
    );
}

#[test]
fn contexts_are_kept_for_the_owner_alone_and_listed() {
    let user = User::new();
    let added = user.done(&["context", "add", "prod", "--oms", "http://10.0.0.7:9090", "--use"]);
    assert!(added.contains("used from now on"), "{added}");
    user.done(&[
        "context",
        "add",
        "local",
        "--data",
        "shop",
        "--warehouse",
        "http://127.0.0.1:9091",
    ]);
    assert_eq!(mode(&user.file()), 0o600);
    let table = user.done(&["context", "list"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    let prod = table.lines().find(|line| line.contains("prod")).unwrap();
    assert!(
        prod.starts_with('*') && prod.contains("http://10.0.0.7:9090"),
        "{table}"
    );
    let listed: Vec<Value> = serde_json::from_str(&user.done(&["context", "list", "-o", "json"])).unwrap();
    let data = listed[0]["values"]["data"].as_str().unwrap();
    assert!(Path::new(data).is_absolute() && data.ends_with("shop"), "{data}");
    for (args, names) in [
        (
            &["context", "add", "prod", "--oms", "http://10.0.0.8:9090"][..],
            "--replace",
        ),
        (
            &["context", "add", "a b", "--oms", "http://10.0.0.8:9090"],
            "for example prod",
        ),
        (&["context", "add", "empty"], "--oms"),
        (&["context", "use", "prd"], "there are local, prod"),
        (&["context", "remove", "prd"], "there are local, prod"),
        (
            &["order", "show", "17", "--context", "prd"],
            "there are local, prod",
        ),
    ] {
        let output = user.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(names), "{args:?}: {}", stderr(&output));
    }
    user.done(&["context", "remove", "prod"]);
    assert!(!user.done(&["context", "list", "--no-header"]).contains('*'));
    user.done(&["context", "use", "local"]);
    user.done(&["context", "use", "--none"]);
    assert!(!user.done(&["context", "list", "--no-header"]).contains('*'));
    // A file of contexts that other users can read is refused. Commands that need no context still
    // work.
    std::fs::set_permissions(user.file(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = user.run(&["order", "show", "17"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("chmod 600"), "{}", stderr(&output));
    user.done(&["--version"]);
    let output = user.run(&["config", "show"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stdout(&output).contains("payment_timeout"), "{}", stdout(&output));
    assert!(stderr(&output).contains("chmod 600"), "{}", stderr(&output));
    // Commands that ignore contexts do not read the file of contexts, so they do not report its
    // wrong permissions. Each of these commands fails because of its arguments.
    for (args, named) in [
        (&["node", "start", "--weight", "0"][..], "weight"),
        (&["sim", "compare"], "required"),
        (&["sim", "run", "--rate", "0"], "rate"),
        (&["sim", "run", "--scenario", "absent"], "absent"),
    ] {
        let output = user.run(args);
        let error = stderr(&output);
        assert!(
            error.contains(named) && !error.contains("chmod"),
            "{args:?}: {error}"
        );
    }
}

#[test]
fn a_simulation_sends_no_orders_to_the_shop_of_a_context() {
    let user = User::new();
    let free = crate::support::free_address();
    user.done(&[
        "context",
        "add",
        "prod",
        "--data",
        "prod-data",
        "--oms",
        &format!("http://{free}"),
        "--use",
    ]);
    let output = user.run(&[
        "sim",
        "run",
        "--duration",
        "200ms",
        "--rate",
        "20",
        "--port",
        "0",
        "--warehouse-port",
        "0",
        "--plain",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(user.home.path().join("data/runs").exists());
    assert!(!user.home.path().join("prod-data").exists());
}
