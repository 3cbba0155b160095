//! What queue pairs do beside what every transport does. Tests that need a device are ignored; [`in_guests`] runs them, and the
//! suite of all transports, in guests that have one.

use std::time::{Duration, Instant};

use dwcp_rdma::{Payload, RemoteAddress, SendRequest};
use dwcp_simd::PAGE_BYTES;
use dwcp_testbed::rxe::in_guests;
use dwcp_wire::limits::FRAME_BYTES_MAX;
use dwcp_wire::rdma::{PIECE_BYTES_MIN, PieceId, QueueHello, QueueMessage, QueueReply, RecordMark};
use dwcp_wire::{HEADER_BYTES, PageRange};

use super::queue::{Queue, Takes};
use super::*;
use crate::ram::testing;
use crate::transport::suite::ends::{Kind, ask, bell, connect, options};
use crate::transport::{BufferId, TransportOptions, open};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn the_suite_of_transports_in_a_guest() {
    in_guests(
        &["--timeout", "120"],
        "--include-ignored",
        "transport::suite::",
        11,
    );
}

#[test]
fn queue_pairs_in_a_guest() {
    in_guests(
        &["--timeout", "90"],
        "--include-ignored",
        "transport::rdma::tests::ends_",
        4,
    );
}

const RUN: PageRange = PageRange {
    ram_block: 0,
    page: 3,
    count: 4,
};

fn over(ram: &Arc<RamLayout>, memory: &Arc<RdmaMemory>) -> Box<dyn Transport> {
    let opened = open(TransportOptions {
        ram: Some(Arc::clone(ram)),
        rdma: Some(Arc::clone(memory)),
        bell: bell().1,
        ..options(Kind::Rdma, 8)
    });
    opened.unwrap().transport
}

/// Both ends of one stream.
struct Ends {
    source: Box<dyn Transport>,
    destination: Box<dyn Transport>,
    from: Arc<RamLayout>,
    to: Arc<RamLayout>,
    /// The destination's.
    memory: Arc<RdmaMemory>,
    into: BufferId,
    came: Vec<Completion>,
}

impl Ends {
    fn new() -> Self {
        let [from, to] = [(); 2].map(|()| Arc::new(testing::ram(&[64])));
        // What has no memory goes through the ring.
        (0..64).for_each(|page| from.blocks()[0].write_page(page, &[1; PAGE_BYTES]));
        let memory = RdmaMemory::of_destination(&to);
        let mut source = over(&from, &RdmaMemory::of_source(&from));
        let mut destination = over(&to, &memory);
        connect(Kind::Rdma, &mut *source, &mut *destination, None);
        let into = destination.buffers().take().unwrap();
        Self {
            source,
            destination,
            from,
            to,
            memory,
            into,
            came: vec![],
        }
    }

    /// Waits for what comes first, at either end.
    fn next(&mut self) -> Completion {
        let deadline = Instant::now() + LIMIT;
        while self.came.is_empty() {
            assert!(Instant::now() < deadline, "nothing comes");
            let wait = Wait::Upto(Duration::from_millis(1));
            self.source.wait(wait, &mut self.came).unwrap();
            // That a frame is out is no news.
            let buffers = self.source.buffers();
            self.came.retain(|done| match done {
                Completion::Sent { buffer, .. } => {
                    buffers.give(*buffer);
                    false
                }
                _ => true,
            });
            self.destination.wait(wait, &mut self.came).unwrap();
        }
        self.came.remove(0)
    }

    /// Sends [`RUN`], full of `byte`, behind a head.
    fn send(&mut self, byte: u8) {
        for page in RUN.page..RUN.page + RUN.count {
            self.from.blocks()[0].write_page(page, &[byte; PAGE_BYTES]);
        }
        let buffer = self.source.buffers().take().unwrap();
        let frame = SendFrame {
            pages: &[RUN],
            ..SendFrame::alone(buffer, 0..HEADER_BYTES)
        };
        self.source.send(0, frame);
    }

    fn receive(&mut self, pages: &[PageRange], bytes: usize) {
        let wanted = ReceiveInto {
            pages,
            placed: 0,
            ..ReceiveInto::buffer(self.into, 0..if pages.is_empty() { bytes } else { 0 })
        };
        self.destination.receive(0, wanted);
        let came = self.next();
        let Completion::Received { bytes: came, .. } = came else {
            panic!("{came:?}")
        };
        assert_eq!(came, bytes);
    }

