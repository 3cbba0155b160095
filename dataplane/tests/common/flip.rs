//! A way between nodes that changes a bit, whatever it belongs to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

/// A way on which a bit of the megabytes behind the handshake is changed.
pub(crate) fn flipping(destination: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let destination = destination.to_owned();
    std::thread::spawn(move || {
        for source in listener.incoming() {
            let source = source.unwrap();
            let target = TcpStream::connect(&destination).unwrap();
            let (back_from, back_to) = (target.try_clone().unwrap(), source.try_clone().unwrap());
            std::thread::spawn(move || flip(back_from, back_to, usize::MAX));
            std::thread::spawn(move || flip(source, target, 5_000_000));
        }
    });
    address
}

fn flip(mut from: TcpStream, mut to: TcpStream, at: usize) {
    let (mut seen, mut part) = (0, vec![0; 16 << 10]);
    while let Ok(count @ 1..) = from.read(&mut part) {
        if (seen..seen + count).contains(&at) {
            part[at - seen] ^= 1;
        }
        seen += count;
        if to.write_all(&part[..count]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
