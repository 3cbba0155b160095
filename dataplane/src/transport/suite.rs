//! What every transport must do, tested on each.
//!
//! Queue pairs need a device: where `DWCP_RXE_OWN` says its address, as in the guests of `tools/testbed/rxe`, the suite runs on
//! them, and otherwise on TCP. Where
//! `DWCP_TEST_KERNEL_TLS` is set, as in the guests of `tls/kernel/tests.rs`, TCP is sockets whose records the kernel seals.

pub(crate) mod ends;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use dwcp_api::SendChoice;
use dwcp_simd::PAGE_BYTES;
use dwcp_wire::PageRange;
use dwcp_wire::limits::FRAME_BYTES_MAX;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    BufferId, Completion, RdmaMemory, ReceiveInto, SendFrame, SendMethod, Slot, Transport,
    TransportOptions, Wait, open,
};
use crate::ram::{RamLayout, testing};
use ends::{
    Kind, ask, bell, connect, on_each, on_tcp, options, pair, plain_transports, transports,
};

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
    on_each(|kind| {
        let [mut sender, mut receiver] = plain_transports(kind, [24, 3]);
        for slot in 0..3 {
            let slots = connect(kind, &mut *sender, &mut *receiver, None);
            assert_eq!(slots, (slot, slot));
        }
        let mut left = vec![vec![]; 3];
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
        for _ in 0..1_000_000 {
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
        assert_eq!(sent, 24, "{kind:?}");
        assert!(left == expected, "{kind:?}: bytes differ");
    });
}

