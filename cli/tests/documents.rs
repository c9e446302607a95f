//! Runs the command blocks of the documents as a reader would run them.
//!
//! Each document runs as a session in a folder of its own. The blocks of a document run in order:
//! - `sh`: a script that must end with exit code 0.
//! - `console`: each line that begins with `$ ` is a command, and the lines below it are its
//!   output. `[..]` stands for any text in a line, and `...` for any lines.
//!
//! A comment before a block ([`blocks`]) can set these options, separated by semicolons:
//! - `not run: REASON`: the block is not run, because it needs other programs or much time, or is
//!   itself a test.
//! - `servers`: each line starts a server that runs until the next block with `fresh`, or until the
//!   end of the document.
//! - `fresh`: the servers of earlier blocks are stopped before this block.
//! - `exit 3 0`: expected exit codes of the commands in the block, in order. Without the option,
//!   each is 0.
//! - `figures`: numbers, blanks and line breaks of the output may differ, words may not.
//! - `loose WORD,WORD`: with `figures`, the text after these labels may differ too, because it
//!   depends on the speed of the machine.
//! - `varies TEXT,TEXT`: these texts of the output may differ.
//! - `until`: the script, or each command of a `console` block, is repeated until it succeeds,
//!   because a server needs time before the output is as expected.
//! - `log`: the output contains the log (standard error) as well.
//! - `write FILE`: the text of the block is written to this file in the session's folder.
//!
//! A session differs from a reader's machine. The loopback ports 9090 and 9091 are replaced by free
//! ports, and the folders in [`ROOTS`] are placed below the folder of the session. That folder is
//! also the home folder. The words `cargo run --release --` mean the binary under test. If the
//! variable `IMT_DOCUMENTS_BINARY` is set, the binary that it names is tested.

use crate::support::markdown::{Block, blocks, inline_code};
use crate::support::{Server, free_address, run, stderr, until};
use snapbox::IntoData;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::{TempDir, tempdir};

/// Maximum number of blocks with the option `not run`. Raise this number only if a further block
/// cannot run in a test.
const NOT_RUN_MAX: usize = 40;

/// Maximum time of a command or script, in seconds. The slowest command sends requests for 30 s.
const TIMEOUT: &str = "180";

/// Exit code of an `imt` command that SIGTERM ends before its work is complete, such as
/// `imt sim run`. A stopped node ends with 0.
const INTERRUPTED: i32 = 130;

/// Languages of the code blocks that have commands.
const SHELL: [&str; 2] = ["sh", "console"];

/// Beginnings of lines that are commands. A code block in a language other than those of [`SHELL`]
/// must have no such line.
const COMMANDS: [&str; 9] = [
    "$ ", "imt ", "cargo ", "curl ", "apt-get ", "export ", "kill ", "pip ", "cp ",
];

