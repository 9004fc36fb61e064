//! What went wrong with TLS, in words for the person who has to mend it.

use std::io;

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

use super::tls::Terms;

/// Names of a certificate that are told; who has more of them finds his own among these or not at all.
const NAMES_MAX: usize = 5;

/// Whose handshake it was, and with whom.
pub(super) struct Handshake<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) terms: &'a Terms,
}

impl Handshake<'_> {
    /// Why it failed.
    pub(super) fn failure(&self, error: &io::Error) -> String {
        let Self { host, port, terms } = self;
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(Error::InvalidCertificate(error)) => self.distrust(error),
            Some(Error::AlertReceived(alert)) => refusal(*alert, terms.shows),
            Some(Error::InvalidMessage(_)) => format!("what answers on port {port} of {host} is not TLS"),
            Some(Error::PeerIncompatible(why)) => {
                format!("{host} offers nothing of TLS that is supported here ({why:?})")
            }
            Some(error) => error.to_string(),
            None => format!("{host} closed the connection instead of answering: is {port} its port for TLS?"),
        }
    }

    /// Why the broker is not trusted.
    fn distrust(&self, error: &CertificateError) -> String {
        let Self { host, terms, .. } = self;
        let what = match error {
            CertificateError::UnknownIssuer => match &terms.ca {
                Some(ca) => format!("is not signed by a CA in {ca}"),
                None => "is not signed by a CA that this system trusts".into(),
            },
            CertificateError::ExpiredContext { time, not_after } => {
                format!("expired on {}; the clock of this machine says {}", date(*not_after), date(*time))
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                let (from, time) = (date(*not_before), date(*time));
                format!("is not valid before {from}; the clock of this machine says {time}")
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                format!("is for {}, not for {host}", names(presented))
            }
            CertificateError::InvalidPurposeContext { .. } => "is not meant for a server".into(),
            CertificateError::BadSignature => "is not signed by the CA that it names".into(),
            CertificateError::Other(error) => match error.0.to_string().as_str() {
                "CaUsedAsEndEntity" => {
                    "is that of a CA itself, expected one of its own that the CA has signed".into()
                }
                "UnsupportedCertVersion" => {
                    "has an old version of X.509, expected version 3 with subjectAltName".into()
                }
                error => format!("cannot be verified: {error}"),
            },
            error => format!("cannot be verified: {error}"),
        };
        format!("the certificate of {host} {what}")
    }
}

/// Why the broker ended the session: in TLS 1.3 it refuses our certificate only after the handshake.
pub(super) fn refusal(alert: AlertDescription, shows: bool) -> String {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, DecryptError, HandshakeFailure, ProtocolVersion, UnknownCA,
        UnsupportedCertificate,
    };
    let refused = |why: &str| format!("the broker refuses our certificate: {why}");
    match alert {
        CertificateRequired => "the broker wants a certificate of ours (broker.tls.cert)".into(),
        HandshakeFailure if !shows => {
            "the broker refuses the handshake: it may want a certificate of ours (broker.tls.cert)".into()
        }
        ProtocolVersion => "the broker speaks neither TLS 1.2 nor TLS 1.3".into(),
        UnknownCA if shows => refused("it does not know the CA that signed it"),
        CertificateExpired if shows => refused("by its clock it is expired or not yet valid"),
        CertificateRevoked if shows => refused("it is revoked"),
        BadCertificate | UnsupportedCertificate | CertificateUnknown | AccessDenied | DecryptError
            if shows =>
        {
            refused(&format!("{alert:?}"))
        }
        alert => format!("the broker ended the session: {alert:?}"),
    }
}

/// `a.example, b.example and 3 more`, of names such as `DnsName("a.example")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, inner)| inner);
        inner.trim_end_matches(')').trim_matches('"').to_string()
    };
    let told: Vec<String> = presented.iter().take(NAMES_MAX).map(bare).collect();
    match presented.len().saturating_sub(told.len()) {
        0 if told.is_empty() => "nobody (it has no subjectAltName)".into(),
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

/// `2026-08-21`, in UTC. The day is enough, and does not make the same failure a new one with every try.
fn date(time: UnixTime) -> String {
    /// The last year that a certificate can name.
    const YEAR_MAX: u64 = 9999;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut month, mut day) = (1970, 1, time.as_secs() / 86_400);
    let days_of = |year, month| match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    while year < YEAR_MAX && day >= if is_leap(year) { 366 } else { 365 } {
        day -= if is_leap(year) { 366 } else { 365 };
        year += 1;
    }
    while month < 12 && day >= days_of(year, month) {
        day -= days_of(year, month);
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn days_have_dates() {
        for (secs, expected) in [
            (0, "1970-01-01"),
            (86_399, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_767_225_599, "2025-12-31"),
            (1_767_225_600, "2026-01-01"),
            (4_107_542_400, "2100-03-01"),
            (253_402_300_799, "9999-12-31"),
        ] {
            assert_eq!(date(UnixTime::since_unix_epoch(Duration::from_secs(secs))), expected);
        }
        // Beyond what a certificate can name it is wrong, but it ends.
        assert!(date(UnixTime::since_unix_epoch(Duration::MAX)).starts_with("9999-12-"));
    }

    #[test]
    fn names_are_listed_but_not_without_end() {
        let name = |i| format!("DnsName(\"{i}.example\")");
        assert_eq!(names(&[]), "nobody (it has no subjectAltName)");
        assert_eq!(names(&[name(1), "IpAddress(127.0.0.1)".into()]), "1.example, 127.0.0.1");
        let many: Vec<_> = (1..=7).map(name).collect();
        assert_eq!(names(&many), "1.example, 2.example, 3.example, 4.example, 5.example and 2 more");
    }
}
