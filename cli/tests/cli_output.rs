//! Output of commands: JSON errors, colour, columns of tables, quiet mode, suggestions, warnings of
//! unknown variables, manual pages and completions, and commands that work beside a broken file of
//! settings.

use crate::support::{Server, imt, run, stderr, stdout};
use serde_json::Value;
use std::process::{Command, Output};
use tempfile::tempdir;

fn error_of(output: &Output) -> Value {
    let text = stderr(output);
    let line = text.lines().last().unwrap_or_default();
    let document: Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"));
    document["error"].clone()
}

#[test]
fn errors_are_json_wherever_results_are() {
    let missing = "/nonexistent/db";
    let cases: [(&[&str], i32, &str); 5] = [
        (
            &["sim", "rnu", "--output", "json"],
            2,
            "unrecognized subcommand 'rnu'",
        ),
        (
            &["-o", "json", "sim", "run", "--rate", "fast"],
            2,
            "for example 100",
        ),
        (&["db", "inspect", missing, "-ojson"], 1, "there is no database"),
        (
            &["ring", "show", "--data", "/nonexistent", "--output=json"],
            1,
            "there is no ring",
        ),
        (
            &["order", "show", "17", "--oms", "http://127.0.0.1:1", "-o", "json"],
            5,
            "no node answers",
        ),
    ];
    for (args, code, message) in cases {
        let output = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        let error = error_of(&output);
        assert_eq!(error["exit_code"], code, "{args:?}");
        assert!(
            error["message"].as_str().unwrap().contains(message),
            "{args:?}: {error}"
        );
        assert!(
            error["causes"].is_array() && stdout(&output).is_empty(),
            "{args:?}"
        );
    }
    let output = imt(&["db", "inspect", missing])
        .env("IMT_OUTPUT", "json")
        .output()
        .unwrap();
    assert_eq!(error_of(&output)["exit_code"], 1);
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("imt.toml"), "output = \"json\"\n").unwrap();
    let here = |args: &[&str]| imt(args).current_dir(folder.path()).output().unwrap();
    for (args, code) in [(&["db", "inspect", missing][..], 1), (&["sim", "rnu"], 2)] {
        assert_eq!(error_of(&here(args))["exit_code"], code, "{args:?}");
    }
    let text = stderr(&here(&["db", "inspect", missing, "-o", "table"]));
    assert!(text.starts_with("imt: "), "a flag overrides the file: {text}");
    let tip = error_of(&run(&["sim", "rnu", "-o", "json"]))["tip"].clone();
    assert!(tip.as_str().unwrap().contains("'run'"), "{tip}");
}

