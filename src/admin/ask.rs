//! The asking end of the socket: one request, one answer, in bounded time.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Type};

use super::socket::ANSWER_MAX;
use super::{Ask, Reply, Request};

/// Octets of an answer: many times what the longest has.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// How long the gateway may take to read a request, and on top of its own time to answer. Its loop is never held up for as
/// long, so how it is needs no more.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no gateway listens on {}", .0.display())]
    NotRunning(PathBuf),
    /// It is somebody else's gateway.
    #[error("no permission to ask the gateway on {}", .0.display())]
    Denied(PathBuf),
    /// It does not answer, or the connection broke.
    #[error("the gateway on {} does not answer", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// What answers is no gateway of this version.
    #[error("what answers on {} is not understood", path.display())]
    Garbled {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Asks the gateway that listens on `path`. Blocks: for how it is 10 s at most, else 40 s.
///
/// # Errors
/// [`AskError`]. What was asked for may have been done all the same, unless it is `NotRunning` or `Denied`.
pub fn ask(path: &Path, request: &Request) -> Result<Reply, AskError> {
    let stream = connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NotRunning(path.into()),
        io::ErrorKind::PermissionDenied => AskError::Denied(path.into()),
        _ => AskError::Io { path: path.into(), source },
    })?;
    let garbled = |source| AskError::Garbled { path: path.into(), source };
    let mut line = serde_json::to_vec(request).map_err(garbled)?;
    line.push(b'\n');
    let answer = exchange(stream, &line, patience(&request.ask))
        .map_err(|source| AskError::Io { path: path.into(), source })?;
    serde_json::from_slice(&answer).map_err(garbled)
}

/// How long the answer may take. A client is forgotten only once the disk has it.
fn patience(ask: &Ask) -> Duration {
    match ask {
        Ask::Health => PATIENCE,
        Ask::Forget { .. } => ANSWER_MAX + PATIENCE,
    }
}

fn exchange(mut stream: UnixStream, line: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(line)?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(ANSWER_LEN_MAX).read_until(b'\n', &mut answer)?;
    if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

/// Connects without waiting: where nobody takes connections in, `WouldBlock` says so.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn health_does_not_wait_for_a_disk_and_forget_does() {
        assert_eq!(patience(&Ask::Health), PATIENCE);
        assert!(patience(&Ask::Forget { client: "n1".to_owned() }) > ANSWER_MAX);
    }

    #[test]
    fn who_takes_a_request_and_says_nothing_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        // It is in the queue of the listener, as with a process that was stopped.
        let stream = connect(&dir.path().join("s")).unwrap();
        let kind = exchange(stream, b"{}\n", Duration::from_millis(1)).unwrap_err().kind();
        assert!(matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{kind}");
        drop(listener);
    }
}
