//! What the gateway logs in a conversation.
//!
//! There is one subscriber, set before the first gateway is made. With one for each test a line may be missed if another thread
//! comes to the place that logs it for the first time in the moment in which the subscriber is set.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

thread_local! {
    static HEARD: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Sets the subscriber.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_writer(Ear).with_ansi(false).without_time();
        tracing::subscriber::set_global_default(subscriber.with_max_level(Level::INFO).finish()).unwrap();
    });
}

/// Keeps what is logged on this thread, until it is dropped.
pub struct Log(Level);

impl Log {
    /// Lines of this level, INFO or WARN, and above.
    pub fn of(level: Level) -> Self {
        listen();
        HEARD.set(Some(Vec::new()));
        Self(level)
    }

    /// What was logged since the last time.
    pub fn take(&self) -> Vec<String> {
        let octets = HEARD.replace(Some(Vec::new())).unwrap();
        let heard = String::from_utf8(octets).unwrap();
        let info = |line: &&str| self.0 == Level::INFO || !line.trim_start().starts_with("INFO");
        heard.lines().filter(info).map(str::to_owned).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        HEARD.set(None);
    }
}

struct Ear;

impl io::Write for Ear {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        HEARD.with_borrow_mut(|heard| heard.iter_mut().for_each(|heard| heard.extend(octets)));
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Ear {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