/// Absolute folders that documents use. In a session they are below the session's folder. That
/// folder may itself be below `/tmp/`, so `/tmp/` is replaced first.
const ROOTS: [&str; 4] = ["/tmp/", "/srv/", "/other-disk/", "/etc/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the paths of the repository's documents, the files with the ending `.md`. The notes in
/// `docs/log` are left out, because they describe earlier versions. Folders with a name that begins
/// with `.` or `target` are left out too.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{folder}{name}");
            let is_left_out = name.starts_with('.') || name.starts_with("target") || path == "docs/log";
            match entry.file_type().unwrap() {
                kind if kind.is_dir() && !is_left_out => folders.push(format!("{path}/")),
                // Symbolic links are left out: documents in the folders of packages may be links to
                // files in `docs/`.
                kind if kind.is_file() && name.ends_with(".md") => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn read(document: &str) -> Vec<Block> {
    blocks(&std::fs::read_to_string(root().join(document)).unwrap())
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// State of a reader who follows one document.
struct Session {
    folder: TempDir,
    document: String,
    /// Pairs of a text in the document and its replacement in the session.
    replaced: Vec<(String, String)>,
    servers: Vec<Server>,
}

impl Session {
    fn new(document: &str) -> Self {
        let folder = tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let binary = std::env::var_os("IMT_DOCUMENTS_BINARY")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_imt")), PathBuf::from);
        std::os::unix::fs::symlink(binary, bin.join("imt")).unwrap();
        // Commands of the documents read these folders of the repository by relative paths.
        std::fs::create_dir(folder.path().join("data")).unwrap();
        for data in ["samples", "scenarios", "golden"] {
            copy_folder(
                &root().join("data").join(data),
                &folder.path().join("data").join(data),
            );
        }
        let (node, warehouse) = (free_address(), free_address());
        let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
        let settings = format!(
            "listen = \"{node}\"\nport = {}\noms = \"http://{node}\"\n\
             warehouse_listen = \"{warehouse}\"\nwarehouse_port = {}\nwarehouse = \"http://{warehouse}\"\n",
            port(&node),
            port(&warehouse)
        );
        std::fs::write(folder.path().join("imt.toml"), settings).unwrap();
        let mut replaced = vec![
            ("cargo run --release -- ".to_owned(), "imt ".to_owned()),
            ("127.0.0.1:9090".to_owned(), node),
            ("127.0.0.1:9091".to_owned(), warehouse),
        ];
        for root in ROOTS {
            std::fs::create_dir_all(format!("{path}{root}")).unwrap();
            for before in [' ', '='] {
                replaced.push((format!("{before}{root}"), format!("{before}{path}{root}")));
            }
        }
        Self {
            document: document.to_owned(),
            folder,
            replaced,
            servers: Vec::new(),
        }
    }

    fn place(&self, block: &Block) -> String {
        format!("{}:{}", self.document, block.line)
    }

    /// Returns a command that runs a script of the document, and ends it with SIGTERM after
    /// [`TIMEOUT`] seconds.
    fn shell(&self, script: &str) -> Command {
        self.command(&["timeout", TIMEOUT, "bash", "-euo", "pipefail", "-c"], script)
    }

    fn command(&self, words: &[&str], script: &str) -> Command {
        let replaced = self.replaced.iter();
        let script = replaced.fold(script.to_owned(), |text, (from, to)| text.replace(from, to));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(script);
        for (name, _) in std::env::vars() {
            if name.starts_with("IMT_") || name.starts_with("XDG_") {
                command.env_remove(name);
            }
        }
        let folder = self.folder.path();
        let path = std::env::var("PATH").unwrap();
        command
            .env("PATH", format!("{}:{path}", folder.join("bin").display()))
            .env("HOME", folder)
            .current_dir(folder)
            .stdin(Stdio::null());
        command
    }

    /// Runs a block. Panics with the document and the line of the block if a command or a script of
    /// the block fails.
    fn run(&mut self, block: &Block) {
        let place = self.place(block);
        if block.option("fresh").is_some() {
            self.stop_servers();
        }
        if let Some(file) = block.option("write") {
            std::fs::write(self.folder.path().join(file), &block.text).unwrap();
        } else if block.option("servers").is_some() {
            for line in block.text.lines() {
                let mut command = self.command(&["bash", "-c"], &format!("exec {line}"));
                // Servers use the ports in `imt.toml`, but a node that starts after another server
                // uses a free port.
                if !self.servers.is_empty() && line.starts_with("imt node start") {
                    command.env("IMT_LISTEN", "127.0.0.1:0");
                }
                self.servers.push(Server::spawn(command));
            }
        } else if block.language == "sh" {
            let is_done = |output: &Output| output.status.success();
            let mut output = self.shell(&block.text).output().unwrap();
            if block.option("until").is_some() {
                until(&format!("{place} succeeds"), || {
                    output = self.shell(&block.text).output().unwrap();
                    is_done(&output)
                });
            }
            let (shown, error) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            assert!(
                is_done(&output),
                "{place} ended with {}:\n{shown}{error}",
                output.status
            );
        } else {
            self.run_console(block);
        }
    }

    fn run_console(&self, block: &Block) {
        let mut exits = block.option("exit").unwrap_or_default().split(' ');
        for (command, expected) in commands(&block.text) {
            let exit: i32 = exits.next().and_then(|exit| exit.parse().ok()).unwrap_or(0);
            let mut seen = self.check(block, &command, &expected, exit);
            if block.option("until").is_some() {
                until(
                    &format!("{}: `{command}` prints its output", self.place(block)),
                    || {
                        seen = self.check(block, &command, &expected, exit);
                        seen.is_ok()
                    },
                );
            }
            if let Err(difference) = seen {
                panic!("{}: `{command}`: {difference}", self.place(block));
            }
        }
    }

    /// Runs a command. Returns an error if its output or its exit code differs from the expected
    /// one.
    fn check(&self, block: &Block, command: &str, expected: &str, exit: i32) -> Result<(), String> {
        let merged = match block.option("log") {
            Some(_) => format!("{{ {command}\n}} 2>&1"),
            None => command.to_owned(),
        };
        let output = self.shell(&merged).output().unwrap();
        let mut shown = String::from_utf8(output.stdout).unwrap();
        if output.status.code() != Some(exit) {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}, not {exit}:\n{shown}{error}", output.status));
        }
        shown = shown.replace(self.folder.path().to_str().unwrap(), "");
        for (address, used) in self.replaced.iter().filter(|(from, _)| from.starts_with("127.")) {
            shown = shown.replace(used, address);
        }
        let mut expected = expected.to_owned();
        for text in block.list("varies") {
            assert!(
                block.text.contains(text),
                "{}: no {text:?} varies",
                self.place(block)
            );
            expected = expected.replace(text, "[..]");
        }
        let printed = shown.clone();
        if block.option("figures").is_some() {
            let loose: Vec<&str> = block.list("loose").collect();
            shown = words(&shown, &loose);
            expected = words(&expected, &loose);
        }
        let seen = snapbox::Assert::new().normalize_paths(false).try_eq(
            Some(&"the output"),
            shown.trim_end().into_data(),
            expected.trim_end().into_data(),
        );
        seen.map_err(|difference| format!("it printed:\n{printed}\n{difference}"))
    }

    /// Stops the servers gracefully (SIGTERM). Each server must end without an error, unless a
    /// command of the document has killed it before.
    fn stop_servers(&mut self) {
        while let Some(server) = self.servers.pop() {
            let (exit, log) = server.terminate();
            let ends_well = matches!(exit, Some(0 | INTERRUPTED) | None);
            assert!(ends_well, "{}: {exit:?}\n{}", self.document, log.join("\n"));
        }
    }
}

/// Returns the commands of a `console` block, each with its expected output.
fn commands(text: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), String::new())),
            // A backslash at the end of a command continues it on the next line.
            (None, Some((command, output))) if command.ends_with('\\') && output.is_empty() => {
                command.push('\n');
                command.push_str(line.strip_prefix("> ").unwrap_or(line));
            }
            (None, Some((_, output))) => {
                output.push_str(line);
                output.push('\n');
            }
            (None, None) => panic!("output before the first command: {line}"),
        }
    }
    commands
}

