//! What every transport must do, tested on each.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use std::sync::Arc;

use dwcp_api::{IoPath, SendChoice};
use dwcp_simd::PAGE_BYTES;
use dwcp_wire::PageRange;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    BufferId, Completion, ReceiveInto, SendFrame, SendMethod, Stock, Transport, TransportOptions,
    Wait, open,
};
use crate::ram::{RamLayout, testing};

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
        match open(options(path, 1)) {
            Ok(_) => test(path),
            Err(error) => println!("skipped: {path:?}: {error}"),
        }
    }
}

fn options(io: IoPath, buffers: usize) -> TransportOptions {
    TransportOptions {
        io,
        send: SendChoice::Auto,
        buffers,
        sealed: false,
        node: None,
        stock: Stock::default(),
        ram: None,
        rdma: None,
        bell: bell().1,
    }
}

fn transport(path: IoPath, buffers: usize) -> Box<dyn Transport> {
    open(options(path, buffers)).unwrap().transport
}

/// Guest RAM of two blocks; page `p` of block `b` is full of `fill(b, p)`.
fn ram(fill: impl Fn(u32, u32) -> u8) -> Arc<RamLayout> {
    let layout = testing::ram(&[300, 40]);
    for (index, block) in (0..).zip(layout.blocks()) {
        for page in 0..block.pages() {
            block.write_page(page, &[fill(index, page); PAGE_BYTES]);
        }
    }
    Arc::new(layout)
}

const fn run(ram_block: u32, page: u32, count: u32) -> PageRange {
    PageRange {
        ram_block,
        page,
        count,
    }
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
            sender.add(one, None).unwrap();
            receiver.add(other, None).unwrap();
        }
        let mut expected = vec![vec![]; 3];
        for round in 0..8u8 {
            for (slot, expected) in expected.iter_mut().enumerate() {
                let buffer = sender.buffers().take().unwrap();
                let bytes = 200_000 + slot * 7;
                let data = &mut sender.buffers().bytes_mut(buffer)[100..100 + bytes];
                data.fill(round * 3 + slot as u8);
                expected.extend_from_slice(data);
                sender.send(slot, SendFrame::alone(buffer, 100..100 + bytes));
            }
        }
        let buffers: Vec<_> = (0..3).map(|_| receiver.buffers().take().unwrap()).collect();
        for (slot, &buffer) in buffers.iter().enumerate() {
            receiver.receive(slot, ReceiveInto::buffer(buffer, 0..65_536));
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
                receiver.receive(slot, ReceiveInto::buffer(buffers[slot], 0..65_536));
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
        let slot = transport.add(one, None).unwrap();
        let buffer = transport.buffers().take().unwrap();
        transport.receive(slot, ReceiveInto::buffer(buffer, 0..100));
        drop(other);
        let closed = until(&mut *transport, |all| !all.is_empty());
        assert!(
            matches!(closed[..], [Completion::Closed { slot: 0, .. }]),
            "{closed:?}"
        );
        transport.send(slot, SendFrame::alone(buffer, 0..100));
        let mut more = vec![];
        transport
            .wait(Wait::Upto(Duration::from_millis(20)), &mut more)
            .unwrap();
        assert!(more.is_empty(), "{more:?}");
    });
}

/// Its buffers are the worker's again when its end is told, whatever was under way.
#[test]
fn another_stream_takes_the_place_of_one_that_is_over() {
    on_each(|path| {
        let mut transport = transport(path, 70);
        let (one, _unread) = pair();
        let slot = transport.add(one, None).unwrap();
        let into = transport.buffers().take().unwrap();
        transport.receive(slot, ReceiveInto::buffer(into, 0..100));
        for _ in 0..64 {
            let buffer = transport.buffers().take().unwrap();
            transport.send(slot, SendFrame::alone(buffer, 0..super::BUFFER_BYTES));
        }
        transport.wait(Wait::No, &mut vec![]).unwrap();
        let (early, _other) = pair();
        assert!(transport.add(early, Some(slot)).is_err(), "it is not over");
        transport.shut(slot, std::io::Error::other("for a reason"));
        let closed = until(&mut *transport, |all| {
            all.iter()
                .any(|done| matches!(done, Completion::Closed { .. }))
        });
        let Some(Completion::Closed { slot: 0, error }) = closed.last() else {
            panic!("{closed:?}")
        };
        assert_eq!(error.to_string(), "for a reason");
        let (next, mut other) = pair();
        assert_eq!(transport.add(next, Some(slot)).unwrap(), slot);
        transport.receive(slot, ReceiveInto::buffer(into, 0..100));
        other.write_all(b"again").unwrap();
        let all = until(&mut *transport, |all| !all.is_empty());
        assert!(
            matches!(all[..], [Completion::Received { slot: 0, bytes: 5 }]),
            "{all:?}"
        );
        assert_eq!(&transport.buffers().bytes_mut(into)[..5], b"again");
    });
}

