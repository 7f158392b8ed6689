//! TLS on the cluster's port: this node's certificate, and who is believed to be a peer.
//!
//! [`Tls`] holds what the `ssl` line names, and is replaced as a whole by a reload; connections that
//! are up stay with what they began with. `connect` makes the connections to peers, `server::incoming`
//! takes theirs. Both sides show a certificate that the CA has signed and that is for the node's name
//! or for the host of its `node` line: the dialling side is checked by its verifier, the calling side
//! by `identity::Guard`, once it has said which node it is. TLS 1.3 only, no resumption: a session
//! that was taken up again would not show its certificate.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::connect::{Refusal, channel, connect};
use crate::Node;

mod connect;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use self::words::{describe, refused_later};

/// The content of the files that the `ssl` line names.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// `crt`: this node's certificate, its chain and its private key.
    pub crt: Vec<u8>,
    /// `ca-file`.
    pub ca: Option<Vec<u8>>,
    /// `verify required`: peers must show a certificate of the CA.
    pub verify: bool,
}

impl fmt::Debug for Files {
    // The private key is not for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("tls::Files").field("verify", &self.verify).finish_non_exhaustive()
    }
}

/// Which file cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// `crt`.
    Crt(String),
    /// `ca-file`.
    Ca(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Crt(why) => write!(f, "crt: {why}"),
            Error::Ca(why) => write!(f, "ca-file: {why}"),
        }
    }
}

impl std::error::Error for Error {}

/// TLS of the cluster's port. Cheap to clone; all clones see what [`Tls::replace`] brings.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<Loaded>>);

struct Loaded {
    version: u64,
    files: Files,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// Checks a server's certificate but for its name; `None` with `verify none`.
    verifier: Option<Arc<WebPkiServerVerifier>>,
    /// This node's certificate, and who signed it.
    chain: Vec<CertificateDer<'static>>,
}

/// Of the next [`Loaded`] in this process.
static VERSION: AtomicU64 = AtomicU64::new(1);

impl Tls {
    /// From the content of the files.
    ///
    /// # Errors
    /// Which of them cannot be used.
    pub fn new(files: Files) -> Result<Tls, Error> {
        Ok(Tls(Arc::new(ArcSwap::from_pointee(Loaded::new(files)?))))
    }

    /// Takes the certificates of another for all connections from now on.
    pub fn replace(&self, other: &Tls) {
        self.0.store(other.0.load_full());
    }

    /// Changes with [`Tls::replace`].
    pub(crate) fn version(&self) -> u64 {
        self.0.load().version
    }

    /// What it was made of.
    pub fn files(&self) -> Files {
        self.0.load().files.clone()
    }

    /// What peers will find wrong with this node's own certificate, if anything.
    pub(crate) fn own_problem(&self, this: &Node) -> Option<String> {
        let loaded = self.0.load();
        let verifier = loaded.wants(this.tls_names())?;
        let (own, chain) = loaded.chain.split_first()?;
        let any = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        let verified = verifier.verify_server_cert(own, chain, &any, &[], UnixTime::now());
        verified.err().map(|e| words::describe_error(&e))
    }

    /// Checks that the certificate of a connection is one for a node of this name at this address.
    ///
    /// # Errors
    /// In words that follow "the certificate".
    pub(crate) fn check_peer(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        node: &str,
        addr: &str,
    ) -> Result<(), String> {
        match certificate {
            _ if self.0.load().verifier.is_none() => Ok(()),
            Some(certificate) if is_for(certificate, &names(node, addr)) => Ok(()),
            Some(_) => Err(not_for(node, addr)),
            None => Err("is missing".to_owned()),
        }
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.0.load().server.clone()
    }

    /// For a connection to a peer that goes by one of these names.
    fn client(&self, names: &[ServerName<'static>]) -> Arc<ClientConfig> {
        let loaded = self.0.load();
        let Some(verifier) = loaded.wants(names.to_vec()) else { return loaded.client.clone() };
        let mut config = ClientConfig::clone(&loaded.client);
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Arc::new(config)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.load().files.fmt(f)
    }
}

impl Loaded {
    /// What a server has to show that goes by one of these names; `None` with `verify none`.
    fn wants(&self, names: Vec<ServerName<'static>>) -> Option<Shown> {
        let provider = self.client.crypto_provider().clone();
        Some(Shown { provider, wanted: Some((self.verifier.clone()?, names)) })
    }

    fn new(files: Files) -> Result<Loaded, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(&files.crt).map_err(Error::Crt)?;
        if chain.is_empty() {
            return Err(Error::Crt("no certificate found in it".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(&files.crt)
            .map_err(|_| Error::Crt("no private key found in it".into()))?;
        let roots = files.ca.as_deref().filter(|_| files.verify).map(roots).transpose().map_err(Error::Ca)?;
        let unusable = |e: rustls::Error| Error::Crt(words::describe_error(&e));
        let plain = |e: rustls::Error| Error::Crt(e.to_string());

        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(plain)?;
        let server = match &roots {
            Some(roots) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
                server.with_client_cert_verifier(verifier.map_err(|e| Error::Ca(e.to_string()))?)
            }
            None => server.with_no_client_auth(),
        };
        let mut server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(unusable)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let verifier = match roots {
            Some(roots) => {
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
                Some(verifier.map_err(|e| Error::Ca(e.to_string()))?)
            }
            None => None,
        };
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(plain)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Shown { provider, wanted: None }))
            .with_client_auth_cert(chain.clone(), key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.resumption = Resumption::disabled();
        let version = VERSION.fetch_add(1, Relaxed);
        Ok(Loaded { version, files, client: Arc::new(client), server: Arc::new(server), verifier, chain })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("not readable as PEM: {e}"))
}

fn roots(pem: &[u8]) -> Result<Arc<RootCertStore>, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem)? {
        store.add(certificate).map_err(|e| words::describe_error(&e))?;
    }
    if store.is_empty() {
        return Err("no certificate found in it".into());
    }
    Ok(Arc::new(store))
}

/// The names that a node's certificate may be for: that of the node, and the host of its address.
/// What can't stand in a certificate (a `:` in a node's name) is none of them.
fn names(node: &str, addr: &str) -> Vec<ServerName<'static>> {
    let name = |text: &str| ServerName::try_from(text.to_owned()).ok();
    [name(node), name(host(addr))].into_iter().flatten().collect()
}

/// `host` of `host:port`, without the brackets of IPv6.
fn host(addr: &str) -> &str {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

fn is_for(certificate: &CertificateDer<'_>, names: &[ServerName<'_>]) -> bool {
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| names.iter().any(|name| verify_server_name(&parsed, name).is_ok()))
}

fn not_for(node: &str, addr: &str) -> String {
    format!("is neither for the name '{node}' nor for '{}' (subject alternative names)", host(addr))
}

/// What a server has to show: that it holds the key of its certificate, and with `verify required` that
/// this one is good for one of the names.
#[derive(Debug)]
struct Shown {
    provider: Arc<CryptoProvider>,
    wanted: Option<(Arc<WebPkiServerVerifier>, Vec<ServerName<'static>>)>,
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some((verifier, names)) = &self.wanted else { return Ok(ServerCertVerified::assertion()) };
        let mut last = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        for name in names {
            match verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, now) {
                Err(error) => last = error,
                verified => return verified,
            }
        }
        Err(last)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The error of TLS in an error of I/O.
pub(crate) fn within(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

impl Node {
    fn tls_names(&self) -> Vec<ServerName<'static>> {
        names(&self.name, &self.addr)
    }
}
