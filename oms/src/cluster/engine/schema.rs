//! The tables of a cluster in an engine, and all statements about membership and state.
//!
//! | table | row | content |
//! | --- | --- | --- |
//! | `imt_schema` | the only one | the version of this layout |
//! | `imt_cluster` | the only one | the state, its version, the coordinator, the cluster's secret |
//! | `imt_node` | one for each node | incarnation, beat, description while it takes requests |
//! | `imt_volume` | one for each volume | epoch, owner, and `kept_from`: its first log entry |
//! | `imt_log` | one for each group commit | the changed rows |
//! | `imt_row` | one for each row of a volume | the row as of the last entry before `kept_from` |
//!
//! **Invariants**
//! - A database holds one cluster.
//! - `volume` is the first column of every key of a volume's tables. There are no sequences and no
//!   foreign keys. So these tables also work in an engine that distributes rows by `volume`.
//! - No statement has `FOR SHARE` or a CTE that writes, because Citus cannot route them.
//!
//! `VIEWS` creates views that decode the rows of `imt_row` for `psql`. Nodes do not use them.
//!
//! Deliberately absent: statements about rows, and statements that read a log (`storage::log`).

/// Version of the layout of the tables.
pub(crate) const SCHEMA_VERSION: i32 = 1;

/// Creates the missing tables. Existing ones are left as they are.
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
    card text) WITH (fillfactor = 50);
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
INSERT INTO imt_schema (one, version) VALUES (1, 1) ON CONFLICT (one) DO NOTHING";

/// Creates or replaces the views for `psql`.
pub(crate) const VIEWS: &str = include_str!("views.sql");

/// Settings of the role. So they hold for each connection, also behind a connection pooler. A
/// commit waits for the standbys. A statement ends long before log entries that it depends on are
/// trimmed.
pub(crate) const ROLE_SETTINGS: [(&str, &str); 4] = [
    ("synchronous_commit", "on"),
    ("lock_timeout", "2s"),
    ("statement_timeout", "5s"),
    ("default_transaction_isolation", "read committed"),
];

/// Reads the settings of the connection as four texts. The timeouts are in milliseconds.
pub(super) const SETTINGS: &str = "
SELECT current_setting('synchronous_commit'),
    (SELECT setting FROM pg_settings WHERE name = 'lock_timeout'),
    (SELECT setting FROM pg_settings WHERE name = 'statement_timeout'),
    current_setting('default_transaction_isolation')";

/// Reads the version of the layout. Fails with `UNDEFINED_TABLE` if the tables were not created.
pub(super) const VERSION: &str = "SELECT version FROM imt_schema WHERE one = 1";
/// The error code for a table that does not exist.
pub(super) const UNDEFINED_TABLE: &str = "42P01";

/// Reads all nodes, with the version and the coordinator of the state.
pub(super) const LOOK: &str = "
SELECT n.name, n.incarnation, n.beat, n.card, c.version, c.coordinator FROM imt_node n, imt_cluster c
    WHERE c.one = 1";
/// Writes the next beat of a node, and returns the version of the state at that time, or 0. Changes
/// no row if the process was replaced.
pub(super) const BEAT: &str = "
UPDATE imt_node SET beat = $3, card = $4 WHERE name = $1 AND incarnation = $2
    RETURNING coalesce((SELECT version FROM imt_cluster WHERE one = 1), 0)";
/// Adds a node with a new name. Changes no row if the name exists.
pub(super) const ADD_NODE: &str = "
INSERT INTO imt_node (name, incarnation, beat, card) VALUES ($1, $2, 1, NULL)
    ON CONFLICT (name) DO NOTHING";
/// Takes the name over from an ended process, if its beat is still the expected one.
pub(super) const REPLACE_NODE: &str = "
UPDATE imt_node SET incarnation = $2, beat = 1, card = NULL
    WHERE name = $1 AND incarnation = $3 AND beat = $4";
/// Removes a node, if its beat is still the expected one.
pub(super) const REMOVE_NODE: &str = "
DELETE FROM imt_node WHERE name = $1 AND incarnation = $2 AND beat = $3";
/// Reads one node.
pub(super) const NODE: &str = "SELECT incarnation, beat, card FROM imt_node WHERE name = $1";

/// A commit that changes nothing. Only the primary that the standbys follow acknowledges it.
pub(super) const PROBE: &str = "UPDATE imt_schema SET version = version WHERE one = 1";

/// Reads the state. The text is long, and is left out if the version is still $1.
pub(super) const STATE: &str = "
SELECT version, CASE WHEN version = $1 THEN NULL ELSE state END, coordinator, secret
    FROM imt_cluster WHERE one = 1";
/// Writes the first state.
pub(super) const FIRST_STATE: &str = "
INSERT INTO imt_cluster (one, version, state, coordinator, secret) VALUES (1, $1, $2, $3, $4)
    ON CONFLICT (one) DO NOTHING";
/// Writes the log's row of the first volume.
pub(super) const FIRST_VOLUME: &str = "
INSERT INTO imt_volume (volume, epoch, owner, kept_from) VALUES ($1, 0, '', 1)
    ON CONFLICT (volume) DO NOTHING";
/// Replaces the state and its coordinator. Changes no row if another process was faster.
pub(super) const NEXT_STATE: &str = "
UPDATE imt_cluster SET version = $1, state = $2, coordinator = $3
    WHERE one = 1 AND version = $4 AND coordinator = $5";

/// Appends an entry to a volume's log. Adds no row if the volume has a newer owner, or if there is
/// an entry with this number.
pub(crate) const APPEND: &str = "
INSERT INTO imt_log (volume, seq, epoch, body)
    SELECT v.volume, $2::bigint, v.epoch, $4::bytea FROM imt_volume v
    WHERE v.volume = $1 AND v.epoch = $3
    ON CONFLICT (volume, seq) DO NOTHING";
