//! TLS of the generator's clients: one key exchange, one cipher, and no look at whose certificate it is.
//!
//! Every proxy gets the same handshake, and the client's part of it costs as little as it can.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme};

/// Names that clients ask for in turn: what resumes is kept by name, and each ticket serves once.
const NAMES: u64 = 512;

/// How clients speak TLS.
#[derive(Clone, Debug)]
pub(crate) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// TLS 1.3; `resumed`: with what the server gave in an earlier connection.
    ///
    /// # Errors
    /// The library has no such cipher.
    pub(crate) fn new(resumed: bool) -> Result<Tls, String> {
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| format!("tls: {e}"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        // The library has room for an eighth as many names.
        config.resumption = if resumed {
            Resumption::in_memory_sessions(NAMES as usize * 16)
        } else {
            Resumption::disabled()
        };
        Ok(Tls(Arc::new(config)))
    }

    /// A connection of this number.
    pub(super) fn connection(&self, nth: u64) -> io::Result<ClientConnection> {
        let name = format!("host{}.example.com", nth % NAMES);
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)
    }
}

/// A connection with what it has yet to send.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) stream: TcpStream,
    pub(super) state: ClientConnection,
}

impl Session {
    /// Takes all of it; what the socket does not take now goes with [`Session::flush`].
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.state.writer().write(bytes)?;
        self.flush()?;
        Ok(taken)
    }

    /// Sends what waits; whether some is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while self.state.wants_write() {
            match self.state.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(true);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    /// As [`super::wire::Wire::receive`].
    pub(super) fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.state.read_tls(&mut self.stream) {
            Ok(_) => {
                self.state.process_new_packets().map_err(io::Error::other)?;
                self.flush()?;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        match self.state.reader().read(into) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            // Without a word of farewell; the answer's length says whether it was whole.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(Some(0)),
            Err(e) => Err(e),
        }
    }

    /// Whether the server took up an earlier connection's keys.
    pub(super) fn resumed(&self) -> bool {
        self.state.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// Takes any certificate: who the proxy is nobody doubts here.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
