//! Help, and failures such as wrong arguments, taken ports and folders in use: each failure names
//! its cause and ends with the exit code of its kind.

use crate::support::{Server, run, stderr, stdout};
use std::net::TcpListener;
use tempfile::tempdir;

/// Asserts that one line of the error describes the failure, that the error contains all of
/// `names`, and that nothing panicked.
fn assert_clear(error: &str, names: &[&str]) {
    assert!(!error.contains("panicked"), "{error}");
    // Log lines may precede the error.
    let clear = error.lines().filter(|line| line.starts_with("imt: ")).count();
    assert_eq!(clear, 1, "one line says what is wrong: {error}");
    for name in names {
        assert!(error.contains(name), "the error should name {name}: {error}");
    }
}

/// Returns the subcommands that a help text lists, except `help`.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // Names of subcommands are indented by two columns, and further lines of a wrapped description
    // by more.
    let names = lines.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let names = names
        .filter_map(|line| line.split(' ').next())
        .filter(|name| *name != "help");
    names.map(str::to_owned).collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    let mut count = 0;
    while let Some(command) = open.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = run(&[&words[..], &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        let help = stdout(&output);
        assert!(help.contains("Usage: imt"), "{command:?}: {help}");
        let inner = subcommands(&help);
        if inner.is_empty() {
            assert!(help.contains("Example"), "{command:?} has no example: {help}");
            count += 1;
        }
        open.extend(inner.into_iter().map(|name| [&command[..], &[name]].concat()));
    }
    assert!(count > 40, "{count} commands were found");
}

#[test]
fn wrong_usage_is_exit_code_two() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let file = file.to_str().unwrap();
    let cases: [(&[&str], &str); 26] = [
        (&["frobnicate"], "--help"),
        (&["sim", "rnu"], "'run'"),
        (&["db", "frob", "x"], "--help"),
        (&["order", "show"], "<ID>"),
        (&["node", "start", "--listen", "nonsense"], "127.0.0.1:9090"),
        (&["node", "start", "--listen", ":9090"], "0.0.0.0:9090"),
        (&["node", "start", "--listen", "9090"], "127.0.0.1:9090"),
        (
            &["node", "start", "--listen", "nowhere.invalid:9090"],
            "localhost:9090",
        ),
        (&["node", "start", "--name", "a/b"], "for example alpha"),
        (&["node", "start", "--zone", ""], "--zone"),
        (&["node", "start", "--weight", "-1"], "--weight"),
        (&["node", "start", "--warehouse", "foo"], "http://HOST:PORT"),
        (&["node", "start", "--data", file], "name a folder"),
        (&["node", "start", "--stat-scan", "0s"], "at least 50ms"),
        (&["node", "start", "--drain-timeout", "10"], "for example 30s"),
        (&["node", "leave", "a b"], "for example alpha"),
        (&["sim", "run", "--duration", "soon"], "for example 30s"),
        (&["sim", "run", "--rate", "-1"], "for example 100"),
        (&["sim", "run", "--seed", "-1"], "for example 7"),
        (&["sim", "run", "--data", file, "--port", "0"], "name a folder"),
        (&["ring", "plan", "--add", "a:b"], "for example beta"),
        (&["order", "list", "--since", "soon"], "for example 10m"),
        (&["order", "pay", "17", "9007199254740992"], "9007199254740991"),
        (&["db", "get", file, "t", "0g", "--hex"], "for example 0x00ff"),
        (&["db", "inspect", file, "--frame", "3"], "for example 3:96"),
        (&["--log-level", "=,=", "ring", "show"], "--log-level"),
    ];
    for (args, names) in cases {
        let output = run(args);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{args:?}");
        assert!(error.contains(names), "{args:?} should name {names}: {error}");
    }
}

