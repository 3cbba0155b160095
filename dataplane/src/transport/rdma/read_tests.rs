//! What the ends of a queue pair do by which pages are read. Tests that need a device are ignored; [`in_guests`] runs them in a guest
//! that has one.

use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_simd::{PAGE_BYTES, Page};
use dwcp_testbed::rxe::in_guests;
use dwcp_wire::rdma::{PIECE_BYTES_MIN, PieceId, QueueHello, QueueMessage};
use dwcp_wire::{PageRange, StreamHello, StreamRole};

use super::queue::{Arrival, Queue, Takes};
use super::*;
use crate::ram::testing;
use crate::transport::suite::ends::ask;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn reads_in_a_guest() {
    in_guests(
        &["--timeout", "90"],
        "--include-ignored",
        "transport::rdma::read_tests::ends_",
        5,
    );
}

const fn run(page: u32, count: u32) -> PageRange {
    PageRange {
        ram_block: 0,
        page,
        count,
    }
}

/// RAM whose pages are full of their numbers.
fn numbered() -> Arc<RamLayout> {
    let ram = Arc::new(testing::ram(&[64, 64]));
    (0..64).for_each(|page| ram.blocks()[0].write_page(page, &[page as u8; PAGE_BYTES]));
    ram
}

/// The way to a listener, and what is said on it.
fn asked() -> (dwcp_rdma::ConnectionId, StreamHello, RdmaListener) {
    let (QueueLink::Ask { id, hello }, listener) = ask() else {
        panic!("it asks")
    };
    let role = StreamRole::Missing;
    (id, StreamHello { role, ..hello }, listener)
}

type Came = Vec<(PageRange, Vec<Page>, Vec<u64>)>;

/// Both ends, each on its thread. The fingerprint of a page is its number, negated.
struct Ends {
    reader: Arc<PageReader>,
    came: Receiver<Came>,
    reads: JoinHandle<io::Result<()>>,
    /// What the source has registered.
    memory: Arc<RdmaMemory>,
    ending: Ending,
    grants: JoinHandle<io::Result<()>>,
}

impl Ends {
    fn new() -> Self {
        let (id, hello, listener) = asked();
        let ending = Ending::new().unwrap();
        let granter = PieceGranter::ask(id, hello, &numbered(), ending.clone());
        let mut granter = granter.unwrap();
        let memory = Arc::clone(&granter.memory);
        let request = listener.next(LIMIT).unwrap().expect("a request");
        let reader = Arc::new(PageReader::answer(request).unwrap());
        let grants = std::thread::spawn(move || {
            let table = |run: &PageRange| {
                let pages = run.page..run.page + run.count;
                Some(pages.map(|page| !u64::from(page)).collect())
            };
            granter.connect()?;
            granter.run(&table)
        });
        let (give, came) = channel();
        let runs = Arc::clone(&reader);
        let reads = std::thread::spawn(move || {
            runs.run(&mut |came| {
                let owned = came.runs();
                let owned = owned.map(|(run, pages, low)| (*run, pages.to_vec(), low.to_vec()));
                give.send(owned.collect()).unwrap();
            })
        });
        Self {
            reader,
            came,
            reads,
            memory,
            ending,
            grants,
        }
    }

