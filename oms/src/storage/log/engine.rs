//! The log of a volume in PostgreSQL, or in another engine of its protocol.
//!
//! `cluster::engine::schema` creates the tables. Each statement except `PROBE` names one volume, so
//! an engine that distributes its tables by volume runs the statement on one server.
//!
//! **Invariants**
//! - An append to the log is one statement that inserts one row, in a transaction of its own. The
//!   statement has no CTE that writes, because the PostgreSQL extension Citus cannot route such a
//!   statement.
//! - A refused statement, such as one that waited too long for a lock, has no effect.
//!
//! Deliberately absent: repetition of statements, which the writer decides.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::postgres::{EngineUrl, Param, Row, Session, SessionError};
use crate::storage::log::body::{CHAIN_BYTES, chain_in};
use crate::storage::log::{Answer, EngineRow, Entry, Head, LastWords, Log, LogError, Position};
use crate::storage::write_batch::Table;

/// Maximum time for a commit and for other short statements. After this time the next host is
/// tried, because an old primary without standbys never acknowledges a commit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Size in bytes for which an append gets one second in addition to `COMMIT_TIMEOUT`. The entry of
/// a stock has up to 60 MB. Without more time, its append could never succeed over a slow network.
const APPEND_BYTES_PER_SECOND: usize = 4 << 20;
/// Maximum time for statements that read, write or remove many rows. The copy of all rows (`rows`)
/// may take longer: the limit then applies to the time between two rows.
const BULK_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of entries that one call of `tail` returns.
const TAIL_ENTRIES: i64 = 64;
/// Maximum size in bytes of the entries that one call of `tail` returns, unless it returns a single
/// entry. An entry has some kilobytes, but that of a stock has megabytes. `Session::query` fails if
/// a result is too large, and so would each repetition of the call.
const TAIL_BYTES: i64 = 8 << 20;

const APPEND_FIRST: &str = "INSERT INTO imt_log (volume, seq, epoch, body) \
    SELECT v.volume, $2, v.epoch, $4 FROM imt_volume v WHERE v.volume = $1 AND v.epoch = $3 \
    ON CONFLICT (volume, seq) DO NOTHING";
const APPEND: &str = "INSERT INTO imt_log (volume, seq, epoch, body) \
    SELECT v.volume, $2, v.epoch, $4 FROM imt_volume v, imt_log l \
    WHERE v.volume = $1 AND v.epoch = $3 AND l.volume = $1 AND l.seq = $5 AND l.epoch = $6 \
    ON CONFLICT (volume, seq) DO NOTHING";
/// An append that ignores the epoch and the number of the entry. A test uses this append to show
/// that the tests of the epoch's check would detect that the check is missing.
#[cfg(test)]
const APPEND_WITHOUT_FENCE: &str = "INSERT INTO imt_log (volume, seq, epoch, body) \
    SELECT $1, coalesce(max(l.seq), 0) + 1, $3, $4 FROM imt_log l WHERE l.volume = $1 AND $2 > 0 \
    ON CONFLICT (volume, seq) DO NOTHING";
const LOOK: &str = "SELECT epoch, body FROM imt_log WHERE volume = $1 AND seq = $2";
const NEWEST: &str = "SELECT seq, epoch, substr(body, 1, $2) FROM imt_log WHERE volume = $1 \
    ORDER BY seq DESC LIMIT 1";
const HEAD: &str = "SELECT epoch, kept_from FROM imt_volume WHERE volume = $1";
const OWNER: &str = "SELECT owner FROM imt_volume WHERE volume = $1";
/// A commit that changes no data. Only the primary that the standbys follow can acknowledge it.
const PROBE: &str = "UPDATE imt_schema SET version = version WHERE one = 1";
const RELEASE: &str = "UPDATE imt_volume SET owner = '' WHERE volume = $1 AND epoch = $2";
const CREATE: &str = "INSERT INTO imt_volume (volume, epoch, owner, kept_from) VALUES ($1, 0, '', 1) \
    ON CONFLICT (volume) DO NOTHING";