#[test]
fn a_run_with_invalid_flags_is_refused_before_anything_starts() {
    let data = tempdir().unwrap();
    let folder = data.path().join("shop");
    let path = folder.to_str().unwrap();
    for (args, example) in [
        (&["--rate", "0"][..], "for example 100"),
        (&["--rate", "nan"], "for example 100"),
        (&["--rate", "inf"], "for example 100"),
        (&["--rate", "-5"], "for example 100"),
        (&["--duration", "0s"], "for example 30s"),
        (&["--duration", "10"], "for example 30s"),
        (&["--fail-if", "p99(order) > 5"], "column 15"),
        (&["--scenario", "nightmare"], "calm, black-friday"),
        (&["--warehouse-profile", "broken"], "brownout"),
    ] {
        for command in ["run", "front"] {
            if command == "front" && ["--scenario", "--warehouse-profile"].contains(&args[0]) {
                continue;
            }
            let output = run(&[&["sim", command, "--data", path], args].concat());
            let error = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{command} {args:?}: {error}");
            assert!(error.contains(example), "{command} {args:?}: {error}");
            assert!(!folder.exists(), "{command} {args:?} left a data folder behind");
        }
    }
}

#[test]
fn a_fault_of_a_scenario_file_is_named_by_file_line_and_field() {
    let data = tempdir().unwrap();
    let file = data.path().join("mine.toml");
    let text = "description = \"d\"\n[[load]]\nname = \"a\"\nduration = \"1s\"\nspeed = 9\n";
    std::fs::write(&file, text).unwrap();
    let output = run(&["sim", "run", "--scenario", file.to_str().unwrap()]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("mine.toml, line 5") && error.contains("speed"),
        "{error}"
    );
}

#[test]
fn a_front_without_a_node_ends_at_once_on_ctrl_c_with_130() {
    let data = tempdir().unwrap();
    let free = crate::support::free_address();
    let mut front = crate::support::imt(&["sim", "front", "--oms", &format!("http://{free}")])
        .args(["--data", data.path().to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(front.stderr.take().unwrap()));
    // The command already listens for signals when it logs that it waits for the node.
    let said = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains(&free));
    assert!(said, "the wait is announced");
    let id = front.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(front.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(
        rest.iter().any(|line| line.contains("nothing was sent")),
        "{rest:?}"
    );
    assert!(!data.path().join("runs").exists());
}

#[test]
fn a_url_that_cannot_be_used_is_wrong_usage_and_the_reason_is_named() {
    let flags: [&[&str]; 6] = [
        &["node", "start", "--warehouse"],
        &["sim", "front", "--warehouse"],
        &["sim", "front", "--oms"],
        &["sim", "warehouse", "--oms"],
        &["order", "show", "17", "--oms"],
        &["order", "dead", "list", "--oms"],
    ];
    let urls = [
        ("http://127.0.0.1:1/?x=1", "query"),
        ("http://127.0.0.1:1/#x", "fragment"),
        ("http://user:secret@127.0.0.1:1", "user and password"),
        ("https://127.0.0.1:1", "only http"),
        ("http://127.0.0.1:70000", "port"),
        ("127.0.0.1", "http:// is missing"),
    ];
    for flag in flags {
        for (url, reason) in urls {
            let output = run(&[flag, &[url]].concat());
            let error = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{flag:?} {url}: {error}");
            assert!(error.contains(reason), "{flag:?} {url}: {error}");
        }
    }
}

#[test]
fn a_taken_port_is_named() {
    let data = tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = data.path().to_str().unwrap();
    for args in [
        &["node", "start", "--data", folder, "--listen", &address][..],
        &["sim", "warehouse", "--data", folder, "--listen", &address],
        &[
            "sim",
            "run",
            "--data",
            folder,
            "--port",
            &port,
            "--warehouse-port",
            "0",
        ],
        &[
            "sim",
            "run",
            "--data",
            folder,
            "--port",
            "0",
            "--warehouse-port",
            &port,
        ],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        assert_clear(&stderr(&output), &[&address]);
    }
}

#[test]
fn a_data_folder_in_use_is_refused_and_left_alone() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let args = [
        "node",
        "start",
        "--name",
        "alpha",
        "--data",
        folder,
        "--listen",
        "127.0.0.1:0",
    ];
    let node = Server::start(&args);
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1));
    assert_clear(&stderr(&output), &["alpha"]);
    // The failed start above does not disturb the running node.
    assert_eq!(
        crate::support::http(&node.address, "GET", "/health", &[], b"").status,
        200
    );
    // The database of a running node can be inspected but not changed.
    let volume = data.path().join("volumes/alpha");
    let volume = volume.to_str().unwrap();
    let output = run(&["db", "inspect", volume]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for args in [
        &["db", "put", volume, "orders", "k", "v"][..],
        &["db", "delete", volume, "orders", "k"],
        &["db", "compact", volume],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_clear(&stderr(&output), &[volume]);
    }
    let (code, _) = node.terminate();
    assert_eq!(code, Some(0), "SIGTERM is a graceful stop");
}

