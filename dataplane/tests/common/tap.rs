//! Somebody on the way who hears everything.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Carries connections, and keeps all that it carries.
pub(crate) struct Tap {
    pub(crate) address: String,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    pub(crate) fn start(destination: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tap = Self {
            address: listener.local_addr().unwrap().to_string(),
            heard: Arc::default(),
        };
        let (destination, heard) = (destination.to_owned(), Arc::clone(&tap.heard));
        std::thread::spawn(move || {
            for source in listener.incoming() {
                let source = source.unwrap();
                let target = TcpStream::connect(&destination).unwrap();
                for (from, to) in [(&source, &target), (&target, &source)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let heard = Arc::clone(&heard);
                    std::thread::spawn(move || listen_in(from, to, &heard));
                }
            }
        });
        tap
    }

    /// Ways of connections that are over: two for each.
    pub(crate) fn ways(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    /// What one of them carried.
    pub(crate) fn find(&self, is_it: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let heard = self.heard.lock().unwrap();
        heard.iter().find(|way| is_it(way)).cloned()
    }

    /// Whether `bytes` were carried on one of the connections.
    pub(crate) fn heard(&self, bytes: &[u8]) -> bool {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .any(|way| way.windows(bytes.len()).any(|part| part == bytes))
    }
}

fn listen_in(mut from: TcpStream, mut to: TcpStream, heard: &Mutex<Vec<Vec<u8>>>) {
    let (mut all, mut part) = (vec![], vec![0; 64 << 10]);
    while let Ok(count @ 1..) = from.read(&mut part) {
        all.extend_from_slice(&part[..count]);
        if to.write_all(&part[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    heard.lock().unwrap().push(all);
}
