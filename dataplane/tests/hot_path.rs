//! The hot path allocates nothing: once a line and a transport have seen a round, a page costs no
//! allocation, whatever it is and whichever way it goes.
//!
//! A test of its own process: the allocator counts every allocation of the thread that runs the test.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use common::Random;
use dwcp_api::{Codec, IoPath, KernelTlsChoice, SendChoice};
use dwcp_dataplane::path::{
    Applied, Decoder, Encoder, InFlight, Incoming, Outgoing, PageTable, Received, Receiver,
    RoundWork,
};
use dwcp_dataplane::ram::{Digests, RamLayout};
use dwcp_dataplane::transport::{
    self, BufferId, Completion, ReceiveInto, SendFrame, TransportOptions, Wait,
};
use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page};
use nix::sys::eventfd::{EfdFlags, EventFd};

const PAGES: u32 = 4096;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came; counting touches a
// thread-local cell without a destructor, which neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn ram() -> Arc<RamLayout> {
    Arc::new(common::line::ram(&[PAGES]))
}

/// Rewrites pages: random, zero, in runs and alone.
fn rewrite(layout: &RamLayout, random: &mut Random) {
    for page in 0..PAGES {
        let mut content: Page = [0; PAGE_BYTES];
        match random.below(4) {
            0 => {}
            1 => content.fill(page as u8 | 1),
            2 => continue,
            _ => {
                let (words, _) = content.as_chunks_mut::<8>();
                words
                    .iter_mut()
                    .for_each(|word| *word = random.next().to_le_bytes());
            }
        }
        layout.blocks()[0].write_page(page, &content);
    }
}

fn everything(layout: &RamLayout, round: u32) -> RoundWork {
    let mut dirty = layout.empty_bitmap();
    dirty.blocks[0].set_range(0, PAGES);
    RoundWork::new(round, dirty, layout.empty_bitmap())
}

/// One end's transport over RAM.
struct End {
    transport: Box<dyn transport::Transport>,
    _bell: EventFd,
}

impl End {
    fn new(io: IoPath, ram: &Arc<RamLayout>, socket: TcpStream) -> Self {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let watched: OwnedFd = bell.as_fd().try_clone_to_owned().unwrap();
        let opened = transport::open(TransportOptions {
            io,
            send: SendChoice::Vmsplice,
            buffers: 4,
            sealed: false,
            kernel_tls: KernelTlsChoice::Off,
            node: None,
            stock: transport::Stock::default(),
            ram: Some(Arc::clone(ram)),
            rdma: None,
            bell: watched,
        });
        let mut transport = opened.unwrap().transport;
        transport.add(socket, None).unwrap();
        Self {
            transport,
            _bell: bell,
        }
    }
}

/// Both ends of one stream, run in turns on one thread.
struct Pair<'a> {
    source: End,
    destination: End,
    outgoing: Outgoing<'a>,
    incoming: Incoming<'a>,
    receiver: Receiver,
    table: PageTable,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BufferId,
    applied: Applied,
    in_flight: InFlight,
    sequence: u64,
    completions: Vec<Completion>,
}

