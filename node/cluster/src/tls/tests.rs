use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

fn authority() -> (Issuer<'static, KeyPair>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem.into_bytes())
}

/// Certificate and key for these names.
fn leaf(ca: &Issuer<'static, KeyPair>, names: &[&str], expired: bool) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params =
        CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    if expired {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    }
    let cert = params.signed_by(&key, ca).unwrap();
    format!("{}{}", cert.pem(), key.serialize_pem()).into_bytes()
}

fn node(name: &str, addr: &str) -> Node {
    Node { name: name.into(), addr: addr.into(), witness: false }
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let (ca, ca_pem) = authority();
    let good = leaf(&ca, &["n1"], false);
    let text = String::from_utf8(good.clone()).unwrap();
    let key_at = text.find("-----BEGIN PRIVATE KEY").unwrap();
    let other = String::from_utf8(leaf(&ca, &["n1"], false)).unwrap();
    let other_key = &other[other.find("-----BEGIN PRIVATE KEY").unwrap()..];
    let crt = |text: &str| Error::Crt(text.to_owned());
    let ca_error = |text: &str| Error::Ca(text.to_owned());
    for (crt_file, ca_file, error) in [
        (b"".to_vec(), ca_pem.clone(), crt("no certificate found in it")),
        (b"junk\xff\0".to_vec(), ca_pem.clone(), crt("no certificate found in it")),
        (text.as_bytes()[..key_at].to_vec(), ca_pem.clone(), crt("no private key found in it")),
        (text.as_bytes()[key_at..].to_vec(), ca_pem.clone(), crt("no certificate found in it")),
        (
            [&text[..key_at], other_key].concat().into_bytes(),
            ca_pem.clone(),
            crt("the private key does not belong to the certificate"),
        ),
        (good.clone(), b"junk".to_vec(), ca_error("no certificate found in it")),
    ] {
        let files = Files { crt: crt_file, ca: Some(ca_file), verify: true };
        assert_eq!(Tls::new(files).unwrap_err(), error);
    }
    assert!(Tls::new(Files { crt: good.clone(), ca: Some(ca_pem), verify: true }).is_ok());
    assert!(Tls::new(Files { crt: good.clone(), ca: None, verify: false }).is_ok());
    let shown = format!("{:?}", Files { crt: good, ca: None, verify: true });
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

#[test]
fn a_certificate_is_for_the_nodes_name_or_its_host() {
    let (ca, ca_pem) = authority();
    let (stranger, _) = authority();
    let refuses = "is neither for the node's name nor for its host (subject alternative names)";
    for (crt, this, problem) in [
        (leaf(&ca, &["n1"], false), node("n1", "10.0.0.1:7100"), None),
        (leaf(&ca, &["10.0.0.1"], false), node("n1", "10.0.0.1:7100"), None),
        (leaf(&ca, &["2001:db8::1"], false), node("n1", "[2001:db8::1]:7100"), None),
        (leaf(&ca, &["lb1.example"], false), node("odd:name", "lb1.example:7100"), None),
        (leaf(&ca, &["n2", "10.0.0.2"], false), node("n1", "10.0.0.1:7100"), Some(refuses)),
        (leaf(&ca, &["n1"], true), node("n1", "10.0.0.1:7100"), Some("has expired")),
        (
            leaf(&stranger, &["n1"], false),
            node("n1", "10.0.0.1:7100"),
            Some("is not signed by the CA of 'ca-file'"),
        ),
    ] {
        let tls = Tls::new(Files { crt: crt.clone(), ca: Some(ca_pem.clone()), verify: true }).unwrap();
        let found = tls.own_problem(&this);
        assert_eq!(found, problem.map(|p| format!("the certificate {p}")), "{this:?}");
        // The guard asks for the name alone: the handshake has looked at the rest.
        let certificate = certificates(&crt).unwrap().remove(0);
        let fits = tls.check_peer(Some(&certificate), &this.name, &this.addr).is_ok();
        assert_eq!(fits, problem != Some(refuses), "{this:?}");
        assert!(tls.check_peer(None, &this.name, &this.addr).is_err());
    }
}
