//! Encryption of connections to an engine, by rustls.
//!
//! **Invariants**
//! - If the URL names a file of root certificates, and encryption is not off, one of these
//!   certificates must have signed the server's certificate, directly or through intermediate
//!   certificates. The server's certificate must also contain the name of the host.
//! - Without such a file, the server's certificate is not checked, as with libpq's
//!   `sslmode=require`. If the server supports SCRAM with channel binding, the password exchange is
//!   bound to the TLS connection.
//!
//! Deliberately absent: client certificates.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::runtime::regular_file;

/// Maximum size in bytes of a file of root certificates. The list of a browser has about 250 KB.
const ROOTS_BYTES_MAX: u64 = 4 * 1_024 * 1_024;

/// Returns a connector that accepts any server certificate.
pub(super) fn unchecked() -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// Returns a connector that accepts only certificates that name the host and are signed by a root
/// certificate in the file at `path`.
pub(super) fn checked(path: &Path) -> Result<MakeRustlsConnect, String> {
    let failed = |error: &dyn fmt::Display| format!("the root certificates {}: {error}", path.display());
    let pem = regular_file::read(path, ROOTS_BYTES_MAX).map_err(|error| failed(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    if roots.is_empty() {
        return Err(failed(&"the file has no certificate in PEM"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// A verifier that accepts any certificate, but checks that the server has the certificate's
/// private key.
struct AnyCertificate(Arc<CryptoProvider>);

impl fmt::Debug for AnyCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyCertificate")
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const SERVER: &[u8] = include_bytes!("test_certificates/server.pem");
    const KEY: &[u8] = include_bytes!("test_certificates/server.key");

    fn roots(name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/postgres/test_certificates");
        folder.join(name)
    }

    /// Connects to a server that presents the certificate of `db1.example`. `host` is the name that
    /// the client expects.
    async fn connect(mut connector: MakeRustlsConnect, host: &str) -> Result<(), String> {
        let chain = CertificateDer::pem_slice_iter(SERVER)
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (here, there) = tokio::io::duplex(8_192);
        let accepting = tokio::spawn(TlsAcceptor::from(Arc::new(server)).accept(there));
        let connect =
            MakeTlsConnect::<tokio::io::DuplexStream>::make_tls_connect(&mut connector, host).unwrap();
        let connected = connect.connect(here).await.map(drop);
        let _ = accepting.await.unwrap();
        connected.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_checked_certificate_must_name_the_host_and_be_signed_by_a_root() {
        let checked = |name: &str| checked(&roots(name)).unwrap();
        for host in ["db1.example", "10.0.0.1"] {
            assert_eq!(connect(checked("ca.pem"), host).await, Ok(()), "{host}");
        }
        for (file, host, fault) in [
            ("ca.pem", "db2.example", "not valid for name"),
            ("ca.pem", "10.0.0.2", "not valid for name"),
            ("other_ca.pem", "db1.example", "UnknownIssuer"),
        ] {
            let error = connect(checked(file), host).await.unwrap_err();
            assert!(error.contains(fault), "{file}, {host}: {error}");
        }
    }

    #[tokio::test]
    async fn without_roots_any_certificate_is_accepted() {
        assert_eq!(connect(unchecked().unwrap(), "db2.example").await, Ok(()));
    }

    #[test]
    fn a_file_without_a_certificate_is_refused_with_its_path() {
        for name in ["server.key", "missing.pem"] {
            let error = checked(&roots(name)).map(drop).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
