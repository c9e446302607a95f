//! The tables of a cluster in an engine, and all statements about membership and state.
//!
//! | table | row | content |
//! | --- | --- | --- |
//! | `imt_schema` | one | the version of this layout |
//! | `imt_cluster` | one | the state, its version, the coordinator, the cluster's secret |
//! | `imt_node` | one for each node | incarnation, beat, `must_know`, description |
//! | `imt_volume` | one for each volume | epoch, owner, `kept_from`: first entry not in `imt_row` |
//! | `imt_log` | one for each log entry | epoch, and the changed rows of a group commit or none |
//! | `imt_row` | one for each row of a volume | the row as of the log entry before `kept_from` |
//!
//! `owner` is the node that took over the volume's log last. It is empty before the first takeover,
//! and once that node has released the volume. `kept_from` is the number of the first log entry
//! that is not yet applied to `imt_row`. It is 0 while the volume is being removed.
//!
//! **Invariants**
//! - A PostgreSQL database contains the tables of one cluster.
//! - `volume` is the first column of the primary keys of `imt_volume`, `imt_log` and `imt_row`. The
//!   tables have no sequences and no foreign keys. So they also work in an engine that distributes
//!   rows by `volume`.
//! - A beat returns at least the version in `must_know` of its row. PostgreSQL reads this column
//!   after it has locked the row, so a beat that was under way during a `DEMAND` returns it too.
//!   The version in `imt_cluster` may be one that was replaced while the beat waited.
//! - No statement contains `FOR SHARE` or a CTE that writes, because the PostgreSQL extension Citus
//!   cannot route such statements.
//!
//! `VIEWS` creates views that decode the rows of `imt_row` for `psql`. Nodes do not use them.
//!
//! The statements of nodes on the log and rows of a volume are in `storage::log::engine`.

/// Version of the layout of the tables.
pub(crate) const SCHEMA_VERSION: i32 = 2;

/// Creates the missing tables, and brings tables of layout 1 to layout 2. Layout 1 lacks the column
/// `must_know`.
pub(crate) const CREATE: &str = "
CREATE TABLE IF NOT EXISTS imt_schema (
    one smallint PRIMARY KEY CHECK (one = 1),
    version int NOT NULL);
CREATE TABLE IF NOT EXISTS imt_cluster (
    one smallint PRIMARY KEY CHECK (one = 1),
    version bigint NOT NULL,
    state text NOT NULL,
    coordinator text NOT NULL,
    secret text NOT NULL);