    /// Waits until a page can be read; says how many from it on.
    fn reach(&self, page: u32) -> u32 {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(reach) = self.reader.reach(0, page) {
                return reach;
            }
            assert!(Instant::now() < deadline, "page {page} cannot be read");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Why the reading end is over.
    fn broke(self) -> String {
        self.ending.end();
        let reason = self.reads.join().unwrap().unwrap_err().to_string();
        assert!(!self.reader.read(&[run(1, 1)]), "it reads on: {reason}");
        assert_eq!(self.reader.reach(0, 1), None);
        let _ = self.grants.join().unwrap();
        reason
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn ends_read_runs_of_pages_and_their_fingerprints() {
    let ends = Ends::new();
    assert_eq!(ends.reader.reach(0, 3), None, "nobody has granted it");
    assert_eq!(ends.reach(3), READ_PAGES_MAX);
    // As many at a time as there may be, and more.
    let runs = [run(3, 2), run(8, 4), run(18, 1)];
    let posted = (0..40).filter(|_| ends.reader.read(&runs)).count();
    assert!(posted >= 1, "{posted}");
    for _ in 0..posted {
        let came = ends.came.recv_timeout(LIMIT).unwrap();
        assert_eq!(came.len(), 3);
        for ((found, pages, low), asked) in came.into_iter().zip(runs) {
            assert_eq!(found, asked);
            let numbers = asked.page..asked.page + asked.count;
            let expected: Vec<_> = numbers
                .clone()
                .map(|page| [page as u8; PAGE_BYTES])
                .collect();
            assert_eq!(pages, expected);
            assert_eq!(
                low,
                numbers.map(|page| !u64::from(page)).collect::<Vec<_>>()
            );
        }
    }
    assert!(!ends.reader.read(&[run(0, READ_PAGES_MAX + 1)]) && !ends.reader.read(&[]));
    ends.reader.end();
    ends.reads.join().unwrap().unwrap();
    let source = ends.grants.join().unwrap().unwrap_err();
    assert!(source.to_string().contains("closed"), "{source}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn ends_are_not_granted_what_has_no_memory() {
    let ends = Ends::new();
    assert_eq!(ends.reader.reach(1, 3), None);
    // Answers come in the order asked.
    ends.reach(3);
    assert_eq!(ends.reader.reach(1, 3), None);
    ends.ending.end();
    ends.grants.join().unwrap().unwrap();
}

#[test]
#[ignore = "needs an RDMA device"]
fn ends_read_nothing_by_a_key_that_is_dead() {
    let ends = Ends::new();
    ends.reach(3);
    ends.memory.revoke().unwrap();
    assert!(ends.reader.read(&[run(3, 1)]));
    assert!(ends.came.recv_timeout(LIMIT).is_err(), "it was read");
    let reason = ends.broke();
    assert!(reason.contains("remote access"), "{reason}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn ends_hear_that_the_source_grants_nothing_more() {
    let ends = Ends::new();
    ends.reach(3);
    ends.ending.end();
    let reason = ends.broke();
    assert!(!reason.is_empty());
}

/// Brings up an end that says what it likes.
fn ready(queue: &mut Queue) {
    let deadline = Instant::now() + LIMIT;
    while queue.next_event().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no connection");
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn ends_do_not_believe_what_does_not_fit() {
    let piece = PieceId {
        ram_block: 0,
        piece: 0,
    };
    // A source that grants what nobody wanted.
    let (id, stream, listener) = asked();
    let domain = RdmaMemory::of_read_source(&numbered()).domain(&id).unwrap();
    let hello = QueueHello {
        stream,
        piece_bytes_max: PIECE_BYTES_MIN,
    };
    let mut source = Queue::ask(id, &domain, hello, Takes::GRANTER).unwrap();
    let request = listener.next(LIMIT).unwrap().expect("a request");
    let reader = PageReader::answer(request).unwrap();
    ready(&mut source);
    let granted = QueueMessage::PieceGranted {
        piece,
        address: 4096,
        key: 7,
    };
    source.send(&granted.to_bytes()).unwrap();
    let error = reader.run(&mut |_| panic!("it read")).unwrap_err();
    assert!(error.to_string().contains("does not fit"), "{error}");

    // A destination that says what only a source does; and one that wants what there is not.
    let (id, stream, listener) = asked();
    let ending = Ending::new().unwrap();
    let mut granter = PieceGranter::ask(id, stream, &numbered(), ending).unwrap();
    let RdmaRequest { id, .. } = listener.next(LIMIT).unwrap().expect("a request");
    let domain = RdmaMemory::of_destination(&numbered()).domain(&id).unwrap();
    let mut reader = Queue::answer(id, &domain, &[], Takes::READER).unwrap();
    let nowhere = PieceId {
        piece: u32::MAX,
        ..piece
    };
    for message in [QueueMessage::PieceWanted(nowhere), granted] {
        reader.send(&message.to_bytes()).unwrap();
    }
    granter.connect().unwrap();
    let error = granter.run(&|_| Some(vec![1])).unwrap_err();
    assert!(error.to_string().contains("from who reads"), "{error}");
    let mut said = vec![];
    let _ = reader.poll(&mut |arrival| {
        if let Arrival::Message(bytes, length) = arrival {
            said.push(memory::read_message(&bytes[..length])?);
        }
        Ok(())
    });
    let refused = QueueMessage::PieceRefused(nowhere);
    assert!(said.is_empty() || said == [refused], "{said:?}");
}