#[test]
fn the_bell_wakes_a_waiting_worker() {
    on_each(|path| {
        let (bell, watched) = bell();
        let options = TransportOptions {
            bell: watched,
            ..options(path, 1)
        };
        let mut transport = open(options).unwrap().transport;
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
        transport.add(stuck, None).unwrap();
        transport.add(fine, None).unwrap();
        for _ in 0..64 {
            let buffer = transport.buffers().take().unwrap();
            transport.send(0, SendFrame::alone(buffer, 0..super::BUFFER_BYTES));
        }
        let buffer = transport.buffers().take().unwrap();
        transport.buffers().bytes_mut(buffer)[..5].copy_from_slice(b"alive");
        transport.send(1, SendFrame::alone(buffer, 0..5));
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
        let slot = transport.add(one, None).unwrap();
        let buffer = transport.buffers().take().unwrap();
        transport.receive(slot, ReceiveInto::buffer(buffer, 0..1000));
        let mut none = vec![];
        transport.wait(Wait::No, &mut none).unwrap();
        drop(transport);
        let _ = other.write_all(b"too late");
    });
}

/// Two ends of one stream, both over guest RAM.
struct Ends {
    sender: Box<dyn Transport>,
    receiver: Box<dyn Transport>,
    buffer: BufferId,
    sent: usize,
    /// The sender's, to change it.
    socket: TcpStream,
}

impl Ends {
    fn new(
        path: IoPath,
        send: SendChoice,
        source: &Arc<RamLayout>,
        target: &Arc<RamLayout>,
    ) -> Self {
        let end = |ram: &Arc<RamLayout>| {
            let options = TransportOptions {
                send,
                ram: Some(Arc::clone(ram)),
                ..options(path, 300)
            };
            open(options).unwrap().transport
        };
        let (mut sender, mut receiver) = (end(source), end(target));
        let (one, other) = pair();
        let socket = one.try_clone().unwrap();
        sender.add(one, None).unwrap();
        receiver.add(other, None).unwrap();
        let buffer = receiver.buffers().take().unwrap();
        Self {
            sender,
            receiver,
            buffer,
            sent: 0,
            socket,
        }
    }

    /// The kernel refuses splice(2) and sendfile(2) on what is open for appending.
    fn refuse_splices(&self) {
        let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_APPEND);
        fcntl(&self.socket, flags).unwrap();
    }

    /// Receives `bytes` into the pages, or into the start of the buffer where there are none.
    fn receive(&mut self, pages: &[PageRange], bytes: usize) {
        let mut filled = 0;
        let mut completions = vec![];
        while filled < bytes {
            let range = if pages.is_empty() {
                filled..bytes
            } else {
                0..0
            };
            let wanted = ReceiveInto {
                pages,
                placed: filled,
                ..ReceiveInto::buffer(self.buffer, range)
            };
            self.receiver.receive(0, wanted);
            while completions.is_empty() {
                self.sender.wait(Wait::No, &mut completions).unwrap();
                self.sent += completions.drain(..).count();
                let wait = Wait::Upto(Duration::from_millis(1));
                self.receiver.wait(wait, &mut completions).unwrap();
            }
            for completion in completions.drain(..) {
                let Completion::Received { bytes, .. } = completion else {
                    panic!("{completion:?}")
                };
                filled += bytes;
            }
        }
    }
}

