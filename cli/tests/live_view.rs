//! Runs the live view on a pseudo terminal. The view opens, ends by a key or a signal, and restores
//! the terminal.

use crate::support::{imt, until};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

/// A process of `imt sim run` on a pseudo terminal of 100 columns and 30 rows.
struct OnTerminal {
    master: File,
    slave: File,
    before: Termios,
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

/// Result of a run on a pseudo terminal.
struct Ended {
    status: ExitStatus,
    output: String,
}

impl OnTerminal {
    fn start(data: &Path, more: &[&str]) -> Self {
        Self::start_with(data, more, None)
    }

    /// Starts the run. Its standard error is the file `stderr`, or the pseudo terminal.
    fn start_with(data: &Path, more: &[&str], stderr: Option<File>) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            // The pseudo terminal must not become the controlling terminal of the test process.
            .custom_flags(OpenptFlags::NOCTTY.bits() as i32)
            .open(name.to_str().unwrap())
            .unwrap();
        let size = Winsize {
            ws_row: 30,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let folder = data.to_str().unwrap();
        let args = [
            "sim",
            "run",
            "--data",
            folder,
            "--port",
            "0",
            "--warehouse-port",
            "0",
        ];
        let mut command = imt(&args);
        command.args(["--rate", "20", "--duration", "10m"]).args(more);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        command.stdin(slave.try_clone().unwrap());
        command.stdout(slave.try_clone().unwrap());
        command.stderr(stderr.unwrap_or_else(|| slave.try_clone().unwrap()));
        let child = command.spawn().unwrap();
        let master = File::from(master);
        let output = Arc::new(Mutex::new(Vec::new()));
        let (mut source, sink) = (master.try_clone().unwrap(), Arc::clone(&output));
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4_096];
            // On Linux, a read from the master fails once no process has the slave open.
            while let Ok(length @ 1..) = source.read(&mut piece) {
                sink.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        });
        Self {
            master,
            slave,
            before,
            child,
            output,
            reader,
        }
    }

    fn wait_until_sending(&self, data: &Path) {
        until("a second of requests is recorded", || {
            let Ok(runs) = std::fs::read_dir(data.join("runs")) else {
                return false;
            };
            let mut series = runs.flatten().map(|run| run.path().join("series.csv"));
            series.any(|path| std::fs::read_to_string(path).is_ok_and(|text| text.lines().count() > 1))
        });
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the run, and asserts that the terminal has its original modes again.
    fn end(mut self) -> Ended {
        let status = self.child.wait().unwrap();
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(after.local_modes, self.before.local_modes);
        assert_eq!(after.input_modes, self.before.input_modes);
        assert_eq!(after.output_modes, self.before.output_modes);
        drop(self.slave);
        self.reader.join().unwrap();
        let output = self.output.lock().unwrap();
        Ended {
            status,
            output: String::from_utf8_lossy(&output).into_owned(),
        }
    }
}

/// Asserts that the run was interrupted, that the live view opened and closed, and that the summary
/// was printed after it.
#[track_caller]
fn check_end(ended: &Ended) {
    let output = &ended.output;
    assert_eq!(ended.status.code(), Some(130), "{output}");
    let (before, after) = output.rsplit_once(LEAVE).expect("the view is left");
    assert!(before.contains(ENTER) && before.contains("IMT Order"), "{output}");
    assert!(after.contains("audit"), "{after}");
}

#[test]
fn q_ends_the_run_and_the_summary_follows_the_view() {
    let data = tempfile::tempdir().unwrap();
    let mut run = OnTerminal::start(data.path(), &[]);
    run.wait_until_sending(data.path());
    run.press("?");
    run.press("s");
    run.press("q");
    let ended = run.end();
    check_end(&ended);
    let folder = std::fs::read_dir(data.path().join("runs"))
        .unwrap()
        .next()
        .unwrap();
    let folder = folder.unwrap().path();
    let picture = std::fs::read_to_string(folder.join("view-1.svg")).unwrap();
    assert!(
        picture.starts_with("<svg") && picture.contains(">scenario</text>"),
        "{picture}"
    );
    let log = std::fs::read_to_string(folder.join("run.log")).unwrap();
    assert!(log.contains("no new requests"), "{log}");
}

/// Creates an empty statistics file, and waits until the node has logged its one warning that the
/// file is incomplete.
fn cause_warning(data: &Path) {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    File::create(data.join(format!("stat_{now_ms:015}.csv"))).unwrap();
    until("the warning is logged", || warnings(&run_log(data)) == 1);
}

/// Returns the text of the log file in the only run folder, or an empty text if the file cannot be
/// read.
fn run_log(data: &Path) -> String {
    let run = std::fs::read_dir(data.join("runs")).unwrap().next().unwrap();
    std::fs::read_to_string(run.unwrap().path().join("run.log")).unwrap_or_default()
}

fn warnings(text: &str) -> usize {
    text.matches("statistics file incomplete").count()
}

#[test]
fn a_warning_of_the_live_view_appears_once_on_standard_error() {
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = folder.path().join("stderr");
    let file = File::create(&path).unwrap();
    let mut run = OnTerminal::start_with(data.path(), &[], Some(file));
    run.wait_until_sending(data.path());
    cause_warning(data.path());
    run.press("q");
    check_end(&run.end());
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(warnings(&text), 1, "{text}");
    // If standard error is the terminal, log lines are shown only in the view while it is open. So
    // the warning must be printed again after the view.
    let data = tempfile::tempdir().unwrap();
    let mut run = OnTerminal::start(data.path(), &[]);
    run.wait_until_sending(data.path());
    cause_warning(data.path());
    run.press("q");
    let ended = run.end();
    let (_, after) = ended.output.rsplit_once(LEAVE).expect("the view is left");
    assert_eq!(warnings(after), 1, "{after}");
}

#[test]
fn ctrl_c_and_sigterm_end_a_run_with_a_live_view() {
    let data = tempfile::tempdir().unwrap();
    let mut run = OnTerminal::start(data.path(), &[]);
    run.wait_until_sending(data.path());
    run.press("\u{3}");
    check_end(&run.end());
    let data = tempfile::tempdir().unwrap();
    let run = OnTerminal::start(data.path(), &[]);
    run.wait_until_sending(data.path());
    run.signal(Signal::TERM);
    check_end(&run.end());
}

#[test]
fn plain_and_json_do_not_take_the_terminal() {
    for more in [&["--plain"][..], &["--output", "json"]] {
        let data = tempfile::tempdir().unwrap();
        let run = OnTerminal::start(data.path(), more);
        run.wait_until_sending(data.path());
        run.signal(Signal::TERM);
        let ended = run.end();
        assert_eq!(ended.status.code(), Some(130), "{}", ended.output);
        assert!(!ended.output.contains(ENTER), "{}", ended.output);
    }
}