/// Returns the words of a text, one per line, with `#` in place of each number. The text between a
/// loose label and the next label is left out. A label is the first word of a line that is indented
/// by two spaces.
fn words(text: &str, loose: &[&str]) -> String {
    let mut found = String::new();
    let mut is_left_out = false;
    for line in text.lines() {
        let label = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '));
        if let Some(label) = label.and_then(|rest| rest.split(' ').next()) {
            is_left_out = loose.contains(&label);
            if is_left_out {
                found.push_str(&format!("{label}\n"));
            }
        }
        if !is_left_out {
            for word in line.split_whitespace() {
                found.push_str(&without_number(word));
                found.push('\n');
            }
        }
    }
    found
}

/// Returns a word with `#` in place of each number in it.
fn without_number(word: &str) -> String {
    let mut found = String::new();
    let mut rest = word.chars().peekable();
    while let Some(letter) = rest.next() {
        if !letter.is_ascii_digit() {
            found.push(letter);
            continue;
        }
        found.push('#');
        while let Some(next) = rest.peek().copied() {
            let mut ahead = rest.clone();
            ahead.next();
            let goes_on = next.is_ascii_digit()
                || (matches!(next, ',' | '.') && ahead.peek().is_some_and(char::is_ascii_digit));
            if !goes_on {
                break;
            }
            rest.next();
        }
    }
    found
}

