//! Certificates of a local cluster (`up --tls`): an authority of its own and one certificate a node, in
//! `tls/` of the cluster's directory, where the `ssl` line looks for them.
//!
//! The authority's key stays there so that a node that joins later gets its certificate as well: this is
//! for trying things out. Certificates of real nodes come from where the others of a site come from.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Whether the cluster in `dir` has an authority.
pub(super) fn exist(dir: &Path) -> bool {
    key_of(dir).exists()
}

/// Makes the authority, if there is none.
pub(super) fn create(dir: &Path) -> Result<(), String> {
    if exist(dir) {
        return Ok(());
    }
    let tls = dir.join("tls");
    std::fs::create_dir_all(&tls).map_err(|e| format!("cannot create '{}': {e}", tls.display()))?;
    let key = KeyPair::generate().map_err(failed)?;
    let ca = authority().self_signed(&key).map_err(failed)?;
    write(&tls.join("ca.pem"), &ca.pem())?;
    // Last: where it is, the rest is.
    write(&key_of(dir), &key.serialize_pem())
}

/// Makes the certificate of a node, for its name and its address.
pub(super) fn issue(dir: &Path, name: &str, addr: IpAddr) -> Result<(), String> {
    let pem = std::fs::read_to_string(key_of(dir))
        .map_err(|e| format!("cannot read '{}': {e}", key_of(dir).display()))?;
    let issuer = Issuer::new(authority(), KeyPair::from_pem(&pem).map_err(failed)?);
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new([name.to_owned(), addr.to_string()]).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    write(&of_node(dir, name), &format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// Removes the certificate of a node, if it has one.
pub(super) fn forget(dir: &Path, name: &str) {
    let _ = std::fs::remove_file(of_node(dir, name));
}

fn key_of(dir: &Path) -> PathBuf {
    dir.join("tls").join("ca.key")
}

fn of_node(dir: &Path, name: &str) -> PathBuf {
    dir.join("tls").join(format!("{name}.pem"))
}

/// Always the same but for its key, so that it need not be read back.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Phalanx local cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Writes a file that only its owner may read.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let _ = std::fs::remove_file(path);
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| format!("cannot write '{}': {e}", path.display()))
}

fn failed(error: rcgen::Error) -> String {
    format!("cannot make a certificate: {error}")
}