/// Sends runs of pages behind a head of 9 bytes, `frames` times, by one method; the other side takes
/// them straight into its own RAM, in whatever pieces come.
fn pages_by(path: IoPath, send: SendChoice, frames: usize) -> Option<SendMethod> {
    pages_between(path, send, frames, |_| {})
}

fn pages_between(
    path: IoPath,
    send: SendChoice,
    frames: usize,
    prepare: fn(&Ends),
) -> Option<SendMethod> {
    let fill = |block: u32, page: u32| (block * 100 + page % 97 + 1) as u8;
    let (source, target) = (ram(fill), ram(|_, _| 0));
    let runs = [
        run(0, 3, 1),
        run(0, 7, 40),
        run(1, 0, 2),
        run(1, 39, 1),
        run(0, 299, 1),
    ];
    let mut ends = Ends::new(path, send, &source, &target);
    prepare(&ends);
    for _ in 0..frames {
        let buffer = ends.sender.buffers().take().unwrap();
        ends.sender.buffers().bytes_mut(buffer)[..9].copy_from_slice(b"some head");
        let frame = SendFrame {
            pages: &runs,
            ..SendFrame::alone(buffer, 0..9)
        };
        ends.sender.send(0, frame);
    }
    for _ in 0..frames {
        ends.receive(&[], 9);
        let buffer = ends.buffer;
        assert_eq!(
            &ends.receiver.buffers().bytes_mut(buffer)[..9],
            b"some head"
        );
        ends.receive(&runs, 45 * PAGE_BYTES);
    }
    assert_eq!(ends.sent, frames, "{path:?} {send:?}");
    for (index, block) in (0..).zip(target.blocks()) {
        for page in 0..block.pages() {
            let mut copy = [0; PAGE_BYTES];
            block.read_page(page, &mut copy);
            let named = runs.iter().any(|run| {
                run.ram_block == index && (run.page..run.page + run.count).contains(&page)
            });
            let expected = if named { fill(index, page) } else { 0 };
            assert!(
                copy == [expected; PAGE_BYTES],
                "{path:?} {send:?} page {page}"
            );
        }
    }
    ends.sender.send_method(0)
}

#[test]
fn guest_pages_arrive_in_guest_pages_by_every_method() {
    on_each(|path| {
        for (send, method) in [
            (SendChoice::Vmsplice, SendMethod::Vmsplice),
            (SendChoice::Sendfile, SendMethod::Sendfile),
            (SendChoice::Write, SendMethod::Write),
        ] {
            assert_eq!(pages_by(path, send, 20), Some(method), "{path:?}");
        }
    });
}

/// Asked for by name it is taken although loopback copies; by itself it is given up.
#[test]
fn guest_pages_arrive_by_the_rings_zero_copy() {
    on_each(|path| {
        let method = pages_by(path, SendChoice::ZeroCopy, 20);
        match path {
            IoPath::Poll => assert_eq!(method, Some(SendMethod::Write)),
            _ if method == Some(SendMethod::Write) => {
                println!("skipped: the ring of this kernel has no SENDMSG_ZC");
            }
            _ => {
                assert_eq!(method, Some(SendMethod::ZeroCopy));
                let measured = pages_by(path, SendChoice::Auto, 250);
                assert_ne!(measured, Some(SendMethod::ZeroCopy));
            }
        }
    });
}

#[test]
fn a_method_is_chosen_after_the_first_frames() {
    on_each(|path| {
        assert!(pages_by(path, SendChoice::Auto, 250).is_some(), "{path:?}");
        assert!(pages_by(path, SendChoice::Auto, 3).is_none(), "{path:?}");
    });
}

#[test]
fn pages_arrive_where_the_kernel_takes_references_and_the_socket_refuses_them() {
    on_each(|path| {
        for send in [SendChoice::Vmsplice, SendChoice::Sendfile] {
            let method = pages_between(path, send, 3, Ends::refuse_splices);
            assert_eq!(method, Some(SendMethod::Write), "{path:?} {send:?}");
        }
    });
}
