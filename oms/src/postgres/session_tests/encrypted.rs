//! A test of encrypted sessions with a real server. The server must run on this machine, such as
//! the one of `imt engine demo`. The test turns encryption on at the server, and leaves the server
//! as it was. Other sessions go on without encryption.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use tokio_postgres::config::{ChannelBinding, Config, SslMode};

use super::*;
use crate::postgres::tls;

/// Longest wait for an expected event, after which the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The names of the certificate and its key in the server's data folder.
const FILES: [&str; 2] = ["server.pem", "server.key"];

fn certificate(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/postgres/test_certificates");
    folder.join(name)
}

/// The server that accepts writes: its host and its data folder.
struct Primary {
    host: String,
    data: PathBuf,
}

impl Primary {
    async fn find() -> Primary {
        let mut session = session();
        let rows = session.query("SHOW data_directory", &[], TIMEOUT).await.unwrap();
        let data = PathBuf::from(rows[0].text(0).unwrap());
        assert!(data.is_dir(), "the server of IMT_ENGINE runs on another machine");
        let host = session.host();
        Primary { host, data }
    }

    /// Returns a session with this server only. `settings` is the query string of its URL.
    fn session(&self, settings: &str) -> Session {
        Session::new(Arc::new(self.url(settings)), "test")
    }

    fn url(&self, settings: &str) -> EngineUrl {
        let text = std::env::var("IMT_ENGINE").unwrap();
        let (login, rest) = text.rsplit_once('@').unwrap();
        let (_, database) = rest.split_once('/').unwrap();
        let (database, _) = database.split_once('?').unwrap_or((database, ""));
        let text = format!("{login}@{}/{database}?{settings}", self.host);
        text.parse().unwrap()
    }

    /// Gives the server a certificate, and turns encryption on.
    async fn encrypt(&self) {
        let owner = std::fs::metadata(&self.data).unwrap();
        for name in FILES {
            let path = self.data.join(name);
            assert!(!path.exists(), "{} exists already", path.display());
            std::fs::copy(certificate(name), &path).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        self.set(&[
            "SET ssl_cert_file = 'server.pem'",
            "SET ssl_key_file = 'server.key'",
            "SET ssl = on",
        ])
        .await;
    }

    /// Restores the server's settings, and removes the files.
    async fn restore(&self) {
        self.set(&["RESET ssl", "RESET ssl_key_file", "RESET ssl_cert_file"])
            .await;
        for path in FILES.map(|name| self.data.join(name)) {
            if path.exists() {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    /// Changes the server's settings. Each change is a transaction of its own.
    async fn set(&self, changes: &[&str]) {
        let mut session = self.session("sslmode=disable");
        for change in changes {
            let sql = format!("ALTER SYSTEM {change}");
            session.batch(&sql, TIMEOUT).await.unwrap();
        }
        let reload = "SELECT pg_reload_conf()";
        session.batch(reload, TIMEOUT).await.unwrap();
    }

    /// Waits until new connections get encryption, or until they get none.
    async fn wait_until_encrypted(&self, is_expected: bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tried = self
                .session("sslmode=require")
                .query("SELECT 1", &[], TIMEOUT)
                .await;
            if tried.is_ok() == is_expected {
                return;
            }
            assert!(Instant::now() < deadline, "{tried:?}");
        }
    }
}

/// Asserts that the connection of a session is encrypted.
async fn assert_encrypted(session: &mut Session) {
    let sql = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let rows = session.query(sql, &[], TIMEOUT).await.unwrap();
    assert!(rows[0].bool(0).unwrap());
    assert_eq!(rows[0].text(1).unwrap(), "TLSv1.3");
}

/// Logs in with a password exchange that must be bound to the TLS connection.
async fn log_in_bound(url: &EngineUrl, password: &str) -> Result<(), String> {
    let host = &url.hosts[0];
    let mut config = Config::new();
    config
        .host(&host.name)
        .port(host.port)
        .user(&url.user)
        .dbname(&url.database)
        .password(password)
        .ssl_mode(SslMode::Require)
        .channel_binding(ChannelBinding::Require);
    let connected = config.connect(tls::unchecked().unwrap()).await;
    let (client, connection) = connected.map_err(|error| crate::error::with_causes(&error))?;
    let running = tokio::spawn(connection);
    client.simple_query("SELECT 1").await.unwrap();
    drop(client);
    let _ = running.await.unwrap();
    Ok(())
}

async fn use_encryption(primary: &Primary) {
    primary.wait_until_encrypted(true).await;
    assert_encrypted(&mut primary.session("sslmode=require")).await;
    let roots = |name: &str| certificate(name).display().to_string();
    for mode in ["", "&sslmode=verify-full", "&sslmode=require"] {
        let settings = format!("sslrootcert={}{mode}", roots("ca.pem"));
        assert_encrypted(&mut primary.session(&settings)).await;
        let settings = format!("sslrootcert={}{mode}", roots("other_ca.pem"));
        let refused = primary.session(&settings).query("SELECT 1", &[], TIMEOUT).await;
        let is_unknown = |reason: &str| reason.contains("UnknownIssuer");
        assert!(
            matches!(&refused, Err(SessionError::Away { reason }) if is_unknown(reason)),
            "{refused:?}"
        );
    }
    // The password exchange is bound to the TLS connection. A wrong password is refused.
    let url = primary.url("sslmode=require");
    let password = url.hosts[0].password.clone().unwrap();
    assert_eq!(log_in_bound(&url, &password).await, Ok(()));
    let refused = log_in_bound(&url, "another password").await.unwrap_err();
    assert!(
        refused.contains("28P01") || refused.contains("authentication failed"),
        "{refused}"
    );
    // A session without encryption goes on.
    let mut plain = primary.session("sslmode=disable");
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let rows = plain.query(sql, &[], TIMEOUT).await.unwrap();
    assert!(!rows[0].bool(0).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn a_session_is_encrypted_and_checks_the_certificate_of_a_real_server() {
    let primary = Arc::new(Primary::find().await);
    // A server without encryption gets no password.
    primary.wait_until_encrypted(false).await;
    let used = Arc::clone(&primary);
    let using = tokio::spawn(async move {
        used.encrypt().await;
        use_encryption(&used).await;
    });
    let outcome = using.await;
    primary.restore().await;
    primary.wait_until_encrypted(false).await;
    outcome.unwrap();
}
