//! Whom TLS trusts and what it shows: PEM files that are renewed while the gateway runs for years.
//!
//! Every file is read at the start, and looked at before each handshake; one that has changed is read again. If it is
//! broken by then, what it held before stays in force. The check of the broker's name cannot be switched off: there is no
//! way here to ask for that.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, ClientConfig, InconsistentKeys, RootCertStore};
use tracing::{info, warn};

use crate::topic::ClientId;

/// Octets of the longest PEM file that is read: several times what all the authorities of a system take.
const FILE_LEN_MAX: u64 = 4 << 20;

/// How old what the system trusts may be at a handshake. Reading it takes a hundred files and tens of milliseconds, and it
/// changes with the system's updates, or because somebody mends what keeps us from connecting.
const SYSTEM_AGE_MAX: Duration = Duration::from_secs(60);

/// A file and the key of the configuration that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// As in `broker.tls.ca`.
    pub key: String,
    /// As configured.
    pub path: PathBuf,
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// A certificate with those of its issuers, and the key to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate first.
    pub cert: File,
    /// PKCS #8, PKCS #1 or SEC 1, without a passphrase.
    pub key: File,
}

/// The files of one configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Who may have signed a broker's certificate; `None`: whom the system trusts.
    pub ca: Option<File>,
    /// What the gateway shows.
    pub own: Option<Pair>,
    /// What single clients show on links of their own; the others show what the gateway does.
    pub clients: BTreeMap<ClientId, Pair>,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{}: cannot read {file}", file.key)]
    Read {
        /// Which.
        file: File,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {file} {what}", file.key)]
    Unfit {
        /// Which.
        file: File,
        /// As in "holds no certificate".
        what: &'static str,
    },
    /// A key that cannot sign for its certificate.
    #[error("{}: the key in {key} does not belong to the certificate in {cert}", key.key)]
    ForeignKey {
        /// The key.
        key: File,
        /// The certificate.
        cert: File,
    },
    /// There is nobody whom the system trusts.
    #[error("broker.tls.ca: missing, and this system trusts no CA{0}; install ca-certificates or name a CA")]
    NoAuthority(String),
}

impl FileError {
    fn unfit(file: &File, what: &'static str) -> Self {
        Self::Unfit { file: file.clone(), what }
    }
}

/// The certificates and keys in force. Clones share them.
#[derive(Clone)]
pub struct Certificates(Arc<Shared>);

struct Shared {
    authorities: Mutex<Renewed<Authorities>>,
    own: Option<Mutex<Renewed<Pair>>>,
    clients: BTreeMap<ClientId, Mutex<Renewed<Pair>>>,
}

/// What one handshake is held with.
pub(super) struct Terms {
    pub(super) config: Arc<ClientConfig>,
    /// Who signs for brokers; `None`: whom the system trusts.
    pub(super) ca: Option<File>,
    /// Whether there is a certificate of ours to show.
    pub(super) shows: bool,
}

impl Certificates {
    /// Reads and checks all files.
    ///
    /// # Errors
    /// What is wrong with each that is of no use; never empty.
    pub fn load(files: Files) -> Result<Self, Vec<FileError>> {
        let Self(mut shared) = Self::new(files);
        let mut errors = Vec::new();
        // Nobody else has it yet.
        if let Some(shared) = Arc::get_mut(&mut shared) {
            errors.extend(shared.authorities.get_mut().load().err());
            for pair in shared.own.iter_mut().chain(shared.clients.values_mut()) {
                errors.extend(pair.get_mut().load().err());
            }
        }
        if errors.is_empty() { Ok(Self(shared)) } else { Err(errors) }
    }

    /// Reads nothing before it is needed.
    fn new(files: Files) -> Self {
        let Files { ca, own, clients } = files;
        let pair = |pair| Mutex::new(Renewed::new(pair));
        Self(Arc::new(Shared {
            authorities: Mutex::new(Renewed::new(Authorities(ca))),
            own: own.map(pair),
            clients: clients.into_iter().map(|(id, files)| (id, pair(files))).collect(),
        }))
    }

