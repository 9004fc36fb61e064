//! The way from a gateway to its broker, which can be cut.

use std::io::copy;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Passes on connections to a broker, and closes them while the way is cut. Its threads end with the test.
pub struct Proxy {
    pub port: u16,
    way: Arc<Mutex<Way>>,
}

#[derive(Default)]
struct Way {
    is_cut: bool,
    /// Both ends of each connection there has been since the last cut.
    ends: Vec<TcpStream>,
}

impl Proxy {
    pub fn to(broker: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::<Mutex<Way>>::default();
        let theirs = way.clone();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let mut way = theirs.lock().unwrap();
                if way.is_cut {
                    continue;
                }
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    thread::spawn(move || {
                        let _ = copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                way.ends.extend([near, far]);
            }
        });
        Self { port, way }
    }

    /// From here on the broker is out of reach, in the middle of whatever is under way.
    pub fn cut(&self) {
        let mut way = self.way.lock().unwrap();
        way.is_cut = true;
        for end in way.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        let mut way = self.way.lock().unwrap();
        way.is_cut = false;
    }
}
