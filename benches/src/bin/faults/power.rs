//! Runs an engine in a traced process (`traced`) on the modelled disk (`disk`), and records at each
//! moment which content is durable and which sectors a power cut may keep or lose.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use imt_benches::Outcome;
use imt_benches::engines::EngineName;
use serde::de::DeserializeOwned;

use crate::disk::{Content, Disk, FileId, View};
use crate::traced::{Answer, Event, Kind, Traced};
use crate::work::{Order, Reply, Task};

/// Time limit of the next call or reply of an engine. An engine that takes longer counts as
/// hanging.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// The outcome of the open or of an [`Order`] to the engine.
#[derive(Debug)]
pub(crate) enum Outcomes<T> {
    Reply(T),
    /// The process ended without a reply.
    Ended,
    /// The process made no call and did not reply within the time limit.
    Hung,
}

/// A running engine, and the disk below it.
pub(crate) struct Power {
    folder: PathBuf,
    traced: Traced,
    disk: Disk,
    /// The durable write that each thread was last permitted to perform, until the model makes it
    /// durable: at the next call of the thread, or at the reply of the process.
    writing: HashMap<u32, (FileId, Range<u64>)>,
    /// Number of further syncs and durable writes that succeed before one fails. `None` if none has
    /// to fail, and after the failure.
    fail_after: Option<u64>,
    /// The file of which a sync has failed, or "a durable write". Empty before a failure, and if
    /// the sync of all files has failed.
    failed: String,
}

/// Called with the disk and the current files: before each sync that succeeds, and after each
/// durable write that succeeds, before the model makes that write durable. Syncs of folders are not
/// reported, nor are syncs and durable writes of files that are not (or no longer) in the engine's
/// folder.
pub(crate) type BeforeSync<'a> = dyn FnMut(&Disk, &View) -> Outcome<()> + 'a;

impl Power {
    /// Starts an engine on a folder, and opens the database. All files that are in the folder now
    /// count as durable.
    pub(crate) fn start(engine: EngineName, folder: &Path, hook: &mut BeforeSync<'_>) -> Outcome<Self> {
        let mut disk = Disk::default();
        disk.sync_all(&View::read(folder)?);
        Self::open(engine, folder, disk, hook)
    }

    /// Kills the process, and opens the database in a new one. The files stay as the process saw
    /// them, because the kernel still has their pages in memory.
    pub(crate) fn restart(self, engine: EngineName, hook: &mut BeforeSync<'_>) -> Outcome<Self> {
        let Self {
            folder, traced, disk, ..
        } = self;
        drop(traced);
        Self::open(engine, &folder, disk, hook)
    }

    fn open(engine: EngineName, folder: &Path, disk: Disk, hook: &mut BeforeSync<'_>) -> Outcome<Self> {
        let task = Task::Serve {
            engine,
            folder: folder.to_path_buf(),
        };
        let mut power = Self {
            folder: folder.to_path_buf(),
            traced: Traced::start(&task)?,
            disk,
            writing: HashMap::new(),
            fail_after: None,
            failed: String::new(),
        };
        match power.reply::<Reply>(hook)? {
            Outcomes::Reply(None) => Ok(power),
            other => Err(format!("the engine does not open: {other:?}").into()),
        }
    }

    /// Lets `count` further syncs and durable writes succeed and the next one fail. Later ones
    /// succeed again. Syncs of folders, and of files that are not (or no longer) in the engine's
    /// folder, are not counted.
    pub(crate) fn fail_after(&mut self, count: u64) {
        self.fail_after = Some(count);
    }

    /// Returns `true` once the sync or durable write of [`Power::fail_after`] has failed, and also
    /// before `fail_after` is called.
    pub(crate) fn has_failed(&self) -> bool {
        self.fail_after.is_none()
    }

    /// Returns the path of the file of which a sync has failed, or "a durable write". The text is
    /// empty before a failure, and if the sync of all files has failed.
    pub(crate) fn failed(&self) -> &str {
        &self.failed
    }

    /// Returns the files as the process sees them, and the disk.
    pub(crate) fn state(&self) -> Outcome<(View, &Disk)> {
        Ok((View::read(&self.folder)?, &self.disk))
    }

    /// Sends an order and handles all calls until its reply, or until the process ends or hangs.
    pub(crate) fn order<T: DeserializeOwned>(
        &mut self,
        order: &Order,
        hook: &mut BeforeSync<'_>,
    ) -> Outcome<Outcomes<T>> {
        self.traced.say(&serde_json::to_string(order)?);
        self.reply(hook)
    }

    fn reply<T: DeserializeOwned>(&mut self, hook: &mut BeforeSync<'_>) -> Outcome<Outcomes<T>> {
        loop {
            let call = match self.traced.next(TIME_LIMIT)? {
                Event::Call(call) => call,
                Event::Line(line) => {
                    let threads: Vec<u32> = self.writing.keys().copied().collect();
                    for thread in threads {
                        self.written(thread, hook)?;
                    }
                    return Ok(Outcomes::Reply(serde_json::from_str(&line)?));
                }
                Event::Ended => return Ok(Outcomes::Ended),
                Event::Silent => return Ok(Outcomes::Hung),
            };
            self.written(call.thread, hook)?;
            let answer = match &call.kind {
                Kind::Other => Answer::Continue,
                Kind::Write { file, range, durable } => {
                    self.disk.touch(*file, range.clone());
                    if *durable && self.fails() {
                        self.failed = "a durable write".to_owned();
                        Answer::Failure
                    } else {
                        if *durable {
                            self.writing.insert(call.thread, (*file, range.clone()));
                        }
                        Answer::Continue
                    }
                }
                Kind::SyncFolder => Answer::Success,
                Kind::SyncAll => {
                    let view = View::read(&self.folder)?;
                    if self.fails() {
                        for (file, content) in view.files.values() {
                            self.disk.fail(*file, content);
                        }
                        Answer::Failure
                    } else {
                        hook(&self.disk, &view)?;
                        self.disk.sync_all(&view);
                        Answer::Success
                    }
                }
                Kind::Sync(file, range) => {
                    let view = View::read(&self.folder)?;
                    let Some(content) = content_of(&view, *file) else {
                        // A removed file, or a file outside of the folder.
                        self.traced.answer(&call, Answer::Success);
                        continue;
                    };
                    if self.fails() {
                        self.failed = view.name_of(*file);
                        self.disk.fail(*file, content);
                        Answer::Failure
                    } else {
                        hook(&self.disk, &view)?;
                        self.disk.sync(*file, content, range.clone());
                        Answer::Success
                    }
                }
            };
            self.traced.answer(&call, answer);
        }
    }

    /// Calls the hook and then makes the permitted durable write of a thread durable in the model.
    /// Does nothing if the thread has no such write, or if its file is not in the folder.
    fn written(&mut self, thread: u32, hook: &mut BeforeSync<'_>) -> Outcome<()> {
        if let Some((file, range)) = self.writing.remove(&thread) {
            let view = View::read(&self.folder)?;
            if let Some(content) = content_of(&view, file) {
                hook(&self.disk, &view)?;
                self.disk.sync(file, content, Some(range));
            }
        }
        Ok(())
    }

    fn fails(&mut self) -> bool {
        match self.fail_after {
            None => false,
            Some(0) => {
                self.fail_after = None;
                true
            }
            Some(count) => {
                self.fail_after = Some(count - 1);
                false
            }
        }
    }
}

fn content_of(view: &View, file: FileId) -> Option<&Content> {
    let mut files = view.files.values();
    files.find(|(id, _)| *id == file).map(|(_, content)| content)
}