#[test]
fn help_version_and_scripts_work_beside_a_broken_file_of_settings() {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("imt.toml"), "rate = 5\nspeed = 3\n").unwrap();
    let here = |args: &[&str]| imt(args).current_dir(folder.path()).output().unwrap();
    for args in [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["help", "sim"],
        &["sim", "run", "-h"],
        &["completions", "bash"],
        &["man"],
        &["man", "sim", "run"],
    ] {
        let output = here(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert!(!stdout(&output).is_empty(), "{args:?}");
    }
    // A mistyped command is reported as such. A command that needs settings reports the broken line
    // of the file.
    assert!(stderr(&here(&["sim", "rnu"])).contains("'run'"));
    let output = here(&["ring", "show"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("imt.toml, line 2"),
        "{}",
        stderr(&output)
    );
    let output = here(&["config", "show"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stdout(&output).contains("payment_timeout"), "{}", stdout(&output));
    assert!(stderr(&output).contains("    speed = 3"), "{}", stderr(&output));
}

#[test]
fn unknown_variables_of_the_environment_are_named() {
    let output = imt(&["config", "show"]).env("IMT_RATES", "5").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let log = stderr(&output);
    assert!(
        log.contains("IMT_RATES is no setting; did you mean IMT_RATE?"),
        "{log}"
    );
    let output = imt(&["config", "show", "-q"])
        .env("IMT_RATES", "5")
        .output()
        .unwrap();
    assert_eq!(stderr(&output), "");
    assert_eq!(stderr(&run(&["config", "show"])), "");
}

#[test]
fn colour_follows_the_flag_and_else_the_terminal() {
    let has_colour = |output: &Output| stdout(output).contains('\u{1b}') || stderr(output).contains('\u{1b}');
    assert!(has_colour(&run(&["--color", "always", "--help"])));
    assert!(!has_colour(&run(&["--help"])));
    assert!(!has_colour(&run(&["sim", "rnu", "--color=never"])));
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let node = Server::start(&["node", "start", "-n", "alpha", "-d", folder, "-l", "localhost:0"]);
    assert!(node.address.starts_with("127.0.0.1:"), "{}", node.address);
    for (choice, is_wanted) in [("always", true), ("never", false), ("auto", false)] {
        let output = run(&["node", "list", "-d", folder, "--color", choice]);
        assert_eq!(has_colour(&output), is_wanted, "{choice}: {}", stdout(&output));
        assert!(stdout(&output).contains("serving"));
    }
    let output = imt(&["node", "list", "-d", folder, "--color", "always"])
        .env("NO_COLOR", "1")
        .output();
    assert!(has_colour(&output.unwrap()), "a flag overrides the environment");
    let fields = run(&[
        "node",
        "list",
        "-d",
        folder,
        "--fields",
        "state,node",
        "--no-header",
    ]);
    assert_eq!(stdout(&fields), "serving  alpha\n");
    let csv = run(&["node", "list", "-d", folder, "--fields", "node,weight", "--csv"]);
    assert_eq!(stdout(&csv), "node,weight\nalpha,1\n");
    let stopped = run(&["node", "stop", "alpha", "-d", folder, "-o", "json"]);
    let stopped: Value = serde_json::from_str(&stdout(&stopped)).unwrap();
    assert_eq!(
        (&stopped["node"], &stopped["state"]),
        (&"alpha".into(), &"stopped".into())
    );
    assert_eq!(node.ended(), Some(0));
}

#[test]
fn manual_pages_exist_for_every_command() {
    let folder = tempdir().unwrap();
    let to = folder.path().join("man1");
    let output = run(&["man", "--to", to.to_str().unwrap(), "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let files: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(files["files"].as_array().unwrap().len() > 40, "{files}");
    for name in ["imt.1", "imt-sim-run.1", "imt-order-dead-retry.1"] {
        let page = std::fs::read_to_string(to.join(name)).unwrap();
        assert!(page.contains(".SH NAME") && page.contains("\"imt 0."), "{name}");
    }
    let output = run(&["man", "sim", "rnu"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_binary_completes_nodes_runs_scenarios_and_contexts() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let node = Server::start(&["node", "start", "-n", "alpha", "-d", folder, "-l", "127.0.0.1:0"]);
    std::fs::create_dir_all(data.path().join("runs/20260131-174502")).unwrap();
    let config = tempdir().unwrap();
    let with_contexts = |mut command: Command| {
        command.env("XDG_CONFIG_HOME", config.path());
        command
    };
    let add = with_contexts(imt(&["context", "add", "prod", "--data", folder]))
        .output()
        .unwrap();
    assert_eq!(add.status.code(), Some(0), "{}", stderr(&add));
    let complete = |line: &[&str]| {
        let index = line.len().to_string();
        let args = [&["--", "imt"][..], line].concat();
        let mut command = with_contexts(imt(&args));
        command
            .env("IMT_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", index);
        command
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_COMPLETE_SPACE", "true")
            .env("_CLAP_IFS", "\n");
        stdout(&command.output().unwrap())
    };
    for (line, expected) in [
        (&["node", "stop", "-d", folder, "al"][..], "alpha"),
        (&["node", "leave", "--context", "prod", ""], "alpha"),
        (&["sim", "report", "-d", folder, "2026"], "20260131-174502"),
        (&["sim", "run", "--scenario", "black"], "black-friday"),
        (&["context", "use", ""], "prod"),
        (&["db", "ver"], "verify"),
        (&["order", "--outp"], "--output"),
    ] {
        let words = complete(line);
        assert!(
            words.lines().any(|word| word.trim() == expected),
            "{line:?}: {words:?}"
        );
    }
    assert!(!complete(&["node", "stop", "-d", "/nonexistent", ""]).contains("alpha"));
    // Simulations ignore contexts, so the data folder of a context is not searched for runs.
    assert!(!complete(&["sim", "report", "--context", "prod", ""]).contains("20260131"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(
            stdout(&output).contains("IMT_COMPLETE"),
            "{shell}: {}",
            stdout(&output)
        );
    }
    drop(node);
}