impl Pair<'_> {
    fn round(&mut self, work: &RoundWork) {
        self.outgoing.begin(work);
        let mut frames = 0;
        loop {
            let buffer = self.source.transport.buffers().take().unwrap();
            let bytes = self.source.transport.buffers().bytes_mut(buffer);
            let (encoder, sequence) = (&mut self.encoder, self.sequence + 1);
            let frame = self.outgoing.next_frame(work, bytes, encoder, 0, sequence);
            let Some(frame) = frame else {
                self.source.transport.buffers().give(buffer);
                break;
            };
            self.sequence += 1;
            frames += 1;
            let (block, entries) = self.outgoing.named();
            self.in_flight
                .sent(work.round, block, frame.bytes(), entries);
            // A window of a few frames.
            self.in_flight.acknowledged(u64::from(frames > 4));
            let frame = SendFrame {
                pages: self.outgoing.pages(),
                ..SendFrame::alone(buffer, frame.head)
            };
            self.source.transport.send(0, frame);
            self.receive_one();
        }
        assert!(frames > 10);
        self.in_flight.acknowledged(4);
    }

    fn receive_one(&mut self) {
        loop {
            let wanted = self.receiver.wanted();
            let pages = match wanted.placed_bytes {
                0 => &[],
                _ => self.table.in_place(),
            };
            let wanted = ReceiveInto {
                pages,
                placed: wanted.placed,
                buffer: self.buffer,
                range: wanted.range,
            };
            self.destination.transport.receive(0, wanted);
            let bytes = self.wait();
            self.receiver.received(bytes);
            if self.take() {
                return;
            }
        }
    }

    /// Bytes that came.
    fn wait(&mut self) -> usize {
        loop {
            let (source, destination) =
                (&mut self.source.transport, &mut self.destination.transport);
            source.wait(Wait::No, &mut self.completions).unwrap();
            for completion in self.completions.drain(..) {
                if let Completion::Sent { buffer, .. } = completion {
                    source.buffers().give(buffer);
                }
            }
            let wait = Wait::Upto(Duration::from_millis(1));
            destination.wait(wait, &mut self.completions).unwrap();
            if let Some(Completion::Received { bytes, .. }) = self.completions.pop() {
                return bytes;
            }
        }
    }

    /// Applies what has come; true when a frame is whole.
    fn take(&mut self) -> bool {
        loop {
            let buffer = self.destination.transport.buffers().bytes_mut(self.buffer);
            match self.receiver.next(buffer).unwrap() {
                Received::Nothing => return false,
                Received::Table(header, range) => {
                    let table = &buffer[range];
                    let read = self.incoming.read_table(&header, table, &mut self.table);
                    read.unwrap();
                    if header.sequence % 2 == 1 {
                        self.table.receive_apart();
                    }
                    self.receiver.place(self.table.in_place());
                }
                Received::Frame(header, data) => {
                    let in_place = !self.table.in_place().is_empty();
                    let data = (!in_place).then_some(&buffer[data]);
                    self.incoming
                        .apply(
                            &header,
                            &self.table,
                            data,
                            &mut self.decoder,
                            &mut self.applied,
                        )
                        .unwrap();
                    self.receiver.consume(buffer);
                    return true;
                }
            }
        }
    }
}

/// Moves rounds and says what each of them allocated.
fn rounds(io: IoPath, codec: Codec) -> Vec<u64> {
    let (here, there) = (ram(), ram());
    let (sent, held) = (Digests::new(&here), Digests::new(&there));
    let key = FingerprintKey::new(7);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    one.set_nodelay(true).unwrap();
    let other = listener.accept().unwrap().0;
    let mut destination = End::new(io, &there, other);
    let mut pair = Pair {
        source: End::new(io, &here, one),
        outgoing: Outgoing::new(&here, &sent, &key, codec == Codec::Raw),
        encoder: Encoder::new(codec, 1),
        decoder: Decoder::new(1),
        incoming: Incoming::new(&there, &held, &key),
        receiver: Receiver::new(0),
        table: PageTable::new(),
        buffer: destination.transport.buffers().take().unwrap(),
        destination,
        applied: Applied::default(),
        in_flight: InFlight::default(),
        sequence: 0,
        completions: Vec::with_capacity(64),
    };
    let mut random = Random::new(3);
    let counts = (0..4).map(|round| {
        rewrite(&here, &mut random);
        let work = everything(&here, round);
        allocations(|| pair.round(&work))
    });
    let counts = counts.collect();
    assert_eq!(pair.applied.suspects, []);
    assert_eq!(sent.root(), held.root());
    counts
}

#[test]
fn a_page_costs_no_allocation() {
    for io in [IoPath::Poll, IoPath::Uring] {
        let window = Codec::Window {
            level: 3,
            window_bytes: 1 << 20,
        };
        for codec in [Codec::Raw, Codec::Zstd { level: 1 }, window] {
            let counts = rounds(io, codec);
            assert_eq!(counts[1..], [0, 0, 0], "{io:?} {codec:?}: {counts:?}");
        }
    }
}