    /// What all pages of [`RUN`] are full of at the destination.
    fn arrived(&self) -> u8 {
        let mut first = None;
        for page in RUN.page..RUN.page + RUN.count {
            let mut copy = [0; PAGE_BYTES];
            self.to.blocks()[0].read_page(page, &mut copy);
            let byte = *first.get_or_insert(copy[0]);
            assert_eq!(copy, [byte; PAGE_BYTES], "page {page}");
        }
        first.unwrap()
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn ends_place_pages_until_keys_are_revoked() {
    let mut ends = Ends::new();
    ends.send(7);
    ends.receive(&[], HEADER_BYTES);
    assert!(ends.destination.is_placed(0));
    assert_eq!(ends.arrived(), 7, "nobody has asked for the pages");
    ends.receive(&[RUN], RUN.bytes());
    ends.send(8);
    ends.receive(&[], HEADER_BYTES);
    assert_eq!(ends.arrived(), 8);
    ends.receive(&[RUN], RUN.bytes());
    ends.memory.revoke().unwrap();
    ends.send(9);
    let closed = ends.next();
    let Completion::Closed { error, .. } = closed else {
        panic!("{closed:?}")
    };
    assert!(error.to_string().contains("remote access"), "{error}");
    assert_eq!(ends.arrived(), 8, "a key that was revoked still writes");
}

#[test]
#[ignore = "needs an RDMA device"]
fn ends_without_a_key_send_pages_by_the_ring() {
    let mut ends = Ends::new();
    ends.memory.revoke().unwrap();
    for byte in 1..20 {
        ends.send(byte);
        ends.receive(&[], HEADER_BYTES);
        assert!(!ends.destination.is_placed(0));
        assert_eq!(ends.arrived(), byte - 1);
        ends.receive(&[RUN], RUN.bytes());
        assert_eq!(ends.arrived(), byte);
    }
}

/// The end that is told first closes, and the other hears of it.
#[test]
#[ignore = "needs an RDMA device"]
fn ends_hear_that_the_other_was_shut() {
    for is_source in [true, false] {
        let mut ends = Ends::new();
        let end = match is_source {
            true => &mut ends.source,
            false => &mut ends.destination,
        };
        end.shut(0, io::Error::other("for a reason"));
        let told = [ends.next(), ends.next()].map(|done| match done {
            Completion::Closed { error, .. } => error.to_string(),
            other => panic!("{other:?}"),
        });
        assert!(told.contains(&"for a reason".to_owned()), "{told:?}");
        assert!(
            told.iter().any(|why| why.contains("closed the connection")),
            "{told:?}"
        );
    }
}

/// What a source says that is none; and why the destination ends the stream, if it does.
type Lie = (fn(&mut Queue, RemoteAddress), Option<&'static str>);

fn record(queue: &mut Queue, ring: RemoteAddress, number: u32) {
    let request = SendRequest::write(Payload::Spans(&[]), ring).immediate(number);
    queue.post(&[request], true).unwrap();
}

const LARGEST: RecordMark = RecordMark {
    ring_bytes: FRAME_BYTES_MAX as u32,
    pages: 0,
};

const NOWHERE: PieceId = PieceId {
    ram_block: 63,
    piece: u32::MAX,
};

const LIES: [Lie; 8] = [
    (|queue, ring| record(queue, ring, 0), Some("bytes")),
    (
        |queue, ring| record(queue, ring, u32::MAX),
        Some("out of range"),
    ),
    (
        |queue, ring| record(queue, ring, 129 << 20 | 64),
        Some("pages"),
    ),
    (
        |queue, ring| (0..3).for_each(|_| record(queue, ring, LARGEST.to_immediate())),
        Some("no room"),
    ),
    (
        |queue, _| queue.send(&[9; 32]).unwrap(),
        Some("out of range"),
    ),
    (|queue, _| queue.send(&[9; 10]).unwrap(), Some("length")),
    (
        |queue, _| {
            let credit = QueueMessage::Credit {
                ring_bytes: 1,
                records: 1,
            };
            queue.send(&credit.to_bytes()).unwrap();
        },
        Some("from a source"),
    ),
    (
        |queue, _| {
            for message in [
                QueueMessage::PieceWanted(NOWHERE),
                QueueMessage::PieceReturned(NOWHERE),
            ] {
                queue.send(&message.to_bytes()).unwrap();
            }
        },
        None,
    ),
];

#[test]
#[ignore = "needs an RDMA device"]
fn ends_do_not_believe_a_source_that_lies() {
    for (number, (lie, expected)) in LIES.into_iter().enumerate() {
        let ram = Arc::new(testing::ram(&[64]));
        let mut destination = over(&ram, &RdmaMemory::of_destination(&ram));
        let (link, listener) = ask();
        let QueueLink::Ask { id, hello } = link else {
            panic!("{link:?}")
        };
        let domain = RdmaMemory::of_source(&ram).domain(&id).unwrap();
        let hello = QueueHello {
            stream: hello,
            piece_bytes_max: PIECE_BYTES_MIN,
        };
        let mut queue = Queue::ask(id, &domain, hello, Takes::SENDER).unwrap();
        let request = listener.next(LIMIT).unwrap().expect("a request");
        let RdmaRequest { id, hello } = request;
        let answer = QueueLink::Answer { id, hello };
        destination.add_queue(answer, None).unwrap();
        let into = destination.buffers().take().unwrap();
        destination.receive(0, ReceiveInto::buffer(into, 0..HEADER_BYTES));
        let (mut reply, mut all) = (None, vec![]);
        let wait = Wait::Upto(Duration::from_millis(5));
        for _ in 0..200 {
            destination.wait(wait, &mut all).unwrap();
            reply = queue.next_event().unwrap();
            if reply.is_some() {
                break;
            }
        }
        let reply = QueueReply::from_bytes(&reply.expect("it is accepted")).unwrap();
        let ring = RemoteAddress {
            address: reply.ring_address,
            rkey: reply.ring_key,
        };
        lie(&mut queue, ring);
        for _ in 0..60 {
            destination.wait(wait, &mut all).unwrap();
        }
        // Bytes of what was true so far.
        all.retain(|done| !matches!(done, Completion::Received { .. }));
        match (&all[..], expected) {
            ([], None) => {}
            ([Completion::Closed { error, .. }], Some(expected)) => {
                assert!(
                    error.to_string().contains(expected),
                    "lie {number}: {error}"
                );
            }
            other => panic!("lie {number}: {other:?}"),
        }
    }
}
