//! A serial line to a gateway, instead of a socket.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use mqtt_sn_gateway::framing::{Decoder, Framing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_serial::{SerialPortBuilderExt, SerialStream};

use crate::failure::Failure;

/// Octets read at one time.
const READ_MAX: usize = 1024;

/// The shortest silence that ends a message of `length`: USB adapters hand octets over in bundles, some 16 ms apart.
const SILENCE_MIN: Duration = Duration::from_millis(20);

/// Which line, and how it is spoken.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) baud: u32,
    pub(crate) framing: Framing,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

/// An open line.
#[derive(Debug)]
pub(crate) struct Line {
    stream: SerialStream,
    framing: Framing,
    decoder: Decoder,
    /// Longer than any pause inside a frame.
    silence: Duration,
    /// Octets have come since the last silence.
    stirred: bool,
    /// Encoded, and not written yet.
    out: BytesMut,
}

impl Line {
    /// Opens the line for this process alone. What came before is not read.
    pub(crate) fn open(options: &Options) -> Result<Self, Failure> {
        let failed = |error: tokio_serial::Error| {
            let source = io::Error::from(error);
            let path = options.path.clone();
            match source.kind() {
                ErrorKind::NotFound => Failure::Absent { path, source },
                ErrorKind::PermissionDenied => Failure::Forbidden { path, source },
                _ if !is_terminal(&path, &source) => Failure::NotSerial(path),
                _ => Failure::Open { path, source },
            }
        };
        let path = options.path.to_string_lossy();
        let stream = tokio_serial::new(path, options.baud).open_native_async().map_err(failed)?;
        Ok(Self {
            stream,
            framing: options.framing,
            decoder: Decoder::new(options.framing),
            silence: silence(options.baud),
            stirred: false,
            out: BytesMut::new(),
        })
    }

    /// The next frame. May be dropped and called again.
    pub(crate) async fn recv(&mut self) -> io::Result<Bytes> {
        let mut buffer = [0; READ_MAX];
        loop {
            if let Some(frame) = self.decoder.poll_frame() {
                return Ok(frame);
            }
            // Not readable() and try_read(): once readable, a SerialStream says so for ever.
            let read = self.stream.read(&mut buffer);
            let read = if self.stirred { timeout(self.silence, read).await } else { Ok(read.await) };
            match read {
                // A device that was pulled out reads as at its end.
                Ok(Ok(0)) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(Ok(len)) => {
                    self.stirred = true;
                    self.decoder.push(&buffer[..len]);
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    self.decoder.idle();
                    self.stirred = false;
                }
            }
        }
    }

    /// Takes a frame, to be written by [`Line::flush`].
    pub(crate) fn queue(&mut self, frame: &[u8]) {
        self.framing.encode(frame, &mut self.out);
    }

    /// Writes what was queued. May be dropped and called again.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            let len = self.stream.write(&self.out).await?;
            self.out.advance(len);
        }
        Ok(())
    }
}

/// Whether what could not be opened is a terminal at all.
fn is_terminal(path: &Path, error: &io::Error) -> bool {
    let is_device = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device());
    // The error has no number any more, and each C library calls it by another name.
    let text = error.to_string();
    is_device && !["Not a typewriter", "Inappropriate ioctl for device"].iter().any(|it| text.contains(it))
}

/// The time of 50 octets of ten bits, and no less than [`SILENCE_MIN`].
fn silence(baud: u32) -> Duration {
    SILENCE_MIN.max(Duration::from_secs(500) / baud.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_longer_on_a_slow_line() {
        assert_eq!(silence(115_200), SILENCE_MIN);
        assert_eq!(silence(1000), Duration::from_millis(500));
        assert_eq!(silence(0), Duration::from_secs(500));
    }
}