    /// The terms of a handshake for the link of a client, or for the gateway's own.
    ///
    /// # Errors
    /// In words, if nothing that was ever read is of use.
    pub(super) async fn terms(&self, client: Option<&ClientId>) -> Result<Terms, String> {
        let Shared { authorities, own, clients } = &*self.0;
        let (verifier, ca) = {
            let mut authorities = authorities.lock().await;
            (authorities.current().await?, authorities.source.0.clone())
        };
        let config = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_webpki_verifier(verifier);
        let pair = client.and_then(|id| clients.get(id)).or(own.as_ref());
        let mut config = match pair {
            Some(pair) => {
                let identity = pair.lock().await.current().await?;
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
            None => config.with_no_client_auth(),
        };
        // A resumed session would not look at the broker's certificate again. So no tickets are kept either.
        config.resumption = Resumption::disabled();
        Ok(Terms { config: Arc::new(config), ca, shows: pair.is_some() })
    }
}

/// Nothing of ours, and whom the system trusts.
impl Default for Certificates {
    fn default() -> Self {
        Self::new(Files::default())
    }
}

/// Shows no keys.
impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// Files, and what they are to the handshake.
pub(super) trait Source: Clone + Send + 'static {
    type Made: Clone + Send;

    /// None: the system's.
    fn files(&self) -> Vec<&File>;

    fn make(&self) -> Result<Self::Made, FileError>;
}

/// What was made of files, and is made again when they change.
pub(super) struct Renewed<S: Source> {
    source: S,
    /// The files as they were when they were last read.
    seen: Option<Seen>,
    /// What was made of them when they were last right.
    good: Option<S::Made>,
    /// What is wrong with them.
    wrong: Option<String>,
}

impl<S: Source> Renewed<S> {
    pub(super) fn new(source: S) -> Self {
        Self { source, seen: None, good: None, wrong: None }
    }

    pub(super) fn load(&mut self) -> Result<(), FileError> {
        self.seen = Some(Seen::of(&self.source.files()));
        self.good = Some(self.source.make()?);
        Ok(())
    }

    /// What is to be used; what is wrong with the files, if they never were right. Cancel-safe.
    pub(super) async fn current(&mut self) -> Result<S::Made, String> {
        // Before they are read: what changes meanwhile is read the next time.
        let seen = Seen::of(&self.source.files());
        if !self.seen.as_ref().is_some_and(|before| before.holds(&seen)) {
            let source = self.source.clone();
            // The disk may be slow, and the loop around the core runs in this thread.
            if let Ok(made) = spawn_blocking(move || source.make()).await {
                self.renew(made);
                self.seen = Some(seen);
            }
        }
        self.good.clone().ok_or_else(|| self.wrong.clone().unwrap_or_default())
    }

    fn renew(&mut self, made: Result<S::Made, FileError>) {
        match made {
            Ok(made) => {
                if let (Some(_), [file, ..]) = (&self.good, self.source.files().as_slice()) {
                    info!(%file, "{} read again", file.key);
                }
                (self.good, self.wrong) = (Some(made), None);
            }
            Err(error) => {
                let wrong = words(&error);
                if self.good.is_some() && self.wrong.is_none() {
                    warn!("{wrong}; what was there before stays in use");
                }
                self.wrong = Some(wrong);
            }
        }
    }
}

/// The error and its causes.
fn words(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// How files looked at some time.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    at: Instant,
    /// `None`: not there, or not to be looked at.
    files: Vec<Option<Stamp>>,
}

/// What of a file is different after it was written or replaced.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    len: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl Seen {
    fn of(files: &[&File]) -> Self {
        let stamp = |metadata: Metadata| Stamp {
            inode: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let files = files.iter().map(|file| fs::metadata(&file.path).ok().map(stamp)).collect();
        Self { at: Instant::now(), files }
    }

    /// Whether what was read then is what would be read now.
    fn holds(&self, now: &Self) -> bool {
        let is_system = self.files.is_empty();
        self.files == now.files && !(is_system && now.at.duration_since(self.at) > SYSTEM_AGE_MAX)
    }
}