const RAISE: &str = "UPDATE imt_volume SET epoch = greatest(epoch + 1, $3), owner = $2 \
    WHERE volume = $1 AND epoch < $4 RETURNING epoch";
const TAIL: &str = "SELECT seq, epoch, body FROM \
    (SELECT seq, epoch, body, sum(octet_length(body)) OVER (ORDER BY seq) AS bytes FROM \
    (SELECT seq, epoch, body FROM imt_log WHERE volume = $1 AND seq > $2 AND seq <= $3 \
    ORDER BY seq LIMIT $4) AS entries) AS sums \
    WHERE bytes <= $5 OR bytes = octet_length(body) ORDER BY seq";
const ROWS: &str = "SELECT tab, key, value FROM imt_row WHERE volume = $1";
const KEEP_FROM: &str = "UPDATE imt_volume SET kept_from = $3 WHERE volume = $1 AND kept_from = $2";
const PUT_ROWS: &str = "INSERT INTO imt_row (volume, tab, key, value) \
    SELECT $1, u.tab, u.key, u.value FROM unnest($2::smallint[], $3::bytea[], $4::bytea[]) \
    AS u (tab, key, value) \
    ON CONFLICT (volume, tab, key) DO UPDATE SET value = EXCLUDED.value";
const DELETE_ROWS: &str = "DELETE FROM imt_row r USING unnest($2::smallint[], $3::bytea[]) AS u (tab, key) \
    WHERE r.volume = $1 AND r.tab = u.tab AND r.key = u.key";
const TRIM: &str = "DELETE FROM imt_log l USING imt_volume v \
    WHERE v.volume = $1 AND l.volume = $1 AND l.seq <= $2 AND l.seq < v.kept_from - 1";

/// The log of one volume in an engine, and the connection to the engine.
pub(crate) struct EngineLog {
    session: Session,
    volume: String,
    #[cfg(test)]
    is_fenced: bool,
}

impl EngineLog {
    /// Creates the log without connecting. `purpose` is shown in `pg_stat_activity`.
    pub(crate) fn new(url: Arc<EngineUrl>, volume: &str, purpose: &'static str) -> EngineLog {
        EngineLog {
            session: Session::new(url, purpose),
            volume: volume.to_owned(),
            #[cfg(test)]
            is_fenced: true,
        }
    }

    /// Makes appends ignore the epoch, for a test that must detect the missing check.
    #[cfg(test)]
    pub(crate) fn without_fence(self) -> EngineLog {
        EngineLog {
            is_fenced: false,
            ..self
        }
    }
}

impl From<SessionError> for LogError {
    fn from(error: SessionError) -> LogError {
        match error {
            SessionError::Unknown { reason } => LogError::Unknown(reason),
            other => LogError::Away(other.to_string()),
        }
    }
}

fn number(row: &Row, column: usize) -> Result<u64, LogError> {
    u64::try_from(row.int8(column)?).map_err(|_| invalid("a negative number"))
}

fn invalid(found: &str) -> LogError {
    LogError::Away(format!("the engine's data cannot be used: {found}"))
}

/// Converts an entry number, epoch or version to the engine's signed type. These numbers grow far
/// too slowly to reach the limit of that type.
fn big(number: u64) -> Param<'static> {
    Param::Int8(i64::try_from(number).unwrap_or(i64::MAX))
}

/// Returns the maximum time for the append of an entry of this size.
fn append_timeout(bytes: usize) -> Duration {
    COMMIT_TIMEOUT + Duration::from_secs(1).mul_f64(bytes as f64 / APPEND_BYTES_PER_SECOND as f64)
}

