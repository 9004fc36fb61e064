//! An open connection to a broker, with or without TLS: read and written only when the socket is ready, so that nothing
//! is taken from it before there is room.

use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::Error;
use tokio_rustls::rustls::pki_types::ServerName;

use super::plain;
use super::tls::Certificates;
use super::words::{self, Handshake};
use crate::gateway::io::{Endpoint, LinkFailure};
use crate::topic::ClientId;

/// Octets taken from a connection at a time: a few hundred small messages, and memory only while they are copied.
const READ_MAX: usize = 16 << 10;

/// How long a close waits for the broker to close too. If we closed with octets unread, TCP would reset the connection
/// and take our last words from the broker.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(1);

/// What an alert of TLS begins with. In MQTT it would be a CONNECT, which no broker sends.
const ALERT: [u8; 2] = [0x15, 0x03];

/// A connection.
pub(super) enum Stream {
    Plain {
        tcp: TcpStream,
        /// Whether we have said anything.
        spoke: bool,
        /// Whether the broker has.
        heard: bool,
    },
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        /// Whether we had a certificate to show.
        shows: bool,
    },
}

/// What a connection had to say.
pub(super) enum Heard {
    Octets(Bytes),
    /// The socket was ready, but not for anything that concerns MQTT.
    Nothing,
    End,
}

impl Stream {
    /// Connects to an address of a broker, and shakes hands if TLS is spoken there.
    pub(super) async fn open(
        addr: SocketAddr,
        endpoint: &Endpoint,
        client: Option<&ClientId>,
        certificates: &Certificates,
        within: Duration,
    ) -> Result<Self, LinkFailure> {
        let deadline = Instant::now() + within;
        let within = format!("within {:.0} s", within.as_secs_f32().ceil());
        let tcp = match timeout_at(deadline, connect(addr)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Err(LinkFailure::Connect(plain(&error))),
            Err(_) => return Err(LinkFailure::Connect(format!("no answer {within}"))),
        };
        if !endpoint.tls {
            return Ok(Self::Plain { tcp, spoke: false, heard: false });
        }
        // In a room of its own: a plain connection takes none of it.
        match timeout_at(deadline, Box::pin(shake_hands(tcp, endpoint, client, certificates))).await {
            Ok(stream) => stream.map_err(LinkFailure::Tls),
            Err(_) => {
                Err(LinkFailure::Tls(format!("{} did not finish the handshake {within}", endpoint.host)))
            }
        }
    }

    /// Completes when [`read`](Self::read) is worth a try. Cancel-safe.
    pub(super) async fn readable(&self) {
        match self {
            // It has octets for us already, or has said goodbye: the socket need not become ready again.
            Self::Tls { stream, .. } if !stream.get_ref().1.wants_read() => {}
            // An error shows when reading.
            _ => drop(self.tcp().readable().await),
        }
    }