/// Who may sign for brokers: those in a file, or whom the system trusts.
#[derive(Clone)]
struct Authorities(Option<File>);

impl Source for Authorities {
    type Made = Arc<WebPkiServerVerifier>;

    fn files(&self) -> Vec<&File> {
        self.0.iter().collect()
    }

    fn make(&self) -> Result<Self::Made, FileError> {
        let mut roots = RootCertStore::empty();
        match &self.0 {
            Some(ca) => {
                for certificate in certificates(ca)? {
                    roots.add(certificate).map_err(|_| FileError::unfit(ca, NOT_UNDERSTOOD))?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    let reason = found.errors.first().map(|error| format!(" ({error})"));
                    return Err(FileError::NoAuthority(reason.unwrap_or_default()));
                }
            }
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), PROVIDER.clone()).build();
        verifier.map_err(|error| FileError::NoAuthority(format!(" ({error})")))
    }
}

impl Source for Pair {
    type Made = Arc<CertifiedKey>;

    fn files(&self) -> Vec<&File> {
        vec![&self.cert, &self.key]
    }

    fn make(&self) -> Result<Self::Made, FileError> {
        let Pair { cert, key } = self;
        let (chain, private) = (certificates(cert)?, private_key(key)?);
        match CertifiedKey::from_der(chain, private, &PROVIDER) {
            Ok(identity) => Ok(Arc::new(identity)),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err(FileError::ForeignKey { key: key.clone(), cert: cert.clone() })
            }
            Err(rustls::Error::InvalidCertificate(_)) => Err(FileError::unfit(cert, NOT_UNDERSTOOD)),
            Err(_) => Err(FileError::unfit(key, NOT_SUPPORTED)),
        }
    }
}

const NOT_UNDERSTOOD: &str = "holds a certificate that cannot be understood";

const NOT_SUPPORTED: &str = "holds a key that is not supported, expected RSA with 2048 to 8192 bits, \
                             ECDSA with P-256 or P-384, or Ed25519";

const PASSPHRASE: &str = "holds a key with a passphrase, expected one without";

/// All certificates in a file: one or more.
fn certificates(file: &File) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let octets = octets(file)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&octets).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) if has(&octets, "PRIVATE KEY-----") => {
            Err(FileError::unfit(file, "holds a private key, expected a certificate"))
        }
        Ok(_) => Err(FileError::unfit(file, "holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")),
        Err(_) => Err(FileError::unfit(file, "is broken, expected certificates in PEM")),
    }
}

/// The first private key in a file.
fn private_key(file: &File) -> Result<PrivateKeyDer<'static>, FileError> {
    let octets = octets(file)?;
    // New and old way.
    let what = if ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"].iter().any(|it| has(&octets, it))
    {
        PASSPHRASE
    } else {
        match PrivateKeyDer::pem_slice_iter(&octets).next() {
            Some(Ok(key)) => return Ok(key),
            Some(Err(_)) => "is broken, expected a private key in PEM",
            None if has(&octets, "BEGIN CERTIFICATE") => "holds a certificate, expected a private key",
            None => "holds no private key in PEM (-----BEGIN PRIVATE KEY-----)",
        }
    };
    Err(FileError::unfit(file, what))
}

fn has(octets: &[u8], text: &str) -> bool {
    octets.windows(text.len()).any(|window| window == text.as_bytes())
}

fn octets(file: &File) -> Result<Vec<u8>, FileError> {
    let mut octets = Vec::new();
    let read =
        fs::File::open(&file.path).and_then(|opened| opened.take(FILE_LEN_MAX + 1).read_to_end(&mut octets));
    read.map_err(|source| FileError::Read { file: file.clone(), source })?;
    if octets.len() as u64 > FILE_LEN_MAX {
        return Err(FileError::unfit(file, "is too long, expected a PEM file"));
    }
    Ok(octets)
}
