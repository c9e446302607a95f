//! Encryption of the connections between nodes of different machines, by rustls (TLS 1.3).
//!
//! Each process generates a key pair at its start. The acceptor of a connection presents only its
//! public key (RFC 7250), and the initiator presents none. So there are no certificates to
//! distribute or to renew.
//!
//! The public key is not compared with any known key. Instead, the proofs of the cluster's secret
//! (`handshake`) cover keying material that both ends export from the session (RFC 8446, section
//! 7.5). A relay in the middle has two sessions with different keying material, so a proof that it
//! forwards is invalid in the other session.
//!
//! **Invariants**
//! - Each end checks the other end's proof before it sends or accepts anything but the handshake.
//! - Connections to and from loopback addresses stay unencrypted, because they do not leave the
//!   machine.
//! - An end that requires encryption never falls back to an unencrypted connection.
//!
//! Deliberately absent: certificates, resumption, TLS for the clients of the API.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ConnectionCommon, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::cluster::channel::LinkError;
use crate::cluster::channel::handshake::{self, PeerKey};
use crate::config::PeerEncryption;
use crate::runtime::address;

/// First byte of every TLS connection: the type of a handshake record.
pub(crate) const TLS_BEGINS: u8 = 0x16;
/// Label of the exported keying material. By RFC 5705 labels should begin with `EXPORTER`, so that
/// they differ from the labels of TLS itself.
const EXPORT_LABEL: &[u8] = b"EXPORTER-imt-order-peer-v1";
/// Size of the exported keying material in bytes. It equals the size of a proof, which is a hash
/// that covers this material.
const EXPORT_BYTES: usize = 32;
/// The server name that rustls requires of a client. It is not sent, because SNI is off, and not
/// checked, because `AnyKey` ignores the name.
const NO_NAME: &str = "node.invalid";

/// The protocol inside an encrypted connection. Both ends agree on it by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The channel with its frames and messages.
    Channel,
    /// HTTP/2 calls under `/peer/`.
    Http,
}

impl Purpose {
    const ALL: [Purpose; 2] = [Purpose::Channel, Purpose::Http];

    fn protocol(self) -> &'static [u8] {
        match self {
            Purpose::Channel => b"imt-channel/2",
            Purpose::Http => b"imt-http/2",
        }
    }
}

/// The TLS configurations of this process for both roles, with one key pair.
struct PeerTls {
    client: ClientConfig,
    acceptor: TlsAcceptor,
}

/// Decides which connections between nodes are encrypted, and encrypts them.
#[derive(Clone)]
pub(crate) struct Protection {
    tls: Arc<PeerTls>,
    encryption: PeerEncryption,
}

impl Protection {
    /// Generates the key pair of this process.
    pub(crate) fn new(encryption: PeerEncryption) -> Result<Protection, LinkError> {
        Ok(Protection {
            tls: Arc::new(PeerTls::new()?),
            encryption,
        })
    }

    /// Returns `true` if connections to or from this address must be encrypted.
    pub(crate) fn is_needed(&self, other: IpAddr) -> bool {
        self.encryption == PeerEncryption::BetweenMachines && !address::is_loopback(other)
    }

    /// Encrypts a connection that this process opened, and exchanges proofs with the acceptor.
    pub(crate) async fn connect<S>(
        &self,
        stream: S,
        purpose: Purpose,
        key: &PeerKey,
    ) -> Result<TlsStream<S>, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        handshake::within_time(async {
            let mut config = self.tls.client.clone();
            config.alpn_protocols = vec![purpose.protocol().to_vec()];
            let name = ServerName::try_from(NO_NAME).map_err(failed)?;
            let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
            let stream = connecting.await?;
            let binding = exported(stream.get_ref().1)?;
            let mut stream = TlsStream::from(stream);
            handshake::initiate(&mut stream, key, &binding).await?;
            Ok(stream)
        })
        .await
    }

    /// Encrypts a connection that another node opened, and exchanges proofs with the initiator.
    /// Returns the encrypted stream and the purpose that the initiator chose.
    pub(crate) async fn accept<S>(
        &self,
        stream: S,
        key: &PeerKey,
    ) -> Result<(TlsStream<S>, Purpose), LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        handshake::within_time(async {
            let stream = self.tls.acceptor.accept(stream).await?;
            let chosen = stream.get_ref().1.alpn_protocol();
            let purpose = Purpose::ALL
                .into_iter()
                .find(|purpose| chosen == Some(purpose.protocol()));
            let no_node = || LinkError("the other end is no node: the API itself has no TLS".to_owned());
            let purpose = purpose.ok_or_else(no_node)?;
            let binding = exported(stream.get_ref().1)?;
            let mut stream = TlsStream::from(stream);
            handshake::accept(&mut stream, key, &binding).await?;
            Ok((stream, purpose))
        })
        .await
    }
}

