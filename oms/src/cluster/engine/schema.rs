//! The tables of a cluster in an engine, and every statement about membership and state.
//!
//! | table | row | content |
//! | --- | --- | --- |
//! | `imt_schema` | one | the version of this layout |
//! | `imt_cluster` | one | the state, its version, the coordinator, the secret of the nodes |
//! | `imt_node` | a node | its incarnation, its beat, its description while it takes requests |
//! | `imt_volume` | a volume | the epoch of its log, the owner, the first entry that is kept |
//! | `imt_log` | a group commit | the rows of the commit |
//! | `imt_row` | a row of a volume | its last value in the log before `kept_from` |
//!
//! **Invariants**
//! - A database holds one cluster.
//! - `volume` leads every key of a volume's tables, nothing is numbered by the engine, and there
//!   are no foreign keys. So an engine that spreads rows by `volume` can hold these tables.
//! - No statement has a CTE that writes or `FOR SHARE`, because Citus routes neither.
//!
//! `VIEWS` shows rows of `imt_row` with decoded columns. Nodes read none of these views.
//!
//! Deliberately absent: statements about rows, and those that read a log. They belong to
//! `storage::log`.

/// Version of the layout of the tables.
pub(crate) const SCHEMA_VERSION: i32 = 1;

/// Creates the tables that are missing. It can be repeated.
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

/// Creates views of the rows with decoded columns, for people with `psql`. It can be repeated.
pub(crate) const VIEWS: &str = include_str!("views.sql");

/// Settings of the role, which hold in every connection, also behind a pooler. A commit waits for
/// standbys. A statement that waits for a lock, or runs, ends long before its log entry is trimmed.
pub(crate) const ROLE_SETTINGS: [(&str, &str); 4] = [
    ("synchronous_commit", "on"),
    ("lock_timeout", "2s"),
    ("statement_timeout", "5s"),
    ("default_transaction_isolation", "read committed"),
];

/// Reads the settings of the connection: four texts, the timeouts in milliseconds.
pub(super) const SETTINGS: &str = "
SELECT current_setting('synchronous_commit'),
    (SELECT setting FROM pg_settings WHERE name = 'lock_timeout'),
    (SELECT setting FROM pg_settings WHERE name = 'statement_timeout'),
    current_setting('default_transaction_isolation')";

/// Reads the version of the layout. It is refused with `UNDEFINED_TABLE` before `CREATE`.
pub(super) const VERSION: &str = "SELECT version FROM imt_schema WHERE one = 1";
/// The code of a statement about a table that does not exist.
pub(super) const UNDEFINED_TABLE: &str = "42P01";

/// Reads all nodes, with the version and the coordinator of the state.
pub(super) const LOOK: &str = "
SELECT n.name, n.incarnation, n.beat, n.card, c.version, c.coordinator FROM imt_node n, imt_cluster c
    WHERE c.one = 1";
/// Counts the beat of a node up. No row means that the process was replaced.
pub(super) const BEAT: &str = "
UPDATE imt_node SET beat = $3, card = $4 WHERE name = $1 AND incarnation = $2";
/// Adds a node that was never seen.
pub(super) const ADD_NODE: &str = "
INSERT INTO imt_node (name, incarnation, beat, card) VALUES ($1, $2, 1, NULL)
    ON CONFLICT (name) DO NOTHING";
/// Takes the name of a process that has ended, if it has not beaten in between.
pub(super) const REPLACE_NODE: &str = "
UPDATE imt_node SET incarnation = $2, beat = 1, card = NULL
    WHERE name = $1 AND incarnation = $3 AND beat = $4";
/// Removes a node that has not beaten since.
pub(super) const REMOVE_NODE: &str = "
DELETE FROM imt_node WHERE name = $1 AND incarnation = $2 AND beat = $3";
/// Reads one node.
pub(super) const NODE: &str = "SELECT incarnation, beat, card FROM imt_node WHERE name = $1";

/// Changes nothing, but is a commit: only the primary that the standbys follow acknowledges it.
pub(super) const PROBE: &str = "UPDATE imt_schema SET version = version WHERE one = 1";

/// Reads the state. Its text, which is long, is left out if the version is $1.
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
/// Replaces the state and its coordinator. No row means that another process was faster.
pub(super) const NEXT_STATE: &str = "
UPDATE imt_cluster SET version = $1, state = $2, coordinator = $3
    WHERE one = 1 AND version = $4 AND coordinator = $5";

/// Appends an entry to a volume's log. No row means that the volume has a newer owner, or that the
/// place is taken.
pub(crate) const APPEND: &str = "
INSERT INTO imt_log (volume, seq, epoch, body)
    SELECT v.volume, $2::bigint, v.epoch, $4::bytea FROM imt_volume v
    WHERE v.volume = $1 AND v.epoch = $3
    ON CONFLICT (volume, seq) DO NOTHING";
