//! The log of a volume in PostgreSQL, or in another engine of its protocol.
//!
//! `cluster::engine::schema` creates the tables. Each statement except `PROBE` names one volume, so
//! an engine that distributes its tables by volume runs the statement on one server.
//!
//! **Invariants**
//! - An append to the log is one statement that inserts one row, in a transaction of its own. The
//!   statement has no CTE that writes, because the PostgreSQL extension Citus cannot route such a
//!   statement.
//! - The time and memory of a statement are bounded at every size of the log, of its entries and of
//!   the volume. A checkpoint, a copy and a removal are split into parts. A statement that can need
//!   more time than the role's `statement_timeout` sets a limit of its own.
//! - A removal first *marks* the volume with the `kept_from` 0. A marked volume counts as missing:
//!   no append, takeover, checkpoint or copy of it begins. A checkpoint that is in flight completes
//!   before the mark or not at all. So no rows come after the mark. The record of the volume is
//!   removed last. A removal that was not completed is completed by the next `create`.
//! - An append that began before the mark may come after the removal. `create` removes its entry.
//! - A refused statement, such as one that waited too long for a lock, has no effect.
//!
//! Deliberately absent: repetition of statements, which the writer decides.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::postgres::{EngineUrl, Param, Row, Session, SessionError};
use crate::storage::log::body::CHAIN_BYTES;
use crate::storage::log::{Answer, Entry, EntryHead, Head, LastWords, Log, LogError, Position, RowsPart};
use crate::storage::write_batch::Table;

/// Maximum time for a commit and for other short statements. After this time the next host is
/// tried, because an old primary without standbys never acknowledges a commit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Size in bytes for which an append or a checkpoint gets one second in addition to its usual time.
/// The entry of a stock has up to 60 MB. Without more time, its append could never succeed over a
/// slow network.
const BYTES_PER_SECOND: usize = 4 << 20;
/// Maximum time for statements that read, write or remove many rows, also at the server. It is the
/// time of one statement: `tail` may need a second one, and `trim`, `create` and `remove` execute
/// several. For `rows`, it is the time between two rows. A statement of `PART_ROWS` rows or
/// `PART_BYTES` bytes usually takes less than a second. This limit is for slow disks, and for a
/// server that writes to its disks for other volumes.
const BULK_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of entries that one call of `tail` returns.
const TAIL_ENTRIES: i64 = 64;
/// Maximum size in bytes of the entries that one call of `tail` returns, unless it returns a single
/// entry. An entry has some kilobytes, but that of a stock has megabytes. `Session::query` fails if
/// a result is too large, and so would each repetition of the call.
const TAIL_BYTES: i64 = 8 << 20;
/// Maximum size in bytes of the rows that one statement of a checkpoint writes, unless it writes a
/// single row. The size of all parameters of a statement is limited, and a large statement takes
/// long.
const PART_BYTES: usize = 4 << 20;
/// Maximum number of rows that one statement of a checkpoint, a copy or a removal writes, reads or
/// removes.
const PART_ROWS: usize = 4_096;
/// Size in bytes of the parameters of a row in addition to its key and value: the code of the table
/// and the lengths.
const ROW_BYTES: usize = 14;
/// Maximum number of log entries that one statement removes.
const TRIM_ENTRIES: i64 = 1_024;
/// Maximum size in bytes of the log entries that one statement removes, unless it removes a single
/// entry. PostgreSQL deletes a row of its own for each 2 KB of a large entry.
const TRIM_BYTES: i64 = 64 << 20;
/// PostgreSQL's error code for a statement that was cancelled, for example by `statement_timeout`.
const QUERY_CANCELED: &str = "57014";

const APPEND_FIRST: &str = "INSERT INTO imt_log (volume, seq, epoch, body) \
    SELECT v.volume, $2, v.epoch, $4 FROM imt_volume v \
    WHERE v.volume = $1 AND v.epoch = $3 AND v.kept_from > 0 \
    ON CONFLICT (volume, seq) DO NOTHING";
