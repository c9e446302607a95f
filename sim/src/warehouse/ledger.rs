//! The ledger on disk: an append-only file with a JSON line for each entry of the warehouse's books
//! (`books.rs`).
//!
//! Invariants:
//! - An entry that [`Ticket::durable`] has confirmed survives a power cut.
//! - Only one process writes the file (file lock).
//! - An incomplete last line, left by a killed process, is removed and logged. The entry of such a
//!   line was never confirmed. Any other malformed line is an error with the line's number, and
//!   nothing is changed.
//!
//! A separate thread collects lines for 10 ms and syncs once for all of them. Answers are delayed
//! by 20 ms or more in all profiles (`behaviour.rs`) except `fast`, so this further delay hardly
//! matters. With fewer syncs, more capacity of a shared disk is left to the order management.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::books::{Books, Entry};
use crate::{Error, Result};

/// Time for which the writer collects lines before it writes and syncs them: at most 100 syncs a
/// second.
const GATHER: Duration = Duration::from_millis(10);

/// Progress of the writer: the number of lines that it has made durable since the ledger was
/// opened, and the failure that ended it.
#[derive(Debug, Clone, Default)]
struct Progress {
    lines: u64,
    failed: Option<String>,
}

/// The open ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    lines: Option<Sender<Vec<u8>>>,
    appended: u64,
    progress: watch::Receiver<Progress>,
    writer: Option<JoinHandle<()>>,
}

/// A position in the ledger, in lines appended since it was opened. The holder of a ticket can wait
/// until the ledger is durable up to this position.
#[derive(Debug)]
pub(crate) struct Ticket {
    line: u64,
    progress: watch::Receiver<Progress>,
}

impl Ticket {
    /// Waits until all lines up to this position are durable. Returns an error if the writer failed
    /// before.
    pub(crate) async fn durable(mut self) -> Result<()> {
        let failed = |problem: &str| Error::LedgerFailed {
            problem: problem.to_owned(),
        };
        let line = self.line;
        let progress = self
            .progress
            .wait_for(|progress| progress.lines >= line || progress.failed.is_some())
            .await
            .map_err(|_| failed("its writer is gone"))?;
        match &progress.failed {
            Some(problem) if progress.lines < line => Err(failed(problem)),
            _ => Ok(()),
        }
    }
}

impl Ledger {
    /// Opens a ledger and rebuilds the books from its lines. A file without a complete line becomes
    /// a ledger with the entry `begin`.
    pub(crate) fn open(path: &Path, begin: &Entry) -> Result<(Self, Books)> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(Error::io("open", path))?;
        file.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => Error::InUse {
                path: path.to_owned(),
            },
            std::fs::TryLockError::Error(source) => Error::io("lock", path)(source),
        })?;
        let (books, end) = read(&mut file, path)?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length > end {
            tracing::warn!(
                path = %path.display(), dropped_bytes = length - end,
                "the ledger's last line was cut short; it was confirmed to nobody and is dropped"
            );
            file.set_len(end).map_err(Error::io("shorten", path))?;
        }
        let books = match books {
            Some(books) => books,
            None => {
                file.write_all(&to_line(begin))
                    .map_err(Error::io("write", path))?;
                file.sync_all().map_err(Error::io("sync", path))?;
                sync_folder(path)?;
                Books::begin(begin).map_err(|problem| Error::Malformed {
                    path: path.to_owned(),
                    line: 1,
                    problem,
                })?
            }
        };
        Ok((Self::start(file, path)?, books))
    }

    fn start(file: File, path: &Path) -> Result<Self> {
        let (lines, queue) = mpsc::channel();
        let (publish, progress) = watch::channel(Progress::default());
        let writer = std::thread::Builder::new()
            .name("warehouse-ledger".into())
            .spawn(move || write_lines(file, &queue, &publish))
            .map_err(Error::io("start the writer of", path))?;
        Ok(Self {
            lines: Some(lines),
            appended: 0,
            progress,
            writer: Some(writer),
        })
    }

    /// Appends the line of an entry. Returns a ticket with which the caller can wait until the line
    /// is durable. The caller must append entries in the sequence in which it applied them to the
    /// books.
    pub(crate) fn append(&mut self, entry: &Entry) -> Ticket {
        // After a failure the writer has ended, so sending fails. The ticket reports the failure.
        if let Some(lines) = &self.lines {
            let _ = lines.send(to_line(entry));
        }
        self.appended += 1;
        self.ticket()
    }

    /// Returns a ticket for all lines that are appended so far.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket {
            line: self.appended,
            progress: self.progress.clone(),
        }
    }
}

impl Drop for Ledger {
    /// Waits until the writer has made the appended lines durable, or has failed.
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            // An error means that the writer panicked. It is ignored, because `drop` cannot report
            // it.
            let _ = writer.join();
        }
    }
}

fn to_line(entry: &Entry) -> Vec<u8> {
    // An entry consists of texts, numbers and lists, so that its serialization cannot fail.
    let mut line = serde_json::to_vec(entry).expect("an entry is plain data");
    line.push(b'\n');
    line
}

