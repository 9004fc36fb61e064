//! One serial device: how it is spoken with, and opening it so that nobody else does.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio_serial::{ClearBuffer, DataBits, FlowControl, SerialPort, SerialStream};

use super::fault::Fault;

/// How a serial device is spoken with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The device.
    pub device: PathBuf,
    /// Bits per second, 50 at least.
    pub baud: u32,
    /// Bits of an octet, 5 to 8.
    pub data_bits: u8,
    /// The check bit of each octet.
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    pub stop_bits: u8,
    /// How the other side holds up what is sent.
    pub flow: Flow,
}

/// The check bit of each octet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parity {
    /// There is none.
    None,
    /// The number of ones is odd.
    Odd,
    /// The number of ones is even.
    Even,
}

/// How the other side holds up what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It does not.
    None,
    /// By a wire.
    RtsCts,
    /// By octets.
    XonXoff,
}

impl Line {
    /// How long so many octets take on the line, with start bits.
    pub fn time_of(&self, octets: usize) -> Duration {
        let bits = 1
            + u64::from(self.data_bits)
            + u64::from(self.parity != Parity::None)
            + u64::from(self.stop_bits);
        let octets = u64::try_from(octets).unwrap_or(u64::MAX);
        Duration::from_nanos(octets.saturating_mul(bits * 1_000_000_000) / u64::from(self.baud.max(1)))
    }

    /// `9600 baud 8N1`
    pub(super) fn spoken(&self) -> String {
        let parity = match self.parity {
            Parity::None => 'N',
            Parity::Odd => 'O',
            Parity::Even => 'E',
        };
        format!("{} baud {}{parity}{}", self.baud, self.data_bits, self.stop_bits)
    }

    /// Opens it for us alone. May take a while: drivers speak with the device. Needs a tokio runtime.
    pub(super) fn open(&self) -> Result<Device, Fault> {
        let builder = tokio_serial::new(self.device.to_string_lossy(), self.baud)
            .data_bits(match self.data_bits {
                5 => DataBits::Five,
                6 => DataBits::Six,
                7 => DataBits::Seven,
                _ => DataBits::Eight,
            })
            .parity(match self.parity {
                Parity::None => tokio_serial::Parity::None,
                Parity::Odd => tokio_serial::Parity::Odd,
                Parity::Even => tokio_serial::Parity::Even,
            })
            .stop_bits(match self.stop_bits {
                2 => tokio_serial::StopBits::Two,
                _ => tokio_serial::StopBits::One,
            })
            .flow_control(match self.flow {
                Flow::None => FlowControl::None,
                Flow::RtsCts => FlowControl::Hardware,
                Flow::XonXoff => FlowControl::Software,
            });
        let mut device =
            SerialStream::open(&builder).map(Device).map_err(|error| Fault::of_open(self, &error))?;
        // A module on an adapter sleeps or is held in reset without DTR, and waits without RTS. A pseudo-terminal has neither.
        let raised = device.0.write_data_terminal_ready(true);
        let raised = match self.flow {
            Flow::RtsCts => raised,
            Flow::None | Flow::XonXoff => raised.and_then(|()| device.0.write_request_to_send(true)),
        };
        if let Err(error) = raised {
            tracing::debug!(device = %self.device.display(), %error, "no DTR or RTS here");
        }
        Ok(device)
    }
}

/// An open device.
#[derive(Debug)]
pub(super) struct Device(pub(super) SerialStream);

impl Drop for Device {
    fn drop(&mut self) {
        // Closing waits for up to 30 s until all is out, if the other side holds it up.
        let _ = self.0.clear(ClearBuffer::Output);
    }
}

/// Spreads what is written over the time that it takes on the line, so that what waits does so with us, where it is counted
/// and bounded, and not in the operating system's buffers.
#[derive(Debug)]
pub(super) struct Pacer {
    line: Line,
    /// When the line has sent what it was given.
    free: Option<Instant>,
}

impl Pacer {
    /// How much of a line's time the operating system has in advance: a task that wakes a bit late does not leave it idle.
    pub(super) const LEAD: Duration = Duration::from_millis(20);

    pub(super) fn new(line: Line) -> Self {
        Self { line, free: None }
    }

    /// When the next frame may be written, if not now.
    pub(super) fn busy_until(&self, now: Instant) -> Option<Instant> {
        self.free.and_then(|free| free.checked_sub(Self::LEAD)).filter(|at| *at > now)
    }

    /// When all that was written is out, if it is not.
    pub(super) fn out_at(&self, now: Instant) -> Option<Instant> {
        self.free.filter(|at| *at > now)
    }

    pub(super) fn write(&mut self, now: Instant, octets: usize) {
        let from = self.free.map_or(now, |free| free.max(now));
        self.free = Some(from + self.line.time_of(octets));
    }

    /// The line is another one.
    pub(super) fn reset(&mut self) {
        self.free = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn line(baud: u32) -> Line {
        let device = "/dev/ttyUSB0".into();
        Line { device, baud, data_bits: 8, parity: Parity::None, stop_bits: 1, flow: Flow::None }
    }

    #[test]
    fn an_octet_takes_its_bits_and_those_around_it() {
        assert_eq!(line(9600).time_of(960), Duration::from_secs(1));
        assert_eq!(line(115_200).time_of(11_520), Duration::from_secs(1));
        let long = Line { parity: Parity::Even, stop_bits: 2, ..line(1200) };
        assert_eq!(long.time_of(100), Duration::from_secs(1), "a start bit, 8, a parity bit, 2 stop bits");
        assert_eq!(Line { data_bits: 5, ..line(700) }.time_of(100), Duration::from_secs(1));
        assert_eq!(line(9600).time_of(0), Duration::ZERO);
    }

    #[test]
    fn what_is_written_is_spread_over_its_time() {
        let start = Instant::now();
        let mut pacer = Pacer::new(line(9600));
        assert_eq!((pacer.busy_until(start), pacer.out_at(start)), (None, None));
        pacer.write(start, 96);
        let out = start + Duration::from_millis(100);
        assert_eq!((pacer.busy_until(start), pacer.out_at(start)), (Some(out - Pacer::LEAD), Some(out)));
        let next = out - Pacer::LEAD;
        assert_eq!(pacer.busy_until(next), None, "before the line is idle");
        pacer.write(next, 96);
        assert_eq!(pacer.out_at(next), Some(start + Duration::from_millis(200)), "no time is lost");
        let late = start + Duration::from_secs(9);
        assert_eq!((pacer.busy_until(late), pacer.out_at(late)), (None, None));
    }
}