/// Runs the blocks of a document that have commands or the option `write`, except those with the
/// option `not run`. Stops the servers at the end.
fn follow(document: &str) {
    let mut session = Session::new(document);
    let mut count = 0;
    for block in read(document) {
        let is_run = SHELL.contains(&block.language.as_str()) || block.option("write").is_some();
        if is_run && block.option("not run").is_none() {
            session.run(&block);
            count += 1;
        }
    }
    session.stop_servers();
    assert!(count > 0, "{document} has no block that runs");
}

macro_rules! follow {
    ($($name:ident: $document:literal,)*) => {
        /// Documents that a test generated by this macro runs.
        const FOLLOWED: &[&str] = &[$($document),*];

        $(
            #[test]
            fn $name() {
                follow($document);
            }
        )*
    };
}

follow! {
    readme_does_as_it_says: "README.md",
    operations_does_as_it_says: "docs/operations.md",
    databases_does_as_it_says: "docs/databases.md",
    simulation_does_as_it_says: "docs/simulation.md",
}

#[test]
fn every_command_block_is_run_or_has_a_reason() {
    let mut table = String::new();
    let (mut run, mut not_run) = (0, 0);
    for document in documents() {
        for block in read(&document) {
            let place = format!("{document}:{}", block.line);
            if !SHELL.contains(&block.language.as_str()) {
                let command = block
                    .text
                    .lines()
                    .find(|line| COMMANDS.iter().any(|first| line.starts_with(first)));
                assert_eq!(
                    command, None,
                    "{place}: a command in a block that is neither sh nor console"
                );
                continue;
            }
            match block.option("not run") {
                Some(reason) => {
                    assert!(reason.len() > 10, "{place}: the reason is missing");
                    table.push_str(&format!("  {place}: {reason}\n"));
                    not_run += 1;
                }
                None => {
                    assert!(
                        FOLLOWED.contains(&document.as_str()),
                        "{place}: no test runs this block"
                    );
                    run += 1;
                }
            }
        }
    }
    println!("{run} blocks are run, {not_run} are not:\n{table}");
    assert!(run > 30, "{run} blocks were found");
    assert!(not_run <= NOT_RUN_MAX, "{not_run} blocks are not run:\n{table}");
}

#[test]
fn every_command_in_a_sentence_has_known_words_and_flags() {
    let mut count = 0;
    for document in documents() {
        let text = std::fs::read_to_string(root().join(&document)).unwrap();
        for code in inline_code(&text)
            .iter()
            .filter(|code| code.starts_with("imt ") && !code.contains("COMMAND"))
        {
            // Only the command `imt` is checked, not the commands after a pipe or redirections.
            let command = code.split(['|', '<', '>', '&']).next().unwrap();
            let words = command
                .split_whitespace()
                .skip(1)
                .filter(|word| !word.contains("..."));
            let args: Vec<&str> = words.chain(["--help"]).collect();
            let error = stderr(&run(&args));
            let is_unknown = ["unexpected argument", "unrecognized subcommand"]
                .iter()
                .any(|text| error.contains(text));
            assert!(!is_unknown, "{document}: `{code}`: {error}");
            count += 1;
        }
    }
    assert!(count > 100, "{count} commands were found");
}

/// Packages of the workspace in which the filters of `cargo test --workspace` are searched: all
/// except `imt-benches`.
const PACKAGES: [&str; 7] = [
    "imt",
    "imt-live",
    "imt-microdb",
    "imt-oms",
    "imt-ring",
    "imt-sim",
    "imt-tidy",
];

/// Returns the folder of a package: `cli` for the package `imt`, else the name without `imt-`.
fn folder_of(package: &str) -> PathBuf {
    root().join(package.strip_prefix("imt-").unwrap_or("cli"))
}

/// Returns the sources in the folders `src` and `tests` of a package as one text.
fn sources_of(package: &str) -> String {
    let mut text = String::new();
    let mut folders = vec![folder_of(package).join("src"), folder_of(package).join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|ending| ending == "rs") => {
                    text.push_str(&std::fs::read_to_string(path).unwrap());
                }
                false => {}
            }
        }
    }
    text
}