    /// Completes when [`write`](Self::write) is worth a try. Cancel-safe.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.tcp().writable().await
    }

    /// Reads what is there, once, and does not wait for more. The buffer lives only for the call, so that idle connections take no
    /// memory, and its content is copied, so that a message which is kept does not keep the buffer.
    pub(super) async fn read(&mut self) -> Result<Heard, LinkFailure> {
        match self {
            Self::Plain { tcp, heard, .. } => match poll_fn(|cx| Poll::Ready(read_once(tcp, cx))).await {
                Poll::Ready(Ok(octets)) if octets.is_empty() => Ok(Heard::End),
                Poll::Ready(Ok(octets)) if !std::mem::replace(heard, true) && octets.starts_with(&ALERT) => {
                    let text = "the broker speaks TLS on this port, so its url begins with mqtts://";
                    Err(LinkFailure::Tls(text.into()))
                }
                Poll::Ready(Ok(octets)) => Ok(Heard::Octets(octets)),
                Poll::Ready(Err(error)) => nothing_or(&error),
                Poll::Pending => Ok(Heard::Nothing),
            },
            Self::Tls { stream, shows } => {
                let (tcp, session) = stream.get_mut();
                if session.wants_read() {
                    match session.read_tls(&mut Socket(tcp)) {
                        Ok(0) => return Ok(Heard::End),
                        Ok(_) => {}
                        Err(error) => return nothing_or(&error),
                    }
                }
                let state = match session.process_new_packets() {
                    Ok(state) => state,
                    Err(error) => {
                        // The broker is told why, if there is room: we are leaving.
                        let _ = session.write_tls(&mut Socket(tcp));
                        return Err(LinkFailure::Tls(match error {
                            Error::AlertReceived(alert) => words::refusal(alert, *shows),
                            error => error.to_string(),
                        }));
                    }
                };
                // No more than one turn of `read_tls` brings, which is about READ_MAX: nothing stays behind.
                let mut octets = vec![0; state.plaintext_bytes_to_read()];
                match session.reader().read_exact(&mut octets) {
                    Ok(()) if !octets.is_empty() => Ok(Heard::Octets(octets.into())),
                    Ok(()) if state.peer_has_closed() => Ok(Heard::End),
                    Ok(()) => Ok(Heard::Nothing),
                    Err(error) => nothing_or(&error),
                }
            }
        }
    }

    /// Writes what the operating system takes of `octets`, and cuts that off. Whether everything is with it.
    pub(super) fn write(&mut self, octets: &mut Bytes) -> io::Result<bool> {
        loop {
            let written = match self {
                Self::Plain { .. } if octets.is_empty() => return Ok(true),
                Self::Plain { tcp, spoke, .. } => {
                    *spoke = true;
                    tcp.try_write(octets).inspect(|written| octets.advance(*written))
                }
                Self::Tls { stream, .. } => {
                    let (tcp, session) = stream.get_mut();
                    // No more than 64 KiB ahead of the socket.
                    octets.advance(session.writer().write(octets)?);
                    if !session.wants_write() {
                        return Ok(true);
                    }
                    session.write_tls(&mut Socket(tcp))
                }
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// The end of the connection with what may be behind it: a broker that waits for TLS closes at our first words.
    pub(super) fn explain(&self, failure: LinkFailure) -> LinkFailure {
        match (self, failure) {
            (Self::Plain { spoke: true, heard: false, .. }, LinkFailure::Closed | LinkFailure::Io(_)) => {
                LinkFailure::Io("closed without a word: is it the broker's port for TLS (mqtts://)?".into())
            }
            (_, failure) => failure,
        }
    }

    /// Lets `octets` leave within `flush_max`, says goodbye, and closes.
    pub(super) async fn leave(self, octets: &[u8], flush_max: Duration) {
        match self {
            Self::Plain { tcp, .. } => leave(tcp, octets, flush_max).await,
            Self::Tls { stream, .. } => leave(*stream, octets, flush_max).await,
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain { tcp, .. } => tcp,
            Self::Tls { stream, .. } => stream.get_ref().0,
        }
    }
}

/// What is there. Unlike [`TcpStream::try_read`] this knows of a buffer that was not filled that nothing is left, and need not be
/// tried again.
fn read_once(tcp: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    let mut room = [MaybeUninit::uninit(); READ_MAX];
    let mut buffer = ReadBuf::uninit(&mut room);
    let read = Pin::new(tcp).poll_read(cx, &mut buffer);
    read.map_ok(|()| Bytes::copy_from_slice(buffer.filled()))
}

fn nothing_or(error: &io::Error) -> Result<Heard, LinkFailure> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(Heard::Nothing),
        _ => Err(LinkFailure::Io(plain(error))),
    }
}

async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(addr).await?;
    // On a free port of the range from which outgoing connections take theirs, TCP may connect to itself.
    if tcp.local_addr()? == tcp.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // Nagle's delay would wait for an ack of the broker with every small message.
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn shake_hands(
    tcp: TcpStream,
    endpoint: &Endpoint,
    client: Option<&ClientId>,
    certificates: &Certificates,
) -> Result<Stream, String> {
    let Endpoint { host, port, .. } = endpoint;
    let name = ServerName::try_from(host.clone())
        .map_err(|_| format!("{host} is no name that a certificate could be for"))?;
    let terms = certificates.terms(client).await?;
    match TlsConnector::from(terms.config.clone()).connect(name, tcp).await {
        Ok(stream) => Ok(Stream::Tls { stream: Box::new(stream), shows: terms.shows }),
        Err(error) => Err(Handshake { host, port: *port, terms: &terms }.failure(&error)),
    }
}

async fn leave(mut stream: impl AsyncRead + AsyncWrite + Unpin, octets: &[u8], flush_max: Duration) {
    let flush = async {
        stream.write_all(octets).await?;
        stream.shutdown().await
    };
    let Ok(Ok(())) = timeout(flush_max, flush).await else { return };
    let mut rest = [0; 1024];
    let end = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    // A broker that does not close gets a reset.
    let _ = timeout(LINGER_MAX, end).await;
}

/// A socket as rustls wants it: it is read and written without waiting.
struct Socket<'a>(&'a TcpStream);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.try_write(octets)
    }

    fn write_vectored(&mut self, octets: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
