//! The runs of one transaction: optimistic runs, runs in a turn of a commit group, and their
//! commits.
//!
//! - A run with an outdated read is repeated, up to the maximum number of runs in the options.
//! - A turn is a run inside a commit group, during which no other commit is made (see
//!   [`crate::engine::group`]). A transaction with a short body and [`Durability::Sync`] gets a
//!   turn at its first conflict, any other transaction after eight runs. A conflict of the last
//!   permitted run leads to no further turn.
//! - If the body panics in a turn, the group continues. The panic is resumed once the group has
//!   ended or the turn was lost.
//!
//! Deliberately absent: reads and writes of a run, which are in `transaction`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Transaction;
use crate::db::Db;
use crate::engine::group::{Committed, Ran, Request, Turn};
use crate::engine::group_writes::GroupWrites;
use crate::engine::nesting::{self, InBody};
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::seeded::seeded;

/// Maximum duration of a body that gets a turn at its first conflict. A turn of this length hardly
/// delays other writers.
const SHORT_BODY: Duration = Duration::from_millis(1);

/// Number of runs after which any other body gets a turn at a conflict: a body that takes longer
/// than [`SHORT_BODY`], or that of a transaction with [`Durability::Buffered`].
const TRIES_BEFORE_TURN: u32 = 8;

/// Time limit of a transaction's first turn. The limit doubles after each turn that exceeds it.
/// Most bodies that only read and compute need less time. The writers that wait for the end of the
/// turn are not delayed for long.
const TURN_LIMIT: Duration = Duration::from_millis(50);

/// Maximum time limit of a turn.
const TURN_LIMIT_MAX: Duration = Duration::from_secs(10);

/// Runs `body` until it commits, fails, or has used the maximum number of runs.
pub(super) fn run<T, E: From<Error>>(
    db: &Db,
    body: &mut dyn FnMut(&mut Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    nesting::check_outside(&db.engine)?;
    db.engine.check_process()?;
    let options = &db.engine.options;
    let mut attempts = Attempts {
        db,
        body,
        durability: options.durability,
        turn_limit: TURN_LIMIT,
    };
    let mut left = None;
    for tries in 1..=options.transaction_tries {
        let run = match left.take() {
            Some(run) => run,
            None => attempts.run(None)?,
        };
        match attempts.commit(run, tries) {
            Attempt::Done(result) => return result,
            Attempt::Again => std::thread::yield_now(),
            Attempt::TurnLost(run) => left = run,
        }
    }
    Err(E::from(Error::Conflict {
        tries: options.transaction_tries,
    }))
}

/// One run of a body.
struct Run<'a, T, E> {
    transaction: Transaction<'a>,
    result: Result<T, E>,
    took: Duration,
}

/// Outcome of an attempt to commit a run.
enum Attempt<'a, T, E> {
    Done(Result<T, E>),
    /// The body must run again.
    Again,
    /// The body exceeded the time limit of its turn. Holds the run of the body, which may still
    /// commit with the usual checks, or `None` if the limit passed before the body was called.
    TurnLost(Option<Run<'a, T, E>>),
}

/// State shared by all runs of one transaction.
struct Attempts<'a, 'b, T, E> {
    db: &'a Db,
    body: &'b mut dyn FnMut(&mut Transaction<'_>) -> Result<T, E>,
    durability: Durability,
    turn_limit: Duration,
}