#[test]
fn a_data_folder_that_is_a_file_is_named() {
    let data = tempdir().unwrap();
    let file = data.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let path = file.to_str().unwrap();
    for command in [
        &["node", "start", "--data", path][..],
        &["sim", "run", "-d", path],
        &["node", "list", "-d", path],
    ] {
        let output = run(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        let error = stderr(&output);
        assert!(
            error.contains(path) && error.contains("name a folder"),
            "{command:?}: {error}"
        );
    }
}

#[test]
fn an_unreachable_node_is_reported_with_the_command_that_starts_one() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = run(&["order", "show", "17", "--oms", &format!("http://{free}")]);
    assert_eq!(output.status.code(), Some(5));
    assert_clear(&stderr(&output), &["imt node start"]);
}

#[test]
fn a_database_is_read_and_changed_from_the_command_line() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("shop");
    let db = path.to_str().unwrap();
    // A mistyped path does not create a database.
    let output = run(&["db", "inspect", db]);
    assert_eq!(output.status.code(), Some(1));
    assert_clear(&stderr(&output), &[db]);
    assert!(!path.exists());

    assert_eq!(
        run(&["db", "put", db, "events", "k1", "first", "--create"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        run(&["db", "put", db, "events", "k2", "second"]).status.code(),
        Some(0)
    );
    assert_eq!(
        run(&["db", "put", db, "events", "00ff", "cafe", "--hex"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(stdout(&run(&["db", "get", db, "events", "k1"])), "first\n");
    assert_eq!(
        stdout(&run(&["db", "get", db, "events", "00ff", "--hex"])),
        "0xcafe\n"
    );
    assert_eq!(stdout(&run(&["db", "get", db, "events", "0x00ff"])), "0xcafe\n");
    let output = run(&["db", "get", db, "events", "nothing"]);
    assert_eq!(output.status.code(), Some(1));
    assert_clear(&stderr(&output), &["nothing"]);

    let scan = stdout(&run(&["db", "scan", db, "events", "--prefix", "k"]));
    assert!(
        scan.contains("first") && scan.contains("second") && scan.lines().count() == 3,
        "{scan}"
    );
    assert_eq!(run(&["db", "delete", db, "events", "k1"]).status.code(), Some(0));
    assert_eq!(
        run(&["db", "delete", db, "events", "k1"]).status.code(),
        Some(1),
        "it is not there any more"
    );
    assert_eq!(run(&["db", "compact", db]).status.code(), Some(0));
    assert_eq!(stdout(&run(&["db", "get", db, "events", "k2"])), "second\n");
    let report: serde_json::Value =
        serde_json::from_str(&stdout(&run(&["db", "inspect", db, "--output", "json"]))).unwrap();
    assert_eq!(report["tables"][0]["name"], "events");
    assert_eq!(report["tables"][0]["keys"], 2);
}

#[test]
fn a_front_sends_nothing_to_a_server_that_is_no_node() {
    for (answer, shown) in [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 12\r\n\r\n<html></html",
            "404 with an HTML or XML page",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "200 {}"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup", "200 up"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, paths) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 4096];
                let length = std::io::Read::read(&mut stream, &mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                asked
                    .send(request.lines().next().unwrap_or_default().to_owned())
                    .unwrap();
                std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
            }
        });
        let data = tempdir().unwrap();
        let folder = data.path().to_str().unwrap();
        let output = run(&["sim", "front", "--oms", &url, "--data", folder]);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        for part in [&url, shown, "No order was sent", "imt node start", "--oms"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("audit"), "{error}");
        assert!(paths.try_iter().all(|line| line.starts_with("GET /health ")));
        assert!(!data.path().join("runs").exists());
    }
}