impl Log for EngineLog {
    fn append<'a>(&'a mut self, entry: &'a Entry, behind: Option<(u64, u64)>) -> Answer<'a, bool> {
        Box::pin(async move {
            let first = [
                Param::Text(&self.volume),
                big(entry.seq),
                big(entry.epoch),
                Param::Bytes(&entry.body),
            ];
            let session = &mut self.session;
            let timeout = append_timeout(entry.body.len());
            let appended = match behind {
                #[cfg(test)]
                _ if !self.is_fenced => session.execute(APPEND_WITHOUT_FENCE, &first, timeout).await,
                None => session.execute(APPEND_FIRST, &first, timeout).await,
                Some((seq, epoch)) => {
                    let [volume, at, owner, body] = first;
                    let all = [volume, at, owner, body, big(seq), big(epoch)];
                    session.execute(APPEND, &all, timeout).await
                }
            };
            Ok(appended? == 1)
        })
    }

    fn look(&mut self, seq: u64) -> Answer<'_, Option<Entry>> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume), big(seq)];
            let rows = self.session.query(LOOK, &params, COMMIT_TIMEOUT).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            Ok(Some(Entry {
                seq,
                epoch: number(row, 0)?,
                body: Bytes::copy_from_slice(row.bytes(1)?),
            }))
        })
    }

    fn newest(&mut self) -> Answer<'_, Position> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume), Param::Int4(CHAIN_BYTES as i32)];
            let rows = self.session.query(NEWEST, &params, COMMIT_TIMEOUT).await?;
            let Some(row) = rows.first() else {
                return Ok(Position::default());
            };
            Ok(Position {
                seq: number(row, 0)?,
                epoch: number(row, 1)?,
                chain: chain_in(row.bytes(2)?).map_err(|fault| invalid(&fault.to_string()))?,
            })
        })
    }

    fn head(&mut self) -> Answer<'_, Option<Head>> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume)];
            let rows = self.session.query(HEAD, &params, COMMIT_TIMEOUT).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            Ok(Some(Head {
                epoch: number(row, 0)?,
                kept_from: number(row, 1)?,
            }))
        })
    }

    fn owner(&mut self) -> Answer<'_, Option<String>> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume)];
            let rows = self.session.query(OWNER, &params, COMMIT_TIMEOUT).await?;
            let owner = rows.first().map_or(Ok(""), |row| row.text(0))?;
            Ok((!owner.is_empty()).then(|| owner.to_owned()))
        })
    }

    fn confirm(&mut self) -> Answer<'_, bool> {
        Box::pin(async move {
            let connections = self.session.connections();
            self.session.execute(PROBE, &[], COMMIT_TIMEOUT).await?;
            Ok(self.session.connections() == connections)
        })
    }

    fn release(&mut self, epoch: u64) -> Answer<'_, ()> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume), big(epoch)];
            self.session.execute(RELEASE, &params, COMMIT_TIMEOUT).await?;
            Ok(())
        })
    }

    fn create(&mut self) -> Answer<'_, ()> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume)];
            self.session.execute(CREATE, &params, COMMIT_TIMEOUT).await?;
            Ok(())
        })
    }

    fn raise<'a>(&'a mut self, owner: &'a str, since: u64, until: u64) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            let params = [
                Param::Text(&self.volume),
                Param::Text(owner),
                big(since),
                big(until),
            ];
            let rows = self.session.query(RAISE, &params, COMMIT_TIMEOUT).await?;
            rows.first().map(|row| number(row, 0)).transpose()
        })
    }

    fn tail(&mut self, after: u64, last: u64) -> Answer<'_, Vec<Entry>> {
        Box::pin(async move {
            let params = [
                Param::Text(&self.volume),
                big(after),
                big(last),
                Param::Int8(TAIL_ENTRIES),
                Param::Int8(TAIL_BYTES),
            ];
            let mut entries = Vec::new();
            let rows = self.session.query(TAIL, &params, BULK_TIMEOUT).await?;
            for row in &rows {
                entries.push(Entry {
                    seq: number(row, 0)?,
                    epoch: number(row, 1)?,
                    body: Bytes::copy_from_slice(row.bytes(2)?),
                });
            }
            Ok(entries)
        })
    }

    fn rows<'a>(&'a mut self, take: &'a mut (dyn FnMut(EngineRow<'_>) -> bool + Send)) -> Answer<'a, ()> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume)];
            let mut goes_on = true;
            let each = |row: Row| {
                let table = u8::try_from(row.int2(0)?).ok().and_then(Table::of_code);
                let Some(table) = table else {
                    return Err(SessionError::Invalid {
                        reason: "a row of an unknown table".to_owned(),
                    });
                };
                goes_on = take(EngineRow {
                    table,
                    key: row.bytes(1)?,
                    value: row.bytes(2)?,
                });
                if goes_on {
                    return Ok(());
                }
                Err(SessionError::Invalid {
                    reason: "the copy ended early".to_owned(),
                })
            };
            match self.session.stream(ROWS, &params, BULK_TIMEOUT, each).await {
                Err(_) if !goes_on => Ok(()),
                copied => {
                    copied?;
                    Ok(())
                }
            }
        })
    }

    fn checkpoint<'a>(&'a mut self, from: u64, to: u64, words: &'a LastWords) -> Answer<'a, bool> {
        Box::pin(async move {
            let volume = Param::Text(&self.volume);
            let keep = [volume, big(from), big(to)];
            let codes: Vec<i16> = words.puts.iter().map(|put| put.0 as i16).collect();
            let keys: Vec<&[u8]> = words.puts.iter().map(|put| put.1.as_slice()).collect();
            let values: Vec<&[u8]> = words.puts.iter().map(|put| put.2.as_slice()).collect();
            let gone_codes: Vec<i16> = words.deletes.iter().map(|row| row.0 as i16).collect();
            let gone: Vec<&[u8]> = words.deletes.iter().map(|row| row.1.as_slice()).collect();
            let puts = [
                volume,
                Param::Int2s(&codes),
                Param::ByteArrays(&keys),
                Param::ByteArrays(&values),
            ];
            let deletes = [volume, Param::Int2s(&gone_codes), Param::ByteArrays(&gone)];
            let statements: [(&str, &[Param<'_>]); 3] =
                [(KEEP_FROM, &keep), (PUT_ROWS, &puts), (DELETE_ROWS, &deletes)];
            let affected = self.session.transaction(&statements, BULK_TIMEOUT).await?;
            Ok(affected.first() == Some(&1))
        })
    }

    fn trim(&mut self, last: u64) -> Answer<'_, u64> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume), big(last)];
            Ok(self.session.execute(TRIM, &params, BULK_TIMEOUT).await?)
        })
    }

    fn next_host(&mut self) {
        self.session.disconnect();
    }

    fn remove(&mut self, epoch: u64) -> Answer<'_, ()> {
        Box::pin(async move {
            let volume = Param::Text(&self.volume);
            let (owned, all) = ([volume, big(epoch)], [volume]);
            // The record is removed first: without a record of this epoch nothing may be removed.
            let statements: [(&str, &[Param<'_>]); 3] = [
                ("DELETE FROM imt_volume WHERE volume = $1 AND epoch = $2", &owned),
                ("DELETE FROM imt_log WHERE volume = $1", &all),
                ("DELETE FROM imt_row WHERE volume = $1", &all),
            ];
            self.session.transaction(&statements, BULK_TIMEOUT).await?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_append_of_a_large_entry_has_more_time() {
        let few_kilobytes = append_timeout(8 << 10);
        assert!(few_kilobytes < COMMIT_TIMEOUT + Duration::from_millis(5));
        assert_eq!(append_timeout(8 << 20), COMMIT_TIMEOUT + Duration::from_secs(2));
    }
}