const APPEND: &str = "INSERT INTO imt_log (volume, seq, epoch, body) \
    SELECT v.volume, $2, v.epoch, $4 FROM imt_volume v, imt_log l \
    WHERE v.volume = $1 AND v.epoch = $3 AND v.kept_from > 0 \
    AND l.volume = $1 AND l.seq = $5 AND l.epoch = $6 \
    ON CONFLICT (volume, seq) DO NOTHING";
/// The parameter of statements that read the head of an entry.
const HEAD_BYTES: Param<'static> = Param::Int4(CHAIN_BYTES as i32);
/// An append that ignores the epoch and the number of the entry. A test uses this append to show
/// that the tests of the epoch's check would detect that the check is missing.
#[cfg(test)]
const APPEND_WITHOUT_FENCE: &str = "INSERT INTO imt_log (volume, seq, epoch, body) \
    SELECT $1, coalesce(max(l.seq), 0) + 1, $3, $4 FROM imt_log l WHERE l.volume = $1 AND $2 > 0 \
    ON CONFLICT (volume, seq) DO NOTHING";
/// Reads the leading bytes of a body only. The server stores bodies uncompressed, so it does not
/// read the rest of a large body.
const LOOK: &str = "SELECT epoch, substr(body, 1, $3) FROM imt_log WHERE volume = $1 AND seq = $2";
const NEWEST: &str = "SELECT seq, epoch, substr(body, 1, $2) FROM imt_log WHERE volume = $1 \
    ORDER BY seq DESC LIMIT 1";
/// Reads the record of a volume also if it is marked.
const HEAD: &str = "SELECT epoch, kept_from FROM imt_volume WHERE volume = $1";
const OWNER: &str = "SELECT owner FROM imt_volume WHERE volume = $1";
/// A commit that changes no data. Only the primary that the standbys follow can acknowledge it.
const PROBE: &str = "UPDATE imt_schema SET version = version WHERE one = 1";
const RELEASE: &str = "UPDATE imt_volume SET owner = '' WHERE volume = $1 AND epoch = $2";
const CREATE: &str = "INSERT INTO imt_volume (volume, epoch, owner, kept_from) VALUES ($1, 0, '', 1) \
    ON CONFLICT (volume) DO NOTHING";
const RAISE: &str = "UPDATE imt_volume SET epoch = greatest(epoch + 1, $3), owner = $2 \
    WHERE volume = $1 AND epoch < $4 AND kept_from > 0 RETURNING epoch";
const TAIL: &str = "SELECT seq, epoch, body FROM \
    (SELECT seq, epoch, body, sum(octet_length(body)) OVER (ORDER BY seq) AS bytes FROM \
    (SELECT seq, epoch, body FROM imt_log WHERE volume = $1 AND seq > $2 AND seq <= $3 \
    ORDER BY seq LIMIT $4) AS entries) AS sums \
    WHERE bytes <= $5 OR bytes = octet_length(body) ORDER BY seq";
/// Reads the head of the entry before `kept_from`. The columns of the entry are NULL if the log
/// does not have it, and the volume's first entry has the number 1.
const ROWS_HEAD: &str = "SELECT v.kept_from, l.epoch, substr(l.body, 1, $2) FROM imt_volume v \
    LEFT JOIN imt_log l ON l.volume = v.volume AND l.seq = v.kept_from - 1 \
    WHERE v.volume = $1 AND v.kept_from > 0";
const ROWS: &str = "SELECT tab, key, value FROM \
    (SELECT tab, key, value, sum(octet_length(value)) OVER (ORDER BY tab, key) AS bytes FROM \
    (SELECT tab, key, value FROM imt_row WHERE volume = $1 AND (tab, key) > ($2::smallint, $3) \
    ORDER BY tab, key LIMIT $4) AS part) AS sums \
    WHERE bytes <= $5 OR bytes = octet_length(value) ORDER BY tab, key";
/// Completes a checkpoint. The bytes 2 to 17 of a body are its chain.
const KEEP_FROM: &str = "UPDATE imt_volume SET kept_from = $3 WHERE volume = $1 AND kept_from = $2 \
    AND EXISTS (SELECT 1 FROM imt_log l WHERE l.volume = $1 AND l.seq = $4 AND l.epoch = $5 \
    AND substr(l.body, 2, 16) = $6)";
