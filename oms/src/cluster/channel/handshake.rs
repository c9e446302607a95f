//! Mutual proof that both ends of a connection know the cluster's secret.
//!
//! | sender | bytes | content |
//! | --- | ---: | --- |
//! | initiator | 11 | `IMT-PEER/3` and a line end |
//! | initiator | 32 | its nonce |
//! | acceptor | 64 | its nonce, its proof |
//! | initiator | 32 | its proof |
//!
//! A proof is a keyed BLAKE3 hash over the sender's role, both nonces and the binding. The key is
//! derived from the secret, so the secret itself is never sent. On an encrypted connection the
//! binding is keying material exported from the TLS session (`tls`). Without encryption the binding
//! is empty.
//!
//! - A recorded proof cannot be replayed, because each end contributes a new nonce.
//! - An attacker cannot send a node's proof back to that node, because the two roles differ.
//! - A proof from one TLS session is invalid in every other session, because the bindings differ.
//! - The whole handshake must end within `HANDSHAKE_TIMEOUT`.
//!
//! Encryption is not part of the handshake. On an encrypted connection, `tls` runs the handshake
//! inside the TLS session.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::cluster::channel::LinkError;

/// First bytes of a handshake. No HTTP request begins with them.
pub(crate) const PREFACE: &[u8; 11] = b"IMT-PEER/3\n";
/// Longest time for the whole handshake, which consists of three messages. On an encrypted
/// connection it includes the TLS handshake.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

const NONCE_BYTES: usize = 32;
const KEY_CONTEXT: &str = "imt-order 2026 peer channel handshake v1";

/// The error for an invalid proof.
const OTHER_SECRET: &str = "the other node has another secret, or somebody in between reads along";

type Nonce = [u8; NONCE_BYTES];

/// The key of the proofs, derived from the cluster's secret.
#[derive(Clone)]
pub(crate) struct PeerKey([u8; 32]);

impl PeerKey {
    /// Derives the key from the cluster's secret.
    pub(crate) fn derive(secret: &str) -> PeerKey {
        PeerKey(blake3::derive_key(KEY_CONTEXT, secret.as_bytes()))
    }

    fn proof(&self, role: Role, initiator: &Nonce, acceptor: &Nonce, binding: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[role as u8]);
        hasher.update(initiator);
        hasher.update(acceptor);
        // The role and the nonces have fixed lengths, so different inputs never concatenate to the
        // same bytes.
        hasher.update(binding);
        hasher.finalize()
    }
}

#[derive(Clone, Copy)]
enum Role {
    Initiator = 1,
    Acceptor = 2,
}

/// Runs the handshake as the initiator: proves knowledge of the secret, and checks the acceptor's
/// proof.
pub(crate) async fn initiate<S>(stream: &mut S, key: &PeerKey, binding: &[u8]) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within_time(async {
        let mine: Nonce = rand::random();
        let mut hello = PREFACE.to_vec();
        hello.extend_from_slice(&mine);
        stream.write_all(&hello).await?;
        stream.flush().await?;
        let (mut theirs, mut shown) = ([0; NONCE_BYTES], [0; 32]);
        stream.read_exact(&mut theirs).await.map_err(refused)?;
        stream.read_exact(&mut shown).await?;
        // `blake3::Hash` compares in constant time, so an attacker cannot find the proof by timing.
        if key.proof(Role::Acceptor, &mine, &theirs, binding) != blake3::Hash::from(shown) {
            return Err(LinkError(OTHER_SECRET.to_owned()));
        }
        let proof = key.proof(Role::Initiator, &mine, &theirs, binding);
        stream.write_all(proof.as_bytes()).await?;
        stream.flush().await?;
        Ok(())
    })
    .await
}

/// Runs the handshake as the acceptor: proves knowledge of the secret, and checks the initiator's
/// proof.
pub(crate) async fn accept<S>(stream: &mut S, key: &PeerKey, binding: &[u8]) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within_time(async {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        if preface != *PREFACE {
            return Err(LinkError(
                "the other node speaks another version of the channel; run the same version of imt on all nodes"
                    .to_owned(),
            ));
        }
        let mut theirs = [0; NONCE_BYTES];
        stream.read_exact(&mut theirs).await?;
        let mine: Nonce = rand::random();
        let mut answer = mine.to_vec();
        answer.extend_from_slice(key.proof(Role::Acceptor, &theirs, &mine, binding).as_bytes());
        stream.write_all(&answer).await?;
        stream.flush().await?;
        let mut shown = [0; 32];
        stream.read_exact(&mut shown).await?;
        if key.proof(Role::Initiator, &theirs, &mine, binding) != blake3::Hash::from(shown) {
            return Err(LinkError(OTHER_SECRET.to_owned()));
        }
        Ok(())
    })
    .await
}