CREATE TABLE IF NOT EXISTS imt_node (
    name text PRIMARY KEY,
    incarnation bigint NOT NULL,
    beat bigint NOT NULL,
    card text,
    must_know bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
ALTER TABLE imt_node ADD COLUMN IF NOT EXISTS must_know bigint NOT NULL DEFAULT 0;
CREATE TABLE IF NOT EXISTS imt_volume (
    volume text PRIMARY KEY,
    epoch bigint NOT NULL,
    owner text NOT NULL,
    kept_from bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS imt_log (
    volume text,
    seq bigint,
    epoch bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (volume, seq));
ALTER TABLE imt_log ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS imt_row (
    volume text,
    tab smallint,
    key bytea,
    value bytea NOT NULL,
    PRIMARY KEY (volume, tab, key));
INSERT INTO imt_schema (one, version) VALUES (1, 2)
    ON CONFLICT (one) DO UPDATE SET version = 2 WHERE imt_schema.version < 2";

/// Creates or replaces the views that decode rows for `psql`.
pub(crate) const VIEWS: &str = include_str!("views.sql");

/// PostgreSQL settings that `imt engine init` sets for the role of the nodes. They apply to each
/// connection that the role opens to the database afterwards.
/// `synchronous_commit` makes a commit wait for the standbys. The timeouts end a delayed append of
/// a former owner. Such an append is refused because newer entries have its number, and must end
/// long before those entries are removed from the log.
pub(crate) const ROLE_SETTINGS: [(&str, &str); 4] = [
    ("synchronous_commit", "on"),
    ("lock_timeout", "2s"),
    ("statement_timeout", "5s"),
    ("default_transaction_isolation", "read committed"),
];

/// Reads the settings that `ROLE_SETTINGS` lists from the connection, as texts. Timeouts are in
/// milliseconds.
pub(super) const SETTINGS: &str = "
SELECT current_setting('synchronous_commit'),
    (SELECT setting FROM pg_settings WHERE name = 'lock_timeout'),
    (SELECT setting FROM pg_settings WHERE name = 'statement_timeout'),
    current_setting('default_transaction_isolation')";

/// Reads the version of the tables' layout. Fails with the code `UNDEFINED_TABLE` if the tables do
/// not exist.
pub(super) const VERSION: &str = "SELECT version FROM imt_schema WHERE one = 1";
/// PostgreSQL's error code for a table that does not exist.
pub(super) const UNDEFINED_TABLE: &str = "42P01";

/// Reads the rows of all nodes, each with the version and the coordinator of the cluster's state.
/// Returns no row if there is no state.
pub(super) const LOOK: &str = "
SELECT n.name, n.incarnation, n.beat, n.card, c.version, c.coordinator FROM imt_node n, imt_cluster c
    WHERE c.one = 1";
/// Writes the next beat and the description of a process. Returns the version of the state at the
/// begin of the statement (0 without a state), or `must_know` if that is later. Changes no row if
/// another process has taken the node's name, or if the row was removed.
pub(super) const BEAT: &str = "
UPDATE imt_node SET beat = $3, card = $4 WHERE name = $1 AND incarnation = $2
    RETURNING greatest(must_know, coalesce((SELECT version FROM imt_cluster WHERE one = 1), 0))";
/// Makes every later beat of a process return at least version $4. Changes no row unless the last
/// beat of the process is still $3.
pub(super) const DEMAND: &str = "
UPDATE imt_node SET must_know = greatest(must_know, $4)
    WHERE name = $1 AND incarnation = $2 AND beat = $3";
/// Adds a node. Changes no row if a node has this name already.
pub(super) const ADD_NODE: &str = "
INSERT INTO imt_node (name, incarnation, beat, card) VALUES ($1, $2, 1, NULL)
    ON CONFLICT (name) DO NOTHING";
/// Takes a node's name from its former process. Changes no row unless that process's last beat is
/// still $4.
pub(super) const REPLACE_NODE: &str = "
UPDATE imt_node SET incarnation = $2, beat = 1, card = NULL
    WHERE name = $1 AND incarnation = $3 AND beat = $4";
/// Deletes a node's row, if its last beat is still $3.
pub(super) const REMOVE_NODE: &str = "
DELETE FROM imt_node WHERE name = $1 AND incarnation = $2 AND beat = $3";
/// Reads the row of one node.
pub(super) const NODE: &str = "SELECT incarnation, beat, card FROM imt_node WHERE name = $1";

/// A commit that changes no data. Only the primary that the standbys follow can acknowledge this
/// commit, because each commit waits for the standbys.
pub(super) const PROBE: &str = "UPDATE imt_schema SET version = version WHERE one = 1";

/// Reads the cluster's state. The text of the state is long, so it is left out if the version is
/// still $1.
pub(super) const STATE: &str = "
SELECT version, CASE WHEN version = $1 THEN NULL ELSE state END, coordinator
    FROM imt_cluster WHERE one = 1";
/// Reads the cluster's secret. The statement is separate from `STATE`, so that a role without the
/// right to read the secret can read the state.
pub(super) const SECRET: &str = "SELECT secret FROM imt_cluster WHERE one = 1";
/// Writes the cluster's first state. Changes no row if a state exists already.
pub(super) const FIRST_STATE: &str = "
INSERT INTO imt_cluster (one, version, state, coordinator, secret) VALUES (1, $1, $2, $3, $4)
    ON CONFLICT (one) DO NOTHING";
/// Inserts the row of the first volume into `imt_volume`.
pub(super) const FIRST_VOLUME: &str = "
INSERT INTO imt_volume (volume, epoch, owner, kept_from) VALUES ($1, 0, '', 1)
    ON CONFLICT (volume) DO NOTHING";
/// Replaces the state and its coordinator. Changes no row unless the stored version is $4 and the
/// stored coordinator is $5.
pub(super) const NEXT_STATE: &str = "
UPDATE imt_cluster SET version = $1, state = $2, coordinator = $3
    WHERE one = 1 AND version = $4 AND coordinator = $5";

/// Appends a test entry for the check of an engine. Adds no row if the volume has another epoch or
/// does not exist, or if the log has an entry with this number.
pub(crate) const APPEND: &str = "
INSERT INTO imt_log (volume, seq, epoch, body)
    SELECT v.volume, $2::bigint, v.epoch, $4::bytea FROM imt_volume v
    WHERE v.volume = $1 AND v.epoch = $3
    ON CONFLICT (volume, seq) DO NOTHING";