const PUT_ROWS: &str = "INSERT INTO imt_row (volume, tab, key, value) \
    SELECT $1, u.tab, u.key, u.value FROM unnest($2::smallint[], $3::bytea[], $4::bytea[]) \
    AS u (tab, key, value) \
    ON CONFLICT (volume, tab, key) DO UPDATE SET value = EXCLUDED.value";
const DELETE_ROWS: &str = "DELETE FROM imt_row r USING unnest($2::smallint[], $3::bytea[]) AS u (tab, key) \
    WHERE r.volume = $1 AND r.tab = u.tab AND r.key = u.key";
/// Returns the number of the last entry of the next part to remove. The size of a body is known
/// without reading the body.
const TRIM_PART: &str = "SELECT max(seq) FROM \
    (SELECT seq, size, sum(size) OVER (ORDER BY seq) AS bytes FROM \
    (SELECT l.seq, octet_length(l.body) AS size FROM imt_log l, imt_volume v \
    WHERE v.volume = $1 AND v.epoch = $6 AND l.volume = $1 AND l.seq > $2 AND l.seq <= $3 \
    AND l.seq < v.kept_from - 1 \
    ORDER BY l.seq LIMIT $4) AS entries) AS sums WHERE bytes <= $5 OR bytes = size";
const TRIM: &str = "DELETE FROM imt_log l USING imt_volume v \
    WHERE v.volume = $1 AND v.epoch = $4 AND l.volume = $1 AND l.seq > $2 AND l.seq <= $3 \
    AND l.seq < v.kept_from - 1";

/// Marks a volume for its removal. Waits for a checkpoint that has changed `kept_from`, and makes
/// every later one affect no row.
const MARK: &str = "UPDATE imt_volume SET kept_from = 0, owner = '' WHERE volume = $1 AND epoch = $2";
const MARKED: &str = "SELECT 1 FROM imt_volume WHERE volume = $1 AND epoch = $2 AND kept_from = 0";
/// Returns the key of the last row of the next part of the rows to remove.
const ROWS_PART: &str = "SELECT tab, key FROM \
    (SELECT tab, key, size, sum(size) OVER (ORDER BY tab, key) AS bytes FROM \
    (SELECT tab, key, octet_length(value) AS size FROM imt_row \
    WHERE volume = $1 AND (tab, key) > ($2::smallint, $3) \
    ORDER BY tab, key LIMIT $4) AS part) AS sums WHERE bytes <= $5 OR bytes = size \
    ORDER BY tab DESC, key DESC LIMIT 1";
const REMOVE_ROWS: &str = "DELETE FROM imt_row WHERE volume = $1 \
    AND (tab, key) > ($2::smallint, $3) AND (tab, key) <= ($4::smallint, $5) \
    AND EXISTS (SELECT 1 FROM imt_volume v WHERE v.volume = $1 AND v.epoch = $6 AND v.kept_from = 0)";
/// Returns the number of the last entry of the next part of the log to remove.
const LOG_PART: &str = "SELECT max(seq) FROM \
    (SELECT seq, size, sum(size) OVER (ORDER BY seq) AS bytes FROM \
    (SELECT seq, octet_length(body) AS size FROM imt_log WHERE volume = $1 AND seq > $2 \
    ORDER BY seq LIMIT $3) AS entries) AS sums WHERE bytes <= $4 OR bytes = size";
const REMOVE_LOG: &str = "DELETE FROM imt_log WHERE volume = $1 AND seq > $2 AND seq <= $3 \
    AND EXISTS (SELECT 1 FROM imt_volume v WHERE v.volume = $1 AND v.epoch = $4 AND v.kept_from = 0)";
const DELETE_VOLUME: &str = "DELETE FROM imt_volume WHERE volume = $1 AND epoch = $2 AND kept_from = 0";
/// Removes the rows of a name without a volume. A snapshot that has an entry or row of a new volume
/// also has the record of this volume.
const DELETE_LEFT_ROWS: &str = "DELETE FROM imt_row WHERE volume = $1 \
    AND NOT EXISTS (SELECT 1 FROM imt_volume v WHERE v.volume = $1)";