/// Reads all complete lines. Returns the books (`None` if there is no complete line) and the byte
/// offset after the last complete line.
fn read(file: &mut File, path: &Path) -> Result<(Option<Books>, u64)> {
    file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut books: Option<Books> = None;
    let mut end = 0;
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let length = reader
            .read_until(b'\n', &mut text)
            .map_err(Error::io("read", path))?;
        if text.last() != Some(&b'\n') {
            break;
        }
        let malformed = |problem| Error::Malformed {
            path: path.to_owned(),
            line,
            problem,
        };
        let entry: Entry = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
        match &mut books {
            Some(books) => books.apply(&entry).map_err(malformed)?,
            None => books = Some(Books::begin(&entry).map_err(malformed)?),
        }
        end += length as u64;
    }
    Ok((books, end))
}

/// Syncs the folder of a new file. A new file's name is durable only after a sync of its folder.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync", folder))
}

/// The writer thread: collects lines, writes and syncs them, and publishes the progress. The thread
/// ends when the ledger is dropped, or at the first failure.
fn write_lines(mut file: File, queue: &Receiver<Vec<u8>>, publish: &watch::Sender<Progress>) {
    while let Ok(mut text) = queue.recv() {
        let mut gathered = 1;
        let until = Instant::now() + GATHER;
        while let Ok(line) = queue.recv_timeout(until.saturating_duration_since(Instant::now())) {
            text.extend_from_slice(&line);
            gathered += 1;
        }
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        publish.send_modify(|progress| match &written {
            Ok(()) => progress.lines += gathered,
            Err(error) => progress.failed = Some(error.to_string()),
        });
        if let Err(error) = written {
            // After a failed write or sync, the content of the disk is unknown. So no further line
            // is ever confirmed.
            tracing::error!(%error, "the warehouse's ledger cannot be written");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warehouse::books::{Decision, LEDGER_VERSION};
    use crate::wire::{Product, WarehouseOrder};

    fn begin() -> Entry {
        Entry::Begin {
            version: LEDGER_VERSION,
            seed: 5,
            base: 1000,
            products: 10,
            stores: 4,
            units: 15,
        }
    }

    /// Delivers `count` orders of one unit each, with ids from `first`. Returns when all deliveries
    /// are durable.
    async fn deliver(ledger: &mut Ledger, books: &mut Books, first: u32, count: u32) {
        for id in first..first + count {
            let store = (1..=4)
                .find(|store| books.stock().get(1, *store).unwrap() > 0)
                .unwrap();
            let order = WarehouseOrder {
                id: id.to_string(),
                products: vec![Product { id: 1, quantity: 1 }],
                store_id: store,
                transaction_id: Some(1),
            };
            let Decision::Deliver(entry) = books.deliver(&order, Some(&format!("{id}/deliver"))) else {
                panic!("not delivered");
            };
            books.apply(&entry).unwrap();
            ledger.append(&entry).durable().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_ledger_opened_again_tells_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let (mut ledger, mut books) = Ledger::open(&path, &begin()).unwrap();
        deliver(&mut ledger, &mut books, 1, 3).await;
        let restock = books.restock(1);
        if let Some(entry) = &restock {
            books.apply(entry).unwrap();
            ledger.append(entry).durable().await.unwrap();
        }
        drop(ledger);
        let (_ledger, again) = Ledger::open(&path, &begin()).unwrap();
        assert_eq!(again.deliveries(0, 99), books.deliveries(0, 99));
        assert_eq!(again.stock(), books.stock());
        assert_eq!(again.restocks(), books.restocks());
        assert_eq!(again.sequence(), 1003);
    }

    #[tokio::test]
    async fn cut_anywhere_the_ledger_keeps_every_whole_line_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let (mut ledger, mut books) = Ledger::open(&path, &begin()).unwrap();
        deliver(&mut ledger, &mut books, 1, 2).await;
        drop(ledger);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let lines = whole[..length].iter().filter(|b| **b == b'\n').count();
            let (mut ledger, mut books) = Ledger::open(&path, &begin()).unwrap();
            assert_eq!(
                books.counts().delivered,
                lines.saturating_sub(1) as u64,
                "cut at {length}"
            );
            if length.is_multiple_of(50) {
                deliver(&mut ledger, &mut books, 7, 1).await;
                drop(ledger);
                let (_ledger, again) = Ledger::open(&path, &begin()).unwrap();
                assert_eq!(again.deliveries(0, 9), books.deliveries(0, 9));
            }
        }
    }

    #[tokio::test]
    async fn a_line_that_makes_no_sense_is_named_and_nothing_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let (mut ledger, mut books) = Ledger::open(&path, &begin()).unwrap();
        deliver(&mut ledger, &mut books, 1, 2).await;
        drop(ledger);
        let text = std::fs::read_to_string(&path)
            .unwrap()
            .replace("\"sequence\":1001", "\"sequence\":1007");
        std::fs::write(&path, &text).unwrap();
        let error = Ledger::open(&path, &begin()).unwrap_err().to_string();
        assert!(
            error.contains("ledger.jsonl, line 2: order 1 was delivered as 1007"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_second_process_is_turned_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let _first = Ledger::open(&path, &begin()).unwrap();
        assert!(matches!(Ledger::open(&path, &begin()), Err(Error::InUse { .. })));
    }

    #[tokio::test]
    async fn after_a_failed_write_nothing_is_confirmed() {
        // The device `/dev/full` fails every write, like a full disk.
        let path = Path::new("/dev/full");
        let file = OpenOptions::new().append(true).open(path).unwrap();
        let mut ledger = Ledger::start(file, path).unwrap();
        let first = ledger.append(&begin()).durable().await.unwrap_err().to_string();
        assert!(first.contains("cannot be written"), "{first}");
        assert!(ledger.append(&begin()).durable().await.is_err());
    }
}
