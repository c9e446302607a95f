//! Settings: a flag overrides the environment, the environment overrides the file, and each error
//! names the wrong setting, line or file.

use crate::support::{imt, run, stderr, stdout};
use serde_json::Value;
use tempfile::tempdir;

/// Returns the settings that `imt config show` prints, with a settings file of this content and
/// with these environment variables.
fn shown(file: &str, variables: &[(&str, &str)]) -> Vec<Value> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("imt.toml");
    std::fs::write(&path, file).unwrap();
    let mut command = imt(&[
        "config",
        "show",
        "--output",
        "json",
        "--config",
        path.to_str().unwrap(),
    ]);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn setting<'a>(shown: &'a [Value], name: &str) -> &'a Value {
    shown.iter().find(|shown| shown["setting"] == name).unwrap()
}

#[test]
fn each_value_says_where_it_comes_from() {
    let shown = shown("\nlisten = \"127.0.0.1:7000\"\nrate = 5\n", &[("IMT_RATE", "9")]);
    let listen = setting(&shown, "listen");
    assert_eq!(listen["value"], "127.0.0.1:7000");
    assert!(
        listen["source"].as_str().unwrap().ends_with("imt.toml line 2"),
        "{listen}"
    );
    let rate = setting(&shown, "rate");
    assert_eq!(
        (&rate["value"], &rate["source"]),
        (&"9".into(), &"environment IMT_RATE".into())
    );
    let timeout = setting(&shown, "payment_timeout");
    assert_eq!(
        (&timeout["value"], &timeout["source"]),
        (&"15min".into(), &"default".into())
    );
}

#[test]
fn the_usual_file_is_found_where_the_command_runs() {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("imt.toml"), "oms = \"http://127.0.0.1:1\"\n").unwrap();
    let output = imt(&["order", "show", "17"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(
        stderr(&output).contains("http://127.0.0.1:1"),
        "{}",
        stderr(&output)
    );
    let output = imt(&["order", "show", "17", "--oms", "http://127.0.0.1:2"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("http://127.0.0.1:2"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_file_that_is_wrong_is_named_with_the_line() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("shop.toml");
    let path_text = path.to_str().unwrap();
    for (text, names) in [
        (
            "rate = 1\nsped = 2\n",
            ["line 2", "no setting sped; did you mean seed?"],
        ),
        ("listen = \"here\"\n", ["line 1", "listen"]),
        ("rate = \n", ["line 1", "shop.toml"]),
    ] {
        std::fs::write(&path, text).unwrap();
        let output = run(&["config", "show", "--config", path_text]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        for name in names {
            assert!(stderr(&output).contains(name), "{name}: {}", stderr(&output));
        }
    }
    let output = run(&["--config", "/does/not/exist.toml", "config", "show"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("/does/not/exist.toml"),
        "{}",
        stderr(&output)
    );
}
