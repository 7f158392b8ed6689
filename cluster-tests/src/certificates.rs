//! A throw-away certificate authority.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// Signs certificates of nodes.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// When keys can't be made.
    pub fn new() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key for these names, in one PEM as `crt` wants it.
    ///
    /// # Panics
    /// When a name can't stand in a certificate.
    pub fn certify(&self, names: &[&str]) -> String {
        self.signed(names, false)
    }

    /// As [`Authority::certify`], but its time is over.
    ///
    /// # Panics
    /// As [`Authority::certify`].
    pub fn certify_expired(&self, names: &[&str]) -> String {
        self.signed(names, true)
    }

    /// Writes `node.pem` and `ca.pem` to `dir`.
    ///
    /// # Panics
    /// When they can't be written.
    pub fn write(&self, dir: &Path, crt: &str) {
        std::fs::write(dir.join("node.pem"), crt).expect("a certificate file");
        std::fs::write(dir.join("ca.pem"), &self.pem).expect("a CA file");
    }

    fn signed(&self, names: &[&str], expired: bool) -> String {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        cert.pem() + &key.serialize_pem()
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}