/// Returns keying material that is known only to the two ends of this session.
fn exported<D>(session: &ConnectionCommon<D>) -> Result<[u8; EXPORT_BYTES], LinkError> {
    session
        .export_keying_material([0; EXPORT_BYTES], EXPORT_LABEL, None)
        .map_err(failed)
}

fn failed(error: impl fmt::Display) -> LinkError {
    LinkError(format!("no encryption: {error}"))
}

impl PeerTls {
    fn new() -> Result<PeerTls, LinkError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(failed)?;
        let private = PrivatePkcs8KeyDer::from(pair.as_ref());
        let private = rustls::crypto::ring::sign::any_eddsa_type(&private).map_err(failed)?;
        let public = private
            .public_key()
            .map(|public| CertificateDer::from(public.as_ref().to_vec()))
            .ok_or_else(|| failed("the key has no public part"))?;
        let shown = Arc::new(CertifiedKey::new(vec![public], private));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown)));
        server.alpn_protocols = Purpose::ALL.map(|purpose| purpose.protocol().to_vec()).to_vec();
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey(provider)))
            .with_no_client_auth();
        client.enable_sni = false;
        client.resumption = Resumption::disabled();
        Ok(PeerTls {
            client,
            acceptor: TlsAcceptor::from(Arc::new(server)),
        })
    }
}

/// A certificate verifier that accepts any public key, but checks that the other end has the
/// matching private key. The other end is identified by its proof of the cluster's secret instead.
struct AnyKey(Arc<CryptoProvider>);

impl fmt::Debug for AnyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyKey")
    }
}

impl ServerCertVerifier for AnyKey {
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
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(certificate.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional, duplex};

    use super::*;

    fn protection() -> Protection {
        Protection::new(PeerEncryption::BetweenMachines).unwrap()
    }