const DELETE_LEFT_ENTRIES: &str = "DELETE FROM imt_log WHERE volume = $1 \
    AND NOT EXISTS (SELECT 1 FROM imt_volume v WHERE v.volume = $1)";

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

    /// Reads the engine's record of the volume. A marked volume has the `kept_from` 0.
    async fn record(&mut self) -> Result<Option<Head>, LogError> {
        let params = [Param::Text(&self.volume)];
        let rows = self.session.query(HEAD, &params, COMMIT_TIMEOUT).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Head {
            epoch: number(row, 0)?,
            kept_from: number(row, 1)?,
        }))
    }

    /// Removes a marked volume in parts, and its record last. Has no effect if the volume has
    /// another epoch or is not marked.
    async fn remove_marked(&mut self, epoch: u64) -> Result<(), LogError> {
        let [volume, epoch] = [Param::Text(&self.volume), big(epoch)];
        let session = &mut self.session;
        let (rows_max, bytes_max) = (Param::Int8(PART_ROWS as i64), Param::Int8(TRIM_BYTES));
        let (mut table, mut key) = (-1, Vec::new());
        loop {
            let after = [Param::Int4(table), Param::Bytes(&key)];
            let part = [volume, after[0], after[1], rows_max, bytes_max];
            let rows = session.long_query(ROWS_PART, &part, BULK_TIMEOUT).await?;
            let Some(row) = rows.first() else { break };
            let last = (i32::from(row.int2(0)?), row.bytes(1)?.to_vec());
            let until = [Param::Int4(last.0), Param::Bytes(&last.1)];
            let params = [volume, after[0], after[1], until[0], until[1], epoch];
            let removes = (REMOVE_ROWS, &params[..]);
            if !session.guarded(&[], removes, BULK_TIMEOUT).await?
                && !is_marked(session, volume, epoch).await?
            {
                return Ok(());
            }
            (table, key) = last;
        }
        let mut after = 0;
        loop {
            let part = [volume, Param::Int8(after), Param::Int8(TRIM_ENTRIES), bytes_max];
            let rows = session.long_query(LOG_PART, &part, BULK_TIMEOUT).await?;
            let last = rows.first().map_or(Ok(None), |row| row.opt_int8(0))?;
            let Some(last) = last else { break };
            let params = [volume, Param::Int8(after), Param::Int8(last), epoch];
            let removes = (REMOVE_LOG, &params[..]);
            if !session.guarded(&[], removes, BULK_TIMEOUT).await?
                && !is_marked(session, volume, epoch).await?
            {
                return Ok(());
            }
            after = last;
        }
        session
            .execute(DELETE_VOLUME, &[volume, epoch], COMMIT_TIMEOUT)
            .await?;
        Ok(())
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

/// Returns `true` if the volume has this epoch and is marked for its removal. If a part of a
/// removal affects no row, another process has removed this part, and perhaps the whole volume.
async fn is_marked(session: &mut Session, volume: Param<'_>, epoch: Param<'_>) -> Result<bool, LogError> {
    let rows = session.query(MARKED, &[volume, epoch], COMMIT_TIMEOUT).await?;
    Ok(!rows.is_empty())
}

fn invalid(found: &str) -> LogError {
    LogError::Away(format!("the engine's data cannot be used: {found}"))
}

/// Reads a row of `ROWS_HEAD`.
fn rows_head(row: &Row) -> Result<Option<EntryHead>, SessionError> {
    let seq = row.int8(0)? - 1;
    if seq <= 0 {
        return Ok(None);
    }
    let (Some(epoch), Some(bytes)) = (row.opt_int8(1)?, row.opt_bytes(2)?) else {
        return Err(SessionError::Invalid {
            reason: format!("entry {seq} of the log is missing, and the rows were made from it"),
        });
    };
    Ok(Some(EntryHead {
        seq: seq.unsigned_abs(),
        epoch: epoch.unsigned_abs(),
        bytes: Bytes::copy_from_slice(bytes),
    }))
}

/// Converts an entry number, epoch or version to the engine's signed type. These numbers grow far
/// too slowly to reach the limit of that type.
fn big(number: u64) -> Param<'static> {
    Param::Int8(i64::try_from(number).unwrap_or(i64::MAX))
}