impl<'a, T, E: From<Error>> Attempts<'a, '_, T, E> {
    /// Runs the body once. `group` has the earlier writes of the commit group if the transaction
    /// has a turn.
    fn run(&mut self, group: Option<Arc<GroupWrites>>) -> Result<Run<'a, T, E>> {
        let mut transaction = Transaction::begin(self.db, group);
        let started = Instant::now();
        let in_body = InBody::enter(&self.db.engine)?;
        let result = (self.body)(&mut transaction);
        drop(in_body);
        Ok(Run {
            transaction,
            result,
            took: started.elapsed(),
        })
    }

    fn commit(&mut self, run: Run<'a, T, E>, tries: u32) -> Attempt<'a, T, E> {
        let engine = &self.db.engine;
        // The body may have forked, and this may be the child.
        if let Err(forked) = engine.check_process() {
            return Attempt::Done(Err(forked.into()));
        }
        let Run {
            transaction,
            result,
            took,
        } = run;
        let last = tries == engine.options.transaction_tries;
        // In a loom model no time passes, so every durable body is short.
        let short = self.durability == Durability::Sync && (cfg!(loom) || took <= SHORT_BODY);
        let may_turn = !last && (short || tries >= TRIES_BEFORE_TURN);
        // `group` is still set only for a run that lost its turn. Such a run may have read commits
        // of the group that are not visible or not durable yet. So its error, or its result without
        // writes, is not returned, and the body runs again.
        let is_early = transaction.group.is_some() && !seeded("lost-turn-answers-early");
        let is_answer = result.is_err() || transaction.writes.is_empty();
        if transaction.outdated || is_answer && is_early {
            return match may_turn {
                true => {
                    self.commit_in_group(Request::turn(self.durability, Turn::Now(self.turn_limit)), None)
                }
                false => Attempt::Again,
            };
        }
        // The reads were valid at one moment, so a run with an error or without writes needs no
        // commit.
        if is_answer {
            return Attempt::Done(result);
        }
        let checks = transaction.checks();
        let encoded = transaction.encoded().and_then(|(body, tables)| {
            engine.prepare(&body, &tables)?;
            engine.wait_for_space(body.bytes.len())?;
            Ok((body, tables))
        });
        let (mut body, tables) = match encoded {
            Ok(encoded) => encoded,
            Err(error) => return Attempt::Done(Err(error.into())),
        };
        if self.durability == Durability::Buffered {
            match engine.commit_at_once(&mut body, &tables, &checks) {
                Ok(Some(_)) => return Attempt::Done(result),
                Ok(None) => {}
                Err(Error::Conflict { .. }) if may_turn => {
                    let turn = Turn::Now(self.turn_limit);
                    return self.commit_in_group(Request::turn(self.durability, turn), None);
                }
                Err(Error::Conflict { .. }) => return Attempt::Again,
                Err(error) => return Attempt::Done(Err(error.into())),
            }
        }
        let turn = match may_turn {
            true => Turn::OnConflict(self.turn_limit),
            false => Turn::Never,
        };
        let request = Request {
            body,
            tables,
            checks,
            ..Request::turn(self.durability, turn)
        };
        self.commit_in_group(request, Some(result))
    }

    /// Commits as part of a group. `result` is the result of the run with the writes in `request`,
    /// or `None` if `request` has no writes.
    fn commit_in_group(&mut self, request: Request, result: Option<Result<T, E>>) -> Attempt<'a, T, E> {
        let engine = &self.db.engine;
        let turn = request.turn;
        let mut turned: Option<std::thread::Result<Result<Run<'a, T, E>>>> = None;
        let mut runner = |group| -> Ran {
            // A panic must not end the group. Once the group has ended or the turn was lost, the
            // thread that runs the transaction resumes the panic.
            let run = catch_unwind(AssertUnwindSafe(|| self.run(Some(group))));
            let (run, encoded) = match run {
                Ok(Ok(mut run)) => match run.writes() {
                    Ok(encoded) => (Ok(Ok(run)), encoded),
                    Err(error) => {
                        run.result = Err(error.into());
                        (Ok(Ok(run)), None)
                    }
                },
                other => (other, None),
            };
            turned = Some(run);
            encoded
        };
        let committed = match turn {
            Turn::Never => engine.commit_without_turn(request),
            Turn::OnConflict(_) | Turn::Now(_) => engine.commit_transaction(request, &mut runner),
        };
        let turned = match turned {
            Some(Err(panic)) => resume_unwind(panic),
            Some(Ok(Err(error))) => return Attempt::Done(Err(error.into())),
            Some(Ok(Ok(run))) => Some(run),
            None => None,
        };
        match committed {
            Committed::TurnLost => {
                self.turn_limit = (self.turn_limit * 2).min(TURN_LIMIT_MAX);
                Attempt::TurnLost(turned)
            }
            Committed::Done(Err(Error::Conflict { .. }), _) => Attempt::Again,
            Committed::Done(Err(error), _) => Attempt::Done(Err(error.into())),
            Committed::Done(Ok(_), _) => match turned {
                Some(run) if run.transaction.outdated => Attempt::Again,
                Some(run) => Attempt::Done(run.result),
                None => result.map_or(Attempt::Again, Attempt::Done),
            },
        }
    }
}

impl<T, E> Run<'_, T, E> {
    /// Returns the encoded writes, or `None` if the run has an outdated read, an error as its
    /// result, or no writes.
    fn writes(&self) -> Result<Ran> {
        if self.transaction.outdated || self.result.is_err() || self.transaction.writes.is_empty() {
            return Ok(None);
        }
        self.transaction.encoded().map(Some)
    }
}