/// Converts the error of the first read. If the acceptor closed the connection without an answer,
/// the result names the probable reason.
fn refused(error: std::io::Error) -> LinkError {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return LinkError(
            "the other node refuses this connection; it may require encryption (--insecure-plaintext is \
             for all nodes or for none)"
                .to_owned(),
        );
    }
    error.into()
}

/// Runs the steps of a handshake, limited to `HANDSHAKE_TIMEOUT` in total.
pub(super) async fn within_time<T>(
    steps: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT, steps).await;
    ended.unwrap_or_else(|_| Err(LinkError("the handshake took too long".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shake(secrets: [&str; 2]) -> [Result<(), LinkError>; 2] {
        let (mut here, mut there) = tokio::io::duplex(1_024);
        let [one, other] = secrets.map(PeerKey::derive);
        let initiating = async move { initiate(&mut here, &one, &[]).await };
        let accepting = async move { accept(&mut there, &other, &[]).await };
        let (initiated, accepted) = tokio::join!(initiating, accepting);
        [initiated, accepted]
    }

    #[tokio::test]
    async fn nodes_of_one_cluster_let_each_other_in() {
        assert_eq!(shake(["open", "open"]).await, [Ok(()), Ok(())]);
    }

    #[tokio::test]
    async fn neither_end_accepts_another_secret() {
        let [initiated, accepted] = shake(["open", "shut"]).await;
        assert!(initiated.is_err() && accepted.is_err());
    }

    /// Forwards all bytes between an initiator and an acceptor, and returns the bytes that the
    /// initiator sent.
    async fn recorded(key: &PeerKey) -> Vec<u8> {
        let (mut initiator, mut middle_a) = tokio::io::duplex(1_024);
        let (mut middle_b, mut acceptor) = tokio::io::duplex(1_024);
        let passing = async move {
            let mut sent = vec![0; PREFACE.len() + NONCE_BYTES];
            middle_a.read_exact(&mut sent).await.unwrap();
            middle_b.write_all(&sent).await.unwrap();
            let mut answer = [0; NONCE_BYTES + 32];
            middle_b.read_exact(&mut answer).await.unwrap();
            middle_a.write_all(&answer).await.unwrap();
            let mut proof = [0; 32];
            middle_a.read_exact(&mut proof).await.unwrap();
            middle_b.write_all(&proof).await.unwrap();
            sent.extend_from_slice(&proof);
            sent
        };
        let (initiated, accepted, sent) = tokio::join!(
            initiate(&mut initiator, key, &[]),
            accept(&mut acceptor, key, &[]),
            passing
        );
        assert_eq!((initiated, accepted), (Ok(()), Ok(())));
        sent
    }

    #[tokio::test]
    async fn a_recorded_handshake_cannot_be_replayed() {
        let key = PeerKey::derive("open");
        let sent = recorded(&key).await;
        let (mut replayer, mut acceptor) = tokio::io::duplex(1_024);
        let replaying = async move {
            replayer.write_all(&sent).await.unwrap();
            let mut answer = Vec::new();
            let _ = replayer.read_to_end(&mut answer).await;
        };
        let accepting = async move { accept(&mut acceptor, &key, &[]).await };
        let ((), accepted) = tokio::join!(replaying, accepting);
        assert!(accepted.is_err());
    }

    #[tokio::test]
    async fn a_proof_reflected_to_its_sender_is_refused() {
        let key = PeerKey::derive("open");
        let (mut acceptor, mut attacker) = tokio::io::duplex(1_024);
        let attacking = async move {
            let mut hello = PREFACE.to_vec();
            hello.extend_from_slice(&[7; NONCE_BYTES]);
            attacker.write_all(&hello).await.unwrap();
            let mut answer = [0; NONCE_BYTES + 32];
            attacker.read_exact(&mut answer).await.unwrap();
            attacker.write_all(&answer[NONCE_BYTES..]).await.unwrap();
        };
        let (accepted, ()) = tokio::join!(accept(&mut acceptor, &key, &[]), attacking);
        assert!(accepted.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_end_is_given_up() {
        let (mut here, _there) = tokio::io::duplex(1_024);
        let error = accept(&mut here, &PeerKey::derive("open"), &[])
            .await
            .unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[tokio::test]
    async fn the_secret_never_travels() {
        let secret = "a secret of many letters";
        let sent = recorded(&PeerKey::derive(secret)).await;
        assert!(
            !sent
                .windows(6)
                .any(|window| secret.as_bytes().windows(6).any(|part| part == window))
        );
    }
}
