//! What every transport must do, tested on each.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use dwcp_api::IoPath;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Completion, Transport, Wait, open};

fn bell() -> (EventFd, OwnedFd) {
    let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    let watched: OwnedFd = std::os::fd::AsFd::as_fd(&bell)
        .try_clone_to_owned()
        .unwrap();
    (bell, watched)
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// Runs a test on every transport that this machine has.
fn on_each(test: fn(IoPath)) {
    for path in [IoPath::Poll, IoPath::Uring] {
        match open(path, 1, None, bell().1) {
            Ok(_) => test(path),
            Err(error) => println!("skipped: {path:?}: {error}"),
        }
    }
}

fn transport(path: IoPath, buffers: usize) -> Box<dyn Transport> {
    open(path, buffers, None, bell().1).unwrap().transport
}

/// Collects completions until `enough` says so; ten seconds at most.
fn until(
    transport: &mut dyn Transport,
    mut enough: impl FnMut(&[Completion]) -> bool,
) -> Vec<Completion> {
    let mut all = vec![];
    for _ in 0..1000 {
        if enough(&all) {
            return all;
        }
        transport
            .wait(Wait::Upto(Duration::from_millis(10)), &mut all)
            .unwrap();
    }
    panic!("nothing more came after {all:?}");
}

#[test]
fn bytes_arrive_in_order_on_every_stream() {
    on_each(|path| {
        let (mut sender, mut receiver) = (transport(path, 24), transport(path, 3));
        let streams: Vec<_> = (0..3).map(|_| pair()).collect();
        let mut left = vec![vec![]; 3];
        for (one, other) in streams {
            sender.add(one).unwrap();
            receiver.add(other).unwrap();
        }
        let mut expected = vec![vec![]; 3];
        for round in 0..8u8 {
            for (slot, expected) in expected.iter_mut().enumerate() {
                let buffer = sender.buffers().take().unwrap();
                let bytes = 200_000 + slot * 7;
                let data = &mut sender.buffers().bytes_mut(buffer)[100..100 + bytes];
                data.fill(round * 3 + slot as u8);
                expected.extend_from_slice(data);
                sender.send(slot, buffer, 100..100 + bytes);
            }
        }
        let buffers: Vec<_> = (0..3).map(|_| receiver.buffers().take().unwrap()).collect();
        for (slot, &buffer) in buffers.iter().enumerate() {
            receiver.receive(slot, buffer, 0..65_536);
        }
        let mut sent = 0;
        for _ in 0..100_000 {
            let mut completions = vec![];
            sender.wait(Wait::No, &mut completions).unwrap();
            sent += completions.len();
            completions.clear();
            receiver.wait(Wait::No, &mut completions).unwrap();
            for completion in completions {
                let Completion::Received { slot, bytes } = completion else {
                    panic!("{completion:?}")
                };
                left[slot].extend_from_slice(&receiver.buffers().bytes_mut(buffers[slot])[..bytes]);
                receiver.receive(slot, buffers[slot], 0..65_536);
            }
            if left.iter().map(Vec::len).eq(expected.iter().map(Vec::len)) && sent == 24 {
                break;
            }
        }
        assert_eq!(sent, 24, "{path:?}");
        assert!(left == expected, "{path:?}: bytes differ");
    });
}

#[test]
fn an_end_of_stream_is_said_once() {
    on_each(|path| {
        let mut transport = transport(path, 2);
        let (one, other) = pair();
        let slot = transport.add(one).unwrap();
        let buffer = transport.buffers().take().unwrap();
        transport.receive(slot, buffer, 0..100);
        drop(other);
        let closed = until(&mut *transport, |all| !all.is_empty());
        assert!(
            matches!(closed[..], [Completion::Closed { slot: 0, .. }]),
            "{closed:?}"
        );
        transport.send(slot, buffer, 0..100);
        let mut more = vec![];
        transport
            .wait(Wait::Upto(Duration::from_millis(20)), &mut more)
            .unwrap();
        assert!(more.is_empty(), "{more:?}");
    });
}

#[test]
fn the_bell_wakes_a_waiting_worker() {
    on_each(|path| {
        let (bell, watched) = bell();
        let mut transport = open(path, 1, None, watched).unwrap().transport;
        for _ in 0..3 {
            let ringer = bell.write(1);
            assert!(ringer.is_ok());
            let all = until(&mut *transport, |all| !all.is_empty());
            assert!(matches!(all[..], [Completion::Rung]), "{all:?}");
        }
    });
}

#[test]
fn a_stream_that_nobody_reads_does_not_hold_up_another() {
    on_each(|path| {
        let mut transport = transport(path, 70);
        let (stuck, _unread) = pair();
        let (fine, mut read) = pair();
        transport.add(stuck).unwrap();
        transport.add(fine).unwrap();
        for _ in 0..64 {
            let buffer = transport.buffers().take().unwrap();
            transport.send(0, buffer, 0..super::BUFFER_BYTES);
        }
        let buffer = transport.buffers().take().unwrap();
        transport.buffers().bytes_mut(buffer)[..5].copy_from_slice(b"alive");
        transport.send(1, buffer, 0..5);
        until(&mut *transport, |all| {
            all.iter()
                .any(|done| matches!(done, Completion::Sent { slot: 1, .. }))
        });
        let mut bytes = [0; 5];
        std::io::Read::read_exact(&mut read, &mut bytes).unwrap();
        assert_eq!(&bytes, b"alive");
    });
}

#[test]
fn a_transport_may_be_dropped_with_operations_under_way() {
    on_each(|path| {
        let mut transport = transport(path, 4);
        let (one, mut other) = pair();
        let slot = transport.add(one).unwrap();
        let buffer = transport.buffers().take().unwrap();
        transport.receive(slot, buffer, 0..1000);
        let mut none = vec![];
        transport.wait(Wait::No, &mut none).unwrap();
        drop(transport);
        let _ = other.write_all(b"too late");
    });
}
