//! TLS to a Consul agent, as the client: `ca-file` and `crt` of a `consul` section.
//!
//! The files are read for each connection, so that renewed certificates need no reload. The agent's
//! certificate must be for the host of its address.

use std::path::Path;
use std::sync::Arc;

use phalanx_config::Env as _;
use phalanx_config::model::Consul;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::load::System;

/// Longest file that is read.
const MAX_FILE: u64 = 4 << 20;

/// Where systems keep the authorities that they trust.
const SYSTEM: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Begins TLS with the agent at `address`, `host:port`.
pub(super) async fn connect(
    stream: TcpStream,
    section: &Consul,
    address: &str,
) -> Result<TlsStream<TcpStream>, String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("'{host}': {e}"))?;
    let section = section.clone();
    let config = tokio::task::spawn_blocking(move || config(&section)).await.map_err(|e| e.to_string())??;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| format!("TLS: {e}"))
}

fn config(section: &Consul) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &section.ca_file {
        Some(file) => {
            for certificate in certificates("ca-file", file)? {
                roots.add(certificate).map_err(|e| format!("ca-file '{}': {e}", file.display()))?;
            }
        }
        None => {
            let file = SYSTEM.iter().map(Path::new).find(|path| path.exists());
            let file = file.ok_or("this system has no list of authorities: 'ca-file' is needed")?;
            // Of hundreds, one that does not read is no reason to trust none.
            roots.add_parsable_certificates(certificates("ca-file", file)?);
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let Some(file) = &section.crt else { return Ok(config.with_no_client_auth()) };
    let named = |why: String| format!("crt '{}': {why}", file.display());
    let key = PrivateKeyDer::from_pem_slice(&read("crt", file)?);
    let key = key.map_err(|_| named("no private key found in it".into()))?;
    config.with_client_auth_cert(certificates("crt", file)?, key).map_err(|e| named(e.to_string()))
}

fn certificates(what: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(what, file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{what} '{}': no certificate found in it", file.display())),
        Err(e) => Err(format!("{what} '{}': not readable as PEM: {e}", file.display())),
    }
}

fn read(what: &str, file: &Path) -> Result<Vec<u8>, String> {
    let read = System { ignore_resolve: false }.read(&file.display().to_string(), MAX_FILE);
    read.map_err(|e| format!("{what} '{}': {e}", file.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use rustls::server::WebPkiClientVerifier;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// An authority and a certificate of it for 127.0.0.1, in files.
    pub(in crate::discovery) struct Authority {
        pub(in crate::discovery) file: PathBuf,
        pub(in crate::discovery) crt: PathBuf,
    }

    impl Authority {
        pub(in crate::discovery) fn new(dir: &Path, name: &str) -> Authority {
            let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let file = dir.join(format!("{name}.ca"));
            std::fs::write(&file, params.self_signed(&ca_key).unwrap().pem()).unwrap();
            let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            let leaf = leaf.signed_by(&key, &Issuer::new(params, ca_key)).unwrap();
            let crt = dir.join(format!("{name}.crt"));
            std::fs::write(&crt, format!("{}{}", leaf.pem(), key.serialize_pem())).unwrap();
            Authority { file, crt }
        }

        /// Takes those whose certificate it has signed.
        pub(in crate::discovery) fn acceptor(&self) -> TlsAcceptor {
            let provider = Arc::new(aws_lc_rs::default_provider());
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates("ca-file", &self.file).unwrap());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .unwrap();
            let key = PrivateKeyDer::from_pem_slice(&read("crt", &self.crt).unwrap()).unwrap();
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(verifier)
                .with_single_cert(certificates("crt", &self.crt).unwrap(), key)
                .unwrap();
            TlsAcceptor::from(Arc::new(config))
        }
    }
}