    /// Connects an initiator and an acceptor through `relay`. Returns the results of both ends.
    async fn shake<R>(
        secrets: [&str; 2],
        relay: impl FnOnce(DuplexStream, DuplexStream) -> R,
    ) -> (
        Result<TlsStream<DuplexStream>, LinkError>,
        Result<(TlsStream<DuplexStream>, Purpose), LinkError>,
    )
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let (here, middle_a) = duplex(8_192);
        let (middle_b, there) = duplex(8_192);
        let relaying = tokio::spawn(relay(middle_a, middle_b));
        let [one, other] = secrets.map(PeerKey::derive);
        let initiating = async move { protection().connect(here, Purpose::Http, &one).await };
        let accepting = async move { protection().accept(there, &other).await };
        let shaken = tokio::join!(initiating, accepting);
        relaying.abort();
        shaken
    }

    async fn pass(mut one: DuplexStream, mut other: DuplexStream) {
        let _ = copy_bidirectional(&mut one, &mut other).await;
    }

    #[tokio::test]
    async fn nodes_of_one_cluster_exchange_bytes_that_nobody_in_between_can_read() {
        let (seen, mut seeing) = tokio::sync::mpsc::unbounded_channel();
        let spy = |mut one: DuplexStream, mut other: DuplexStream| async move {
            let (mut from_one, mut from_other) = (vec![0; 8_192], vec![0; 8_192]);
            loop {
                let bytes = tokio::select! {
                    read = one.read(&mut from_one) => {
                        let bytes = from_one[..read.unwrap()].to_vec();
                        other.write_all(&bytes).await.unwrap();
                        bytes
                    }
                    read = other.read(&mut from_other) => {
                        let bytes = from_other[..read.unwrap()].to_vec();
                        one.write_all(&bytes).await.unwrap();
                        bytes
                    }
                };
                seen.send(bytes).unwrap();
            }
        };
        let (here, middle_a) = duplex(8_192);
        let (middle_b, there) = duplex(8_192);
        let spying = tokio::spawn(spy(middle_a, middle_b));
        let key = PeerKey::derive("open");
        let other = key.clone();
        let initiating = async move { protection().connect(here, Purpose::Http, &key).await };
        let accepting = async move { protection().accept(there, &other).await };
        let (initiated, accepted) = tokio::join!(initiating, accepting);
        let (mut here, (mut there, purpose)) = (initiated.unwrap(), accepted.unwrap());
        assert_eq!(purpose, Purpose::Http);
        here.write_all(b"seventeen lamps").await.unwrap();
        here.flush().await.unwrap();
        let mut got = [0; 15];
        there.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"seventeen lamps");
        spying.abort();
        let mut all = Vec::new();
        while let Ok(bytes) = seeing.try_recv() {
            all.extend(bytes);
        }
        assert!(all.len() > 300, "the relay saw {} bytes", all.len());
        assert!(!all.windows(5).any(|part| part == b"lamps" || part == b"IMT-P"));
    }

    #[tokio::test]
    async fn neither_end_accepts_another_secret() {
        let (initiated, accepted) = shake(["open", "shut"], pass).await;
        assert!(initiated.is_err() && accepted.is_err());
    }

    /// A relay that has a TLS session with each end and forwards their proofs.
    async fn relay_with_two_sessions(one: DuplexStream, other: DuplexStream) {
        let (tls, mut config) = (PeerTls::new().unwrap(), PeerTls::new().unwrap().client);
        config.alpn_protocols = vec![Purpose::Http.protocol().to_vec()];
        let name = ServerName::try_from(NO_NAME).unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, other);
        let (mut one, mut other) = (tls.acceptor.accept(one).await.unwrap(), connecting.await.unwrap());
        let _ = copy_bidirectional(&mut one, &mut other).await;
    }

    #[tokio::test]
    async fn a_relay_in_the_middle_is_refused_although_both_ends_know_the_secret() {
        let (initiated, accepted) = shake(["open", "open"], relay_with_two_sessions).await;
        let reason = initiated.map(drop).unwrap_err().to_string();
        assert!(reason.contains("another secret"), "{reason}");
        assert!(accepted.is_err());
        // If the relay only copies bytes, ends with this secret succeed.
        let (initiated, accepted) = shake(["open", "open"], pass).await;
        assert!(initiated.is_ok() && accepted.is_ok());
    }

    #[tokio::test]
    async fn a_proof_of_an_unencrypted_connection_is_of_no_use_on_an_encrypted_one() {
        // The relay forwards the proofs of an initiator on an unencrypted connection to the
        // acceptor of an encrypted one.
        let key = PeerKey::derive("open");
        let (mut plain, mut middle) = duplex(8_192);
        let (outside, inside) = duplex(8_192);
        let initiating = {
            let key = key.clone();
            async move { handshake::initiate(&mut plain, &key, &[]).await }
        };
        let relaying = async move {
            let mut config = PeerTls::new().unwrap().client;
            config.alpn_protocols = vec![Purpose::Channel.protocol().to_vec()];
            let name = ServerName::try_from(NO_NAME).unwrap();
            let connecting = TlsConnector::from(Arc::new(config)).connect(name, outside);
            let mut encrypted = connecting.await.unwrap();
            let _ = copy_bidirectional(&mut middle, &mut encrypted).await;
        };
        let relaying = tokio::spawn(relaying);
        let accepting = async move { protection().accept(inside, &key).await };
        let (initiated, accepted) = tokio::join!(initiating, accepting);
        relaying.abort();
        assert!(initiated.is_err() && accepted.is_err());
    }

    #[tokio::test]
    async fn an_end_that_speaks_no_tls_is_not_spoken_to_without_it() {
        let (here, mut there) = duplex(8_192);
        let key = PeerKey::derive("open");
        let answering = async move {
            let mut first = [0; 1];
            there.read_exact(&mut first).await.unwrap();
            there
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
            let mut rest = Vec::new();
            let _ = there.read_to_end(&mut rest).await;
            (first, rest)
        };
        let initiating = async move { protection().connect(here, Purpose::Channel, &key).await.map(drop) };
        let (initiated, (first, rest)) = tokio::join!(initiating, answering);
        assert!(initiated.is_err());
        assert_eq!(first, [TLS_BEGINS]);
        assert!(!rest.windows(3).any(|part| part == b"IMT"));
    }

    #[test]
    fn only_addresses_of_other_machines_need_encryption() {
        let protection = protection();
        let needs = |text: &str| protection.is_needed(text.parse().unwrap());
        for (address, expected) in [
            ("127.0.0.1", false),
            ("127.8.8.8", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("fe80::1", true),
        ] {
            assert_eq!(needs(address), expected, "{address}");
        }
        let plain = Protection::new(PeerEncryption::Never).unwrap();
        assert!(!plain.is_needed("10.0.0.1".parse().unwrap()));
    }
}