#[test]
fn an_end_of_stream_is_said_once() {
    on_each(|kind| {
        let [mut other, mut transport] = plain_transports(kind, [2, 2]);
        let (_, slot) = connect(kind, &mut *other, &mut *transport, None);
        let buffer = transport.buffers().take().unwrap();
        transport.receive(slot, ReceiveInto::buffer(buffer, 0..100));
        drop(other);
        let closed = until(&mut *transport, |all| !all.is_empty());
        assert!(
            matches!(closed[..], [Completion::Closed { slot: 0, .. }]),
            "{closed:?}"
        );
        transport.send(slot, SendFrame::alone(buffer, 0..64));
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
    on_each(|kind| {
        let [mut transport, mut other] = plain_transports(kind, [70, 2]);
        let (slot, _) = connect(kind, &mut *transport, &mut *other, None);
        let into = transport.buffers().take().unwrap();
        transport.receive(slot, ReceiveInto::buffer(into, 0..64));
        let mut buffer = into;
        for _ in 0..64 {
            buffer = transport.buffers().take().unwrap();
            transport.send(slot, SendFrame::alone(buffer, 0..FRAME_BYTES_MAX));
        }
        transport.wait(Wait::No, &mut vec![]).unwrap();
        assert!(
            take_place(kind, &mut *transport, slot).is_err(),
            "it is not over"
        );
        transport.shut(slot, std::io::Error::other("for a reason"));
        let closed = until(&mut *transport, |all| {
            all.iter()
                .any(|done| matches!(done, Completion::Closed { .. }))
        });
        let Some(Completion::Closed { slot: 0, error }) = closed.last() else {
            panic!("{closed:?}")
        };
        assert_eq!(error.to_string(), "for a reason");
        // Of the one before nothing more is to be heard.
        let [_, mut other] = plain_transports(kind, [2, 2]);
        let (taken, there) = connect(kind, &mut *transport, &mut *other, Some(slot));
        assert_eq!(taken, slot);
        let into = other.buffers().take().unwrap();
        other.receive(there, ReceiveInto::buffer(into, 0..100));
        transport.buffers().bytes_mut(buffer)[..5].copy_from_slice(b"again");
        transport.send(slot, SendFrame::alone(buffer, 0..5));
        until(&mut *transport, |all| !all.is_empty());
        let all = until(&mut *other, |all| !all.is_empty());
        assert!(
            matches!(all[..], [Completion::Received { slot: 0, bytes: 5 }]),
            "{all:?}"
        );
        assert_eq!(&other.buffers().bytes_mut(into)[..5], b"again");
    });
}

/// Tries to put another stream in a place.
fn take_place(kind: Kind, transport: &mut dyn Transport, slot: Slot) -> std::io::Result<Slot> {
    match kind {
        Kind::Rdma => transport.add_queue(ask().0, Some(slot)),
        _ => {
            let [stream, _] = pair(kind);
            transport.add_stream(stream, Some(slot))
        }
    }
}

#[test]
fn the_bell_wakes_a_waiting_worker() {
    on_each(|kind| {
        let (bell, watched) = bell();
        let ram = Arc::new(testing::ram(&[1]));
        let options = TransportOptions {
            bell: watched,
            rdma: (kind == Kind::Rdma).then(|| RdmaMemory::of_source(&ram)),
            ram: Some(ram),
            ..options(kind, 1)
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
    on_each(|kind| {
        let [mut transport, mut other] = plain_transports(kind, [70, 2]);
        connect(kind, &mut *transport, &mut *other, None);
        connect(kind, &mut *transport, &mut *other, None);
        for _ in 0..64 {
            let buffer = transport.buffers().take().unwrap();
            transport.send(0, SendFrame::alone(buffer, 0..FRAME_BYTES_MAX));
        }
        let buffer = transport.buffers().take().unwrap();
        transport.buffers().bytes_mut(buffer)[..5].copy_from_slice(b"alive");
        transport.send(1, SendFrame::alone(buffer, 0..5));
        until(&mut *transport, |all| {
            all.iter()
                .any(|done| matches!(done, Completion::Sent { slot: 1, .. }))
        });
        let into = other.buffers().take().unwrap();
        other.receive(1, ReceiveInto::buffer(into, 0..5));
        let all = until(&mut *other, |all| !all.is_empty());
        assert!(
            matches!(all[..], [Completion::Received { slot: 1, bytes: 5 }]),
            "{all:?}"
        );
        assert_eq!(&other.buffers().bytes_mut(into)[..5], b"alive");
    });
}

#[test]
fn a_transport_may_be_dropped_with_operations_under_way() {
    on_each(|kind| {
        let [mut other, mut transport] = plain_transports(kind, [2, 4]);
        let (there, slot) = connect(kind, &mut *other, &mut *transport, None);
        let buffer = transport.buffers().take().unwrap();
        transport.receive(slot, ReceiveInto::buffer(buffer, 0..1000));
        let mut none = vec![];
        transport.wait(Wait::No, &mut none).unwrap();
        drop(transport);
        let late = other.buffers().take().unwrap();
        other.send(there, SendFrame::alone(late, 0..8));
        other.wait(Wait::No, &mut none).unwrap();
    });
}

/// Two ends of one stream, both over guest RAM.
struct Ends {
    sender: Box<dyn Transport>,
    receiver: Box<dyn Transport>,
    buffer: BufferId,
    sent: usize,
}

impl Ends {
    fn new(
        kind: Kind,
        send: SendChoice,
        source: &Arc<RamLayout>,
        target: &Arc<RamLayout>,
        prepare: fn(&TcpStream),
    ) -> Self {
        let [mut sender, mut receiver] = match kind {
            Kind::Rdma => transports(kind, [300, 300], [source, target]),
            _ => [source, target].map(|ram| {
                let options = TransportOptions {
                    send,
                    ram: Some(Arc::clone(ram)),
                    ..options(kind, 300)
                };
                open(options).unwrap().transport
            }),
        };
        if kind == Kind::Rdma {
            connect(kind, &mut *sender, &mut *receiver, None);
        } else {
            let [one, other] = pair(kind);
            let socket = one.socket.try_clone().unwrap();
            sender.add_stream(one, None).unwrap();
            receiver.add_stream(other, None).unwrap();
            prepare(&socket);
        }
        let buffer = receiver.buffers().take().unwrap();
        Self {
            sender,
            receiver,
            buffer,
            sent: 0,
        }
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

/// The kernel refuses splice(2) and sendfile(2) on what is open for appending.
fn refuse_splices(socket: &TcpStream) {
    let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_APPEND);
    fcntl(socket, flags).unwrap();
}

/// Sends runs of pages behind a head of 9 bytes, `frames` times, by one method; the other side takes
/// them straight into its own RAM, in whatever pieces come.
fn pages_by(kind: Kind, send: SendChoice, frames: usize) -> Option<SendMethod> {
    pages_between(kind, send, frames, |_| {})
}

fn pages_between(
    kind: Kind,
    send: SendChoice,
    frames: usize,
    prepare: fn(&TcpStream),
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
    let mut ends = Ends::new(kind, send, &source, &target, prepare);
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
    assert_eq!(ends.sent, frames, "{kind:?} {send:?}");
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
                "{kind:?} {send:?} page {page}"
            );
        }
    }
    ends.sender.send_method(0)
}

#[test]
fn guest_pages_arrive_in_guest_pages() {
    on_each(|kind| {
        pages_by(kind, SendChoice::Auto, 20);
    });
}

#[test]
fn guest_pages_arrive_in_guest_pages_by_every_method() {
    on_tcp(|kind| {
        for (send, method) in [
            (SendChoice::Vmsplice, SendMethod::Vmsplice),
            (SendChoice::Sendfile, SendMethod::Sendfile),
            (SendChoice::Write, SendMethod::Write),
        ] {
            assert_eq!(pages_by(kind, send, 20), Some(method), "{kind:?}");
        }
    });
}

/// Asked for by name it is taken although loopback copies; by itself it is given up.
#[test]
fn guest_pages_arrive_by_the_rings_zero_copy() {
    on_tcp(|kind| {
        let method = pages_by(kind, SendChoice::ZeroCopy, 20);
        match kind {
            Kind::Poll | Kind::KernelPoll | Kind::KernelUring => {
                assert_eq!(method, Some(SendMethod::Write));
            }
            _ if method == Some(SendMethod::Write) => {
                println!("skipped: the ring of this kernel has no SENDMSG_ZC");
            }
            _ => {
                assert_eq!(method, Some(SendMethod::ZeroCopy));
                let measured = pages_by(kind, SendChoice::Auto, 250);
                assert_ne!(measured, Some(SendMethod::ZeroCopy));
            }
        }
    });
}

#[test]
fn a_method_is_chosen_after_the_first_frames() {
    on_tcp(|kind| {
        assert!(pages_by(kind, SendChoice::Auto, 250).is_some(), "{kind:?}");
        assert!(pages_by(kind, SendChoice::Auto, 3).is_none(), "{kind:?}");
    });
}

#[test]
fn pages_arrive_where_the_kernel_takes_references_and_the_socket_refuses_them() {
    on_tcp(|kind| {
        for send in [SendChoice::Vmsplice, SendChoice::Sendfile] {
            let method = pages_between(kind, send, 3, refuse_splices);
            assert_eq!(method, Some(SendMethod::Write), "{kind:?} {send:?}");
        }
    });
}