/// Returns `usual`, and more time for the transfer of this many bytes.
fn timeout_for(usual: Duration, bytes: usize) -> Duration {
    usual + Duration::from_secs(1).mul_f64(bytes as f64 / BYTES_PER_SECOND as f64)
}

/// The columns of the rows that one statement of a checkpoint writes. The statement of a removal
/// has no values.
#[derive(Default)]
struct Part<'a> {
    codes: Vec<i16>,
    keys: Vec<&'a [u8]>,
    values: Vec<&'a [u8]>,
}

impl<'a> Part<'a> {
    /// Splits rows into parts of at most `PART_ROWS` rows and `PART_BYTES` bytes. A larger row is a
    /// part of its own.
    fn split(rows: impl Iterator<Item = (Table, &'a [u8], Option<&'a [u8]>)>) -> Vec<Part<'a>> {
        let (mut parts, mut bytes) = (Vec::<Part<'_>>::new(), 0);
        for (table, key, value) in rows {
            let row_bytes = ROW_BYTES + key.len() + value.map_or(0, <[u8]>::len);
            bytes += row_bytes;
            let is_full = |part: &Part<'_>| part.codes.len() >= PART_ROWS || bytes > PART_BYTES;
            if parts.last().is_none_or(is_full) {
                parts.push(Part::default());
                bytes = row_bytes;
            }
            if let Some(part) = parts.last_mut() {
                part.codes.push(table as i16);
                part.keys.push(key);
                part.values.extend(value);
            }
        }
        parts
    }

    /// Returns the parameters of the statement that writes the rows. The statement that removes
    /// rows has no values, and so only the first three parameters.
    fn params<'p>(&'p self, volume: Param<'p>) -> [Param<'p>; 4] {
        let (codes, keys) = (Param::Int2s(&self.codes), Param::ByteArrays(&self.keys));
        [volume, codes, keys, Param::ByteArrays(&self.values)]
    }
}

impl Log for EngineLog {
    fn append<'a>(&'a mut self, entry: &'a Entry, behind: Option<(u64, u64)>) -> Answer<'a, bool> {
        Box::pin(async move {
            let mut params = vec![
                Param::Text(&self.volume),
                big(entry.seq),
                big(entry.epoch),
                Param::Bytes(&entry.body),
            ];
            let sql = match behind {
                #[cfg(test)]
                _ if !self.is_fenced => APPEND_WITHOUT_FENCE,
                None => APPEND_FIRST,
                Some((seq, epoch)) => {
                    params.extend([big(seq), big(epoch)]);
                    APPEND
                }
            };
            let session = &mut self.session;
            let timeout = timeout_for(COMMIT_TIMEOUT, entry.body.len());
            if entry.body.len() <= BYTES_PER_SECOND {
                return Ok(session.execute(sql, &params, timeout).await? == 1);
            }
            // The transfer of a large entry counts for the server's limit of the statement, so that
            // of the role may be too short. The limit of each statement of this transaction is 17 s
            // for the largest entry. So a former owner inserts no entry after `KEPT_FOR`.
            Ok(session.guarded(&[], (sql, &params[..]), timeout).await?)
        })
    }

