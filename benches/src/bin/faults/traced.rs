//! A child process that asks its parent before each write and each sync of a file.
//!
//! The child installs a seccomp filter. The kernel then suspends a thread that calls `fdatasync`,
//! `pwrite` or another of [`TRAPPED`], and the parent decides about the call. The parent performs
//! no sync. It answers that the sync succeeded or failed, and [`crate::disk`] models which sectors
//! are durable after this sync.
//!
//! Descriptors 0 to 2 are not trapped, because child and parent talk through them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use imt_benches::Outcome;

use crate::disk::FileId;
use crate::work::{self, Task};

/// The system calls that the parent decides about.
const TRAPPED: [libc::c_long; 9] = [
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_msync,
    libc::SYS_syncfs,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
];

/// Offset of the first argument's lower half in `seccomp_data`, on a little-endian processor.
const FIRST_ARGUMENT: u32 = 16;
/// The flag of `pwritev2` for a write that is durable when it returns.
const RWF_DSYNC: u64 = 2;
/// Size of an `iovec` in bytes: pointer and length.
const VECTOR_BYTES: usize = 16;

/// Installs the filter in this process, and returns the descriptor on which the parent listens.
/// Must be called before the engine starts threads, because only later threads inherit the filter.
#[expect(unsafe_code, reason = "neither std nor rustix can install a seccomp filter")]
pub(crate) fn install() -> Outcome<i32> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let line = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // The filter loads the number of the call and compares it with each trapped number. For a
    // trapped call, it loads the lower half of the first argument, and allows descriptors up to 2.
    // The first argument of `msync` is an address. Its lower half is larger than 2, unless the
    // address is a multiple of 4 GiB.
    let mut program = vec![line(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0)];
    let count = TRAPPED.len() as u8;
    for (position, call) in (0_u8..).zip(TRAPPED) {
        program.push(line(BPF_JMP | BPF_JEQ | BPF_K, call as u32, count - position, 0));
    }
    program.extend([
        line(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        line(BPF_LD | BPF_W | BPF_ABS, FIRST_ARGUMENT, 0, 0),
        line(BPF_JMP | BPF_JGT | BPF_K, 2, 0, 1),
        line(BPF_RET | BPF_K, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        line(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ]);
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `program` points to a filter that lives until the end of the calls.
    let listener = unsafe {
        // Without its parent, this process would wait for an answer for ever.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        {
            return Err(std::io::Error::last_os_error().into());
        }
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    if listener < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(listener as i32)
}

/// A trapped call. Its thread is suspended until [`Traced::answer`].
pub(crate) struct Call {
    id: u64,
    /// The thread that called.
    pub(crate) thread: u32,
    /// The purpose of the call.
    pub(crate) kind: Kind,
}

/// The purpose of a trapped call.
pub(crate) enum Kind {
    /// Makes a file durable, or only a range of its bytes. `None` is the whole file.
    Sync(FileId, Option<Range<u64>>),
    /// Makes all files durable.
    SyncAll,
    /// Writes to a file. `durable` is `true` if the write is durable when it returns.
    Write {
        file: FileId,
        range: Range<u64>,
        durable: bool,
    },
    /// A sync of a folder, which the model keeps durable. It has to succeed without a real sync.
    SyncFolder,
    /// A call without an effect on the content of a file, or a call of unknown purpose.
    Other,
}

/// The decision about a call.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    /// The kernel performs the call.
    Continue,
    /// The call is not performed and returns 0.
    Success,
    /// The call is not performed and fails with `EIO`.
    Failure,
}

/// An event of the child.
pub(crate) enum Event {
    Call(Call),
    /// The child printed a line.
    Line(String),
    /// The child has ended.
    Ended,
    /// Nothing happened within the time limit.
    Silent,
}

/// A running child with the filter.
pub(crate) struct Traced {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    listener: OwnedFd,
}

impl Traced {
    /// Starts a task that calls [`install`] and prints the descriptor as its first line.
    #[expect(unsafe_code, reason = "std cannot take a descriptor of another process")]
    pub(crate) fn start(task: &Task) -> Outcome<Self> {
        let mut child = work::command(task)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let mut output = BufReader::new(output.ok_or("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let number: i32 = line
            .trim()
            .parse()
            .map_err(|_| format!("no filter in the child: {}", line.trim()))?;
        // SAFETY: both calls take and return plain numbers. Each returned descriptor is new and is
        // owned by one `OwnedFd`.
        let listener = unsafe {
            let owned = |number: libc::c_long| {
                if number < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(OwnedFd::from_raw_fd(number as i32))
            };
            let process = owned(libc::syscall(libc::SYS_pidfd_open, child.id(), 0))?;
            owned(libc::syscall(
                libc::SYS_pidfd_getfd,
                process.as_raw_fd(),
                number,
                0,
            ))?
        };
        Ok(Self {
            child,
            input: input.ok_or("no input")?,
            output,
            listener,
        })
    }

    /// Sends a line to the child. An error is ignored, because the next event reports the end of
    /// the child.
    pub(crate) fn say(&mut self, line: &str) {
        drop(writeln!(self.input, "{line}"));
    }

    /// Waits for the next event, or until `within` has passed without an event.
    #[expect(unsafe_code, reason = "poll and the listener's ioctl are not in std")]
    pub(crate) fn next(&mut self, within: Duration) -> Outcome<Event> {
        let wanted = |fd: i32| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // The child may have printed two lines at once, of which the second is in the buffer.
        if !self.output.buffer().is_empty() {
            return self.line();
        }
        loop {
            let mut polled = [
                wanted(self.listener.as_raw_fd()),
                wanted(self.output.get_ref().as_raw_fd()),
            ];
            // SAFETY: `polled` is an array of two entries.
            let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, within.as_millis() as i32) };
            if ready == 0 {
                return Ok(Event::Silent);
            }
            if polled[0].revents & libc::POLLIN != 0 {
                // SAFETY: all bits zero are a valid `seccomp_notif`, and the kernel requires them.
                let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
                // SAFETY: the listener is valid, and `call` has the type of this request.
                let received = unsafe {
                    libc::ioctl(
                        self.listener.as_raw_fd(),
                        libc::SECCOMP_IOCTL_NOTIF_RECV,
                        &raw mut call,
                    )
                };
                // A failure means that the thread has ended since the poll, or that a signal has
                // interrupted its call.
                if received == 0 {
                    return Ok(Event::Call(Call {
                        id: call.id,
                        thread: call.pid,
                        kind: self.kind(&call.data).unwrap_or(Kind::Other),
                    }));
                }
            } else if polled[1].revents != 0 {
                return self.line();
            }
        }
    }

    fn line(&mut self) -> Outcome<Event> {
        let mut line = String::new();
        Ok(match self.output.read_line(&mut line)? {
            0 => Event::Ended,
            _ => Event::Line(line.trim().to_owned()),
        })
    }

    /// Answers a call. A failure is ignored, because the thread may have been killed since its
    /// call.
    #[expect(unsafe_code, reason = "the listener's ioctl is not in std")]
    pub(crate) fn answer(&self, call: &Call, answer: Answer) {
        let mut response = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match answer {
            Answer::Continue => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Answer::Success => (),
            Answer::Failure => response.error = -libc::EIO,
        }
        // SAFETY: the listener is valid, and `response` has the type of this request.
        unsafe {
            libc::ioctl(
                self.listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw mut response,
            );
        }
    }

    /// Finds the purpose of a call by the descriptors, the maps and the memory of the child.
    fn kind(&self, call: &libc::seccomp_data) -> Outcome<Kind> {
        let process = self.child.id();
        let number = libc::c_long::from(call.nr);
        if number == libc::SYS_msync {
            return self.msync(call);
        }
        if number == libc::SYS_syncfs {
            return Ok(Kind::SyncAll);
        }
        let is_sync = number == libc::SYS_fsync || number == libc::SYS_fdatasync;
        let descriptor = call.args[0];
        let metadata = std::fs::metadata(format!("/proc/{process}/fd/{descriptor}"))?;
        if !metadata.is_file() {
            let is_folder_sync = is_sync && metadata.is_dir();
            return Ok(if is_folder_sync {
                Kind::SyncFolder
            } else {
                Kind::Other
            });
        }
        let file = FileId::of(&metadata);
        if is_sync {
            return Ok(Kind::Sync(file, None));
        }
        let information = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}"))?;
        let field = |name: &str| {
            let line = information.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).unwrap_or_default().to_owned()
        };
        let flags = i32::from_str_radix(&field("flags:"), 8)?;
        let at = if number == libc::SYS_write || number == libc::SYS_writev {
            if flags & libc::O_APPEND != 0 {
                metadata.len()
            } else {
                field("pos:").parse()?
            }
        } else {
            call.args[3]
        };
        let bytes = if number == libc::SYS_write || number == libc::SYS_pwrite64 {
            call.args[2]
        } else {
            self.vector_bytes(call.args[1], call.args[2])?
        };
        let has_flag = number == libc::SYS_pwritev2 && call.args[5] & RWF_DSYNC != 0;
        Ok(Kind::Write {
            file,
            range: at..at + bytes,
            durable: flags & libc::O_DSYNC != 0 || has_flag,
        })
    }

    /// Returns the sum of the lengths of `count` vectors in the child's memory.
    fn vector_bytes(&self, address: u64, count: u64) -> Outcome<u64> {
        let memory = File::open(format!("/proc/{}/mem", self.child.id()))?;
        let mut vectors = vec![0; count as usize * VECTOR_BYTES];
        memory.read_exact_at(&mut vectors, address)?;
        let lengths = vectors.as_chunks::<8>().0.iter().skip(1).step_by(2);
        Ok(lengths.map(|bytes| u64::from_le_bytes(*bytes)).sum())
    }

    /// Finds the file of the mapped range that a call of `msync` makes durable. Returns
    /// [`Kind::Other`] for a call without `MS_SYNC` and for a range without a file.
    fn msync(&self, call: &libc::seccomp_data) -> Outcome<Kind> {
        let [address, bytes, flags, ..] = call.args;
        if flags & libc::MS_SYNC as u64 == 0 {
            return Ok(Kind::Other);
        }
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let mut word = || words.next().unwrap_or_default();
            let (range, _, offset, _, _, path) = (word(), word(), word(), word(), word(), word());
            let (start, end) = range.split_once('-').ok_or("no range")?;
            let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            if (start..end).contains(&address) && path.starts_with('/') {
                let from = u64::from_str_radix(offset, 16)? + (address - start);
                let file = FileId::of(&std::fs::metadata(path)?);
                return Ok(Kind::Sync(file, Some(from..from + bytes)));
            }
        }
        Ok(Kind::Other)
    }
}

impl Drop for Traced {
    /// Kills the child, as a power cut does.
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
