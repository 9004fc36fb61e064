//! Passwords that are changed while the gateway runs, as certificates are: the files are looked at before each connection.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;

use super::tls::{File, FileError, Renewed, Source};
use crate::topic::ClientId;

/// Octets of the longest password (MQTT 3.1.1 §3.1.3.5: a two-octet length prefix).
const PASSWORD_LEN_MAX: usize = 65_535;

/// The passwords in force. Clones share them.
#[derive(Clone, Default)]
pub struct Passwords(Arc<Shared>);

#[derive(Default)]
struct Shared {
    own: Option<Mutex<Renewed<Line>>>,
    clients: BTreeMap<ClientId, Option<Mutex<Renewed<Line>>>>,
}

impl Passwords {
    /// Reads all files: that of the gateway itself, and those of clients that show a user name of their own, which may have no
    /// password.
    ///
    /// # Errors
    /// What is wrong with each that is of no use; never empty.
    pub fn load(
        own: Option<File>,
        clients: BTreeMap<ClientId, Option<File>>,
    ) -> Result<Self, Vec<FileError>> {
        let mut errors = Vec::new();
        let mut load = |file: File| {
            let mut line = Renewed::new(Line(file));
            errors.extend(line.load().err());
            Mutex::new(line)
        };
        let own = own.map(&mut load);
        let clients = clients.into_iter().map(|(id, file)| (id, file.map(&mut load))).collect();
        if errors.is_empty() { Ok(Self(Arc::new(Shared { own, clients }))) } else { Err(errors) }
    }

    /// What the link of a client, or the gateway's own, is to show now, if there is a file for it.
    pub(super) async fn current(&self, client: Option<&ClientId>) -> Option<Bytes> {
        let Shared { own, clients } = &*self.0;
        let line = match client.and_then(|id| clients.get(id)) {
            Some(theirs) => theirs,
            None => own,
        };
        line.as_ref()?.lock().await.current().await.ok()
    }
}

/// Shows none.
impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").finish_non_exhaustive()
    }
}

/// The password in a file, without the end of its line.
#[derive(Clone)]
struct Line(File);

impl Source for Line {
    type Made = Bytes;

    fn files(&self) -> Vec<&File> {
        vec![&self.0]
    }

    fn make(&self) -> Result<Bytes, FileError> {
        let Self(file) = self;
        let mut password =
            fs::read(&file.path).map_err(|source| FileError::Read { file: file.clone(), source })?;
        let end = password.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line).len());
        password.truncate(end.unwrap_or(password.len()));
        if password.len() > PASSWORD_LEN_MAX {
            return Err(FileError::Unfit {
                file: file.clone(),
                what: "holds a password of more than 65535 octets",
            });
        }
        Ok(password.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: &str) -> ClientId {
        ClientId::new(id.as_bytes()).unwrap()
    }

    /// One in a file, for the gateway and client `a`; client `b` has a user name alone.
    fn passwords(path: &std::path::Path) -> Result<Passwords, Vec<FileError>> {
        let file = File { key: "broker.password_file".into(), path: path.to_owned() };
        let clients = BTreeMap::from([(client("a"), Some(file.clone())), (client("b"), None)]);
        Passwords::load(Some(file), clients)
    }

    #[tokio::test]
    async fn the_password_is_the_line_in_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (octets, password) in [
            (&b"secret"[..], &b"secret"[..]),
            (b"secret\n", b"secret"),
            (b"a\r\n", b"a"),
            (b"a\n\n", b"a\n"),
            (b"", b""),
        ] {
            fs::write(file.path(), octets).unwrap();
            let passwords = passwords(file.path()).unwrap();
            for whose in [None, Some(client("a")), Some(client("c"))] {
                assert_eq!(passwords.current(whose.as_ref()).await.unwrap(), password);
            }
            assert_eq!(passwords.current(Some(&client("b"))).await, None, "not the gateway's");
        }
    }

    #[tokio::test]
    async fn what_is_changed_is_read_again_and_what_is_broken_is_not_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let passwords = passwords(file.path()).unwrap();
        for (octets, password) in
            [(&b"first"[..], "first"), (&[b'x'; 65_536], "first"), (b"second", "second")]
        {
            fs::write(file.path(), octets).unwrap();
            assert_eq!(passwords.current(None).await.unwrap(), password);
        }
        fs::remove_file(file.path()).unwrap();
        assert_eq!(passwords.current(None).await.unwrap(), "second");
    }

    #[test]
    fn a_password_that_has_no_room_in_a_connect_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [b'x'; 65_536]).unwrap();
        assert_eq!(passwords(file.path()).unwrap_err().len(), 2);
    }
}