/// Returns `true` if a package has a test target with this name, as in `cargo test --test NAME`.
fn has_test_target(package: &str, target: &str) -> bool {
    let tests = folder_of(package).join("tests");
    let manifest = std::fs::read_to_string(folder_of(package).join("Cargo.toml")).unwrap();
    tests.join(format!("{target}.rs")).exists()
        || tests.join(target).join("main.rs").exists()
        || manifest.contains(&format!("name = \"{target}\""))
}

/// `cargo test` succeeds if its filter matches no test. So each filter in a document must be
/// checked.
#[test]
fn every_test_command_names_tests_that_exist() {
    let mut count = 0;
    for document in documents() {
        let text = std::fs::read_to_string(root().join(&document)).unwrap();
        let lines = text.lines().filter(|line| line.contains("cargo test"));
        for line in lines.flat_map(|line| line.split("cargo test").skip(1)) {
            let command = line.split(['`', '#', ';']).next().unwrap();
            let words: Vec<&str> = command
                .split_whitespace()
                .take_while(|word| *word != "--")
                .collect();
            let behind = |flag: &str| words.iter().skip_while(|word| **word != flag).nth(1).copied();
            let mut packages = match behind("-p") {
                Some(package) => vec![package],
                None if words.contains(&"--workspace") => PACKAGES.to_vec(),
                None => continue,
            };
            let target = behind("--test");
            packages.retain(|package| target.is_none_or(|target| has_test_target(package, target)));
            assert!(
                !packages.is_empty(),
                "{document}: there is no such target: {line}"
            );
            let sources: String = packages.iter().map(|package| sources_of(package)).collect();
            let values = [behind("--target"), target, behind("-p")];
            // A word in capitals is a placeholder for any name.
            let is_flag = |word: &&&str| {
                word.starts_with('-') || values.contains(&Some(**word)) || **word == word.to_uppercase()
            };
            for filter in words.iter().filter(|word| !is_flag(word)) {
                for name in filter.split("::").filter(|name| !name.is_empty()) {
                    let is_known = ["mod", "fn"]
                        .iter()
                        .any(|word| sources.contains(&format!("{word} {name}")));
                    assert!(is_known, "{document}: there is no test {filter}: {line}");
                }
                count += 1;
            }
        }
    }
    assert!(count > 30, "{count} filters were found");
}

#[test]
fn a_changed_word_number_or_exit_code_is_noticed() {
    assert_eq!(words("  run   3,519 of 1.38 ms\n", &[]), "run\n#\nof\n#\nms\n");
    let loose = words("  a  1 x\n     y\n  b  2\n", &["a"]);
    assert_eq!(loose, "a\nb\n#\n");
    let fails = |markdown: &str| {
        let block = blocks(markdown).remove(0);
        let session = Session::new("a document");
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut session = session;
            session.run(&block);
        }));
        caught.is_err()
    };
    assert!(!fails("```console\n$ echo a; echo 17\na\n17\n```\n"));
    assert!(fails("```console\n$ echo a; echo 17\na\n18\n```\n"));
    assert!(fails("```console\n$ echo a\na\nb\n```\n"));
    assert!(fails("```console\n$ echo a; false\na\n```\n"));
    assert!(!fails(
        "<!-- shell: exit 3 -->\n```console\n$ echo a; exit 3\na\n```\n"
    ));
    assert!(fails("<!-- shell: exit 3 -->\n```console\n$ echo a\na\n```\n"));
    assert!(!fails(
        "<!-- shell: figures -->\n```console\n$ echo a   17\na 18\n```\n"
    ));
    assert!(fails(
        "<!-- shell: figures -->\n```console\n$ echo b 17\na 18\n```\n"
    ));
    assert!(!fails(
        "<!-- shell: varies 18 -->\n```console\n$ echo a 17\na 18\n```\n"
    ));
    assert!(!fails("```console\n$ seq 1 9\n1\n...\n9\n```\n"));
    assert!(!fails("```sh\ntest -e imt.toml && true\n```\n"));
    assert!(fails("```sh\nfalse\ntrue\n```\n"));
}
