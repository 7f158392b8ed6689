//! What can be wrong with TLS, in words that help to set it right and stay the same from one attempt
//! to the next: they are told once per change.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use super::within;

/// Why a handshake failed: in words that follow the name of the other side.
pub(crate) fn describe(error: &io::Error) -> String {
    match within(error) {
        Some(Error::InvalidCertificate(problem)) => format!("its certificate {}", certificate(problem)),
        Some(error) => describe_error(error),
        None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            "ended the TLS handshake: is 'ssl' missing in its 'cluster' section?".to_owned()
        }
        None => error.to_string(),
    }
}

/// As [`describe`], of an error of TLS itself.
pub(super) fn describe_error(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(problem) => format!("the certificate {}", certificate(problem)),
        Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        Error::InvalidMessage(_) => {
            "does not speak TLS: is 'ssl' missing in its 'cluster' section?".to_owned()
        }
        Error::AlertReceived(alert) => refusal(*alert),
        Error::InconsistentKeys(_) => "the private key does not belong to the certificate".to_owned(),
        Error::PeerIncompatible(_) => "does not speak TLS 1.3".to_owned(),
        other => other.to_string(),
    }
}

/// The refusal in the text of an error that came after the handshake: with TLS 1.3 the calling side
/// hears only then what the other thinks of its certificate, and HTTP/2 keeps of it no more than the
/// text.
pub(crate) fn refused_later(text: &str) -> Option<String> {
    let (_, alert) = text.split_once("received fatal alert: ")?;
    let known = [
        AlertDescription::CertificateExpired,
        AlertDescription::UnknownCA,
        AlertDescription::CertificateRevoked,
        AlertDescription::CertificateRequired,
        AlertDescription::BadCertificate,
        AlertDescription::UnsupportedCertificate,
        AlertDescription::CertificateUnknown,
        AlertDescription::DecryptError,
    ];
    let named = known.into_iter().find(|known| alert.starts_with(&format!("{known:?}")));
    Some(named.map_or_else(|| format!("ended TLS: {alert}"), refusal))
}

/// What the other side has told in an alert.
pub(super) fn refusal(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet",
        AlertDescription::UnknownCA => "its CA is not the one of 'ca-file' there",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::CertificateRequired => "there is none",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "it is not good for this node",
        AlertDescription::DecryptError => "it does not fit 'ca-file' there",
        other => return format!("ended the TLS handshake: {other:?}"),
    };
    format!("refuses this node's certificate: {why}")
}

fn certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet".to_owned()
        }
        // A CA that was made anew has the old one's name and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is not signed by the CA of 'ca-file'".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is neither for the node's name nor for its host (subject alternative names)".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not for this use: nodes both call and answer (extended key usage)".to_owned()
        }
        other => format!("cannot be used: {other}"),
    }
}