    fn look(&mut self, seq: u64) -> Answer<'_, Option<EntryHead>> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume), big(seq), HEAD_BYTES];
            let rows = self.session.query(LOOK, &params, COMMIT_TIMEOUT).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            Ok(Some(EntryHead {
                seq,
                epoch: number(row, 0)?,
                bytes: Bytes::copy_from_slice(row.bytes(1)?),
            }))
        })
    }

    fn newest(&mut self) -> Answer<'_, Position> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume), HEAD_BYTES];
            let rows = self.session.query(NEWEST, &params, COMMIT_TIMEOUT).await?;
            let Some(row) = rows.first() else {
                return Ok(Position::default());
            };
            let head = EntryHead {
                seq: number(row, 0)?,
                epoch: number(row, 1)?,
                bytes: Bytes::copy_from_slice(row.bytes(2)?),
            };
            head.position().map_err(|fault| invalid(&fault.to_string()))
        })
    }

    fn head(&mut self) -> Answer<'_, Option<Head>> {
        Box::pin(async move {
            let record = self.record().await?;
            Ok(record.filter(|head| head.kept_from > 0))
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
            match self.record().await? {
                Some(Head { kept_from: 1.., .. }) => return Ok(()),
                Some(Head { epoch, .. }) => self.remove_marked(epoch).await?,
                None => {}
            }
            // A removed volume leaves few rows and entries, if any: those that came during the
            // removal.
            let params = [Param::Text(&self.volume)];
            let left = [
                (DELETE_LEFT_ROWS, &params[..]),
                (DELETE_LEFT_ENTRIES, &params[..]),
            ];
            self.session
                .guarded(&left, (CREATE, &params[..]), COMMIT_TIMEOUT)
                .await?;
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
            let mut rows = self.session.query(TAIL, &params, BULK_TIMEOUT).await;
            // The transfer of a large entry can take longer than the role's statements may. Such
            // entries are rare, so other reads do not pay for a transaction.
            if matches!(&rows, Err(SessionError::Refused { code, .. }) if code == QUERY_CANCELED) {
                rows = self.session.long_query(TAIL, &params, BULK_TIMEOUT).await;
            }
            for row in &rows? {
                entries.push(Entry {
                    seq: number(row, 0)?,
                    epoch: number(row, 1)?,
                    body: Bytes::copy_from_slice(row.bytes(2)?),
                });
            }
            Ok(entries)
        })
    }

    fn rows<'a>(&'a mut self, after: Option<(Table, &'a [u8])>) -> Answer<'a, RowsPart> {
        Box::pin(async move {
            let volume = Param::Text(&self.volume);
            let (table, key) = after.map_or((-1, &[][..]), |(table, key)| (table as i32, key));
            let head = [volume, HEAD_BYTES];
            let part = [
                volume,
                Param::Int4(table),
                Param::Bytes(key),
                Param::Int8(PART_ROWS as i64),
                Param::Int8(TAIL_BYTES),
            ];
            let statements = [(ROWS_HEAD, &head[..]), (ROWS, &part[..])];
            let (mut last, mut rows) = (None, Vec::new());
            let each = |at, row: Row| {
                if at == 0 {
                    last = Some(rows_head(&row)?);
                    return Ok(());
                }
                let table = u8::try_from(row.int2(0)?).ok().and_then(Table::of_code);
                let table = table.ok_or_else(|| SessionError::Invalid {
                    reason: "a row of an unknown table".to_owned(),
                })?;
                rows.push((table, row.bytes(1)?.to_vec(), row.bytes(2)?.to_vec()));
                Ok(())
            };
            self.session.stream(&statements, BULK_TIMEOUT, each).await?;
            let last = last.ok_or_else(|| LogError::Away("the engine has no such volume".to_owned()))?;
            Ok(RowsPart { last, rows })
        })
    }

    fn checkpoint<'a>(&'a mut self, from: u64, last: &'a Position, words: &'a LastWords) -> Answer<'a, bool> {
        Box::pin(async move {
            let volume = Param::Text(&self.volume);
            let puts = words.puts.iter();
            let puts = Part::split(puts.map(|(table, key, value)| (*table, &key[..], Some(&value[..]))));
            let deletes = words.deletes.iter();
            let deletes = Part::split(deletes.map(|(table, key)| (*table, &key[..], None)));
            let puts: Vec<_> = puts.iter().map(|part| part.params(volume)).collect();
            let deletes: Vec<_> = deletes.iter().map(|part| part.params(volume)).collect();
            let mut statements: Vec<(&str, &[Param<'_>])> = Vec::new();
            statements.extend(puts.iter().map(|params| (PUT_ROWS, &params[..])));
            statements.extend(deletes.iter().map(|params| (DELETE_ROWS, &params[..3])));
            let guard = [
                volume,
                big(from),
                big(last.seq + 1),
                big(last.seq),
                big(last.epoch),
                Param::Bytes(&last.chain),
            ];
            // The guard comes last, so that a takeover of the volume does not wait for the rows.
            // Of two checkpoints that begin at one entry, the guard of the later one affects no
            // row.
            let timeout = timeout_for(BULK_TIMEOUT, words.bytes());
            let session = &mut self.session;
            Ok(session
                .guarded(&statements, (KEEP_FROM, &guard[..]), timeout)
                .await?)
        })
    }

    fn trim(&mut self, epoch: u64, after: u64, last: u64) -> Answer<'_, Option<u64>> {
        Box::pin(async move {
            let [volume, epoch, after] = [Param::Text(&self.volume), big(epoch), big(after)];
            let part = [
                volume,
                after,
                big(last),
                Param::Int8(TRIM_ENTRIES),
                Param::Int8(TRIM_BYTES),
                epoch,
            ];
            let rows = self.session.long_query(TRIM_PART, &part, BULK_TIMEOUT).await?;
            let last = rows.first().map_or(Ok(None), |row| row.opt_int8(0))?;
            let Some(last) = last else { return Ok(None) };
            let params = [volume, after, Param::Int8(last), epoch];
            self.session
                .guarded(&[], (TRIM, &params[..]), BULK_TIMEOUT)
                .await?;
            Ok(u64::try_from(last).ok())
        })
    }

    fn next_host(&mut self) {
        self.session.disconnect();
    }

    fn remove(&mut self, epoch: u64) -> Answer<'_, ()> {
        Box::pin(async move {
            let params = [Param::Text(&self.volume), big(epoch)];
            if self.session.execute(MARK, &params, COMMIT_TIMEOUT).await? == 0 {
                return Ok(());
            }
            // The guard of a checkpoint in flight affects no row any more. If the checkpoint and a
            // part of the removal wait for rows of each other, the server refuses one of both.
            self.remove_marked(epoch).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_append_of_a_large_entry_has_more_time() {
        let few_kilobytes = timeout_for(COMMIT_TIMEOUT, 8 << 10);
        assert!(few_kilobytes < COMMIT_TIMEOUT + Duration::from_millis(5));
        let large = timeout_for(COMMIT_TIMEOUT, 8 << 20);
        assert_eq!(large, COMMIT_TIMEOUT + Duration::from_secs(2));
        assert!(timeout_for(COMMIT_TIMEOUT, 64 << 20) < crate::storage::checkpoint::KEPT_FOR / 2);
    }

    #[test]
    fn rows_are_split_into_parts_that_a_statement_can_hold() {
        let value = vec![7; PART_BYTES + 1];
        let sizes = [
            vec![PART_BYTES + 1, 1, 1],
            vec![1, PART_BYTES + 1, 1],
            vec![PART_BYTES / 2; 9],
            vec![0; 3 * PART_ROWS + 5],
            vec![20_000; 700],
            Vec::new(),
        ];
        for sizes in &sizes {
            let numbered = (0..u32::MAX).map(u32::to_be_bytes).take(sizes.len());
            let keys: Vec<[u8; 4]> = numbered.collect();
            let rows = keys.iter().zip(sizes);
            let parts = Part::split(rows.map(|(key, size)| (Table::Stock, &key[..], Some(&value[..*size]))));
            for part in &parts {
                let size = |(key, value): (&&[u8], &&[u8])| ROW_BYTES + key.len() + value.len();
                let bytes: usize = part.keys.iter().zip(&part.values).map(size).sum();
                assert!(part.codes.len() == 1 || bytes <= PART_BYTES, "{bytes}");
                assert!((1..=PART_ROWS).contains(&part.codes.len()));
                assert_eq!(part.codes.len(), part.values.len());
            }
            let split: Vec<&[u8]> = parts.iter().flat_map(|part| part.keys.clone()).collect();
            let all: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
            assert_eq!(split, all);
            let lengths = parts
                .iter()
                .flat_map(|part| part.values.iter().map(|value| value.len()));
            assert_eq!(&lengths.collect::<Vec<_>>(), sizes);
        }
    }

    #[test]
    fn a_part_without_values_removes_rows() {
        let key = [7; 100];
        let parts = Part::split(std::iter::repeat_n(
            (Table::Orders, &key[..], None),
            PART_ROWS + 1,
        ));
        let counts: Vec<usize> = parts.iter().map(|part| part.keys.len()).collect();
        assert_eq!(counts, [PART_ROWS, 1]);
        assert!(parts.iter().all(|part| part.values.is_empty()));
    }
}
