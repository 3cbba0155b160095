//! A source's worker by itself: the test is the other side of its streams.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::line;
use dwcp_api::{Codec, IoPath, KernelTlsChoice, SendChoice};
use dwcp_dataplane::engine::{
    Mailbox, Session, SourceCommand, WorkerEvent, WorkerHandle, WorkerSettings, spawn_source_worker,
};
use dwcp_dataplane::path::RoundWork;
use dwcp_dataplane::transport::Stock;
use dwcp_simd::PAGE_BYTES;
use dwcp_wire::{FrameHeader, FrameKind, HEADER_BYTES};

const PATIENCE: Duration = Duration::from_secs(20);

const PAGES: u32 = 2048;

struct Worker {
    handle: WorkerHandle<SourceCommand>,
    events: Mailbox<WorkerEvent>,
}

impl Worker {
    fn start() -> Self {
        let settings = WorkerSettings {
            index: 0,
            io: IoPath::Poll,
            send: SendChoice::Copy,
            cpu: None,
            node: None,
            stock: Stock::default(),
            streams: 2,
            sealed: false,
            kernel_tls: KernelTlsChoice::Off,
            shuffles: true,
            rdma: None,
            streams_in_all: 2,
            window_bytes: 64 << 20,
            stream_window_bytes: 64 << 20,
            ack_bytes: 1 << 16,
            busy_poll: Duration::ZERO,
        };
        let session = Arc::new(Session::new(line::ram(&[PAGES]), 1, Codec::Raw));
        for page in 0..PAGES {
            let data = [page as u8 | 1; PAGE_BYTES];
            session.layout.blocks()[0].write_page(page, &data);
        }
        let events = Mailbox::new().unwrap();
        let handle = spawn_source_worker(settings, session, events.clone()).unwrap();
        Self { handle, events }
    }

    /// Gives it a stream. Returns the other end, which takes all that comes.
    fn stream(&self, index: u16) -> TcpStream {
        let theirs = self.silent_stream(index);
        let mut reader = theirs.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while reader.read(&mut bytes).is_ok_and(|read| read > 0) {}
        });
        theirs
    }

    /// The same; the other end takes nothing by itself.
    fn silent_stream(&self, index: u16) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let stream = ours.into();
        self.handle
            .command(SourceCommand::AddStream { index, stream });
        theirs
    }

    fn wait<T>(&self, mut of: impl FnMut(WorkerEvent) -> Option<T>) -> Option<T> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let event = self.events.wait(Duration::from_millis(100));
            if let Some(it) = event.and_then(&mut of) {
                return Some(it);
            }
        }
        None
    }
}

/// A stream that carried pages in a trial, and does no longer: what it lost goes on it again, as the others
/// have their marks.
#[test]
fn a_round_ends_though_a_stream_breaks_that_is_not_in_use_any_more() {
    let worker = Worker::start();
    let (_first, second) = (worker.stream(0), worker.stream(1));
    worker.handle.command(SourceCommand::Use(2));
    worker
        .handle
        .command(SourceCommand::Round(all_pages(false)));
    let sent = |event| matches!(event, WorkerEvent::RoundSent(_)).then_some(());
    worker.wait(sent).expect("the round is sent");
    worker.handle.command(SourceCommand::Use(1));
    drop(second.shutdown(std::net::Shutdown::Both));
    let lost = |event| matches!(event, WorkerEvent::StreamLost { stream: 1, .. }).then_some(());
    worker.wait(lost).expect("it is lost");
    let mut again = worker.stream(1);
    let nothing = FrameHeader::empty(FrameKind::Ack, 1, 0);
    again
        .write_all(&nothing.to_bytes()[..HEADER_BYTES])
        .unwrap();
    let resumed = |event| match event {
        WorkerEvent::StreamResumed { pages, .. } => Some(pages),
        _ => None,
    };
    assert!(worker.wait(resumed).expect("it is resumed") > 0);
    worker.wait(sent).expect("the round is sent once more");
}

/// A round of all pages.
fn all_pages(is_paused: bool) -> Arc<RoundWork> {
    let layout = line::ram(&[PAGES]);
    let mut dirty = layout.empty_bitmap();
    dirty.blocks[0].set_range(0, PAGES);
    let work = RoundWork::new(0, dirty, layout.empty_bitmap());
    Arc::new(work.paused(is_paused))
}

/// While the guest is paused, streams that carry nothing are not left to the last.
#[test]
fn in_the_pause_the_marks_of_idle_streams_come_first() {
    for is_paused in [true, false] {
        let worker = Worker::start();
        let (_full, mut idle) = (worker.silent_stream(0), worker.silent_stream(1));
        worker.handle.command(SourceCommand::Use(1));
        worker
            .handle
            .command(SourceCommand::Round(all_pages(is_paused)));
        let patience = if is_paused { 20_000 } else { 300 };
        let patience = Duration::from_millis(patience);
        idle.set_read_timeout(Some(patience)).unwrap();
        let mut mark = [0; HEADER_BYTES];
        let came = idle.read_exact(&mut mark).is_ok();
        assert_eq!(came, is_paused, "though the other stream takes nothing");
        if came {
            let header = FrameHeader::from_bytes(&mark).unwrap();
            assert_eq!(header.kind, FrameKind::RoundMark);
        }
    }
}
