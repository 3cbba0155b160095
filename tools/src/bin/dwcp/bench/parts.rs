//! `dwcp bench parts`: what the parts of the hot path are worth, each beside what it replaces.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use dwcp_api::{IoPath, KernelTlsChoice, SendChoice};
use dwcp_dataplane::engine::Mailbox;
use dwcp_dataplane::transport::{
    self, BUFFER_BYTES, BufferStock, Buffers, SendFrame, Stock, TransportOptions, Wait,
};
use dwcp_simd::{FingerprintKey, Kernels, LivePage, PAGE_BYTES, Page};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;

use super::numbers::some;
use super::stat::median;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Each part is measured in turns with what it replaces, so that what else the \
machine does hits both alike; the ratio is that of the medians. What pages sent by reference are \
worth in a whole migration: `dwcp bench wire`, with and without `--set transfer.send=copy`.

Examples:
  dwcp bench parts
  dwcp bench parts --rounds 9 --json > parts.json";

/// `dwcp bench parts`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// How often each is measured.
    #[arg(long, default_value_t = 5, value_parser = some::<u32>)]
    rounds: u32,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    system: &'static str,
    case: &'static str,
    /// Operations per second.
    value: f64,
}

type Record = super::run::Record<Run>;

/// A part and what it replaces.
struct Part {
    case: &'static str,
    ours: (&'static str, fn() -> f64),
    theirs: (&'static str, fn() -> f64),
}

const PARTS: [Part; 5] = [
    Part {
        case: "a frame buffer",
        ours: ("pool", pool),
        theirs: ("malloc", malloc),
    },
    Part {
        case: "a message from thread to thread",
        ours: ("mailbox", mailbox),
        theirs: ("std-mpsc", channel),
    },
    Part {
        case: "32 small sends",
        ours: ("one-ring-entry-for-all", batched),
        theirs: ("one-for-each", single),
    },
    Part {
        case: "all that is asked of a page, in L2",
        ours: ("page-pass", page_pass),
        theirs: ("three-portable-passes", three_passes),
    },
    Part {
        case: "fingerprint of a page, in L2",
        ours: ("best-instructions", page_pass),
        theirs: ("portable", portable),
    },
];

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let mut runs = vec![];
    for turn in 1..=args.rounds {
        eprintln!("round {turn} of {}", args.rounds);
        for part in &PARTS {
            for (system, measure) in [part.ours, part.theirs] {
                runs.push(Run {
                    system,
                    case: part.case,
                    value: measure(),
                });
            }
        }
    }
    let record = Record::here("dwcp.bench.parts/1", runs);
    context.print(&record, || table(&record))
}

fn table(record: &Record) -> String {
    let mut out = format!("{}\n\n", record.machine.line());
    out.push_str(
        "part, beside what it replaces                                   million/s  ratio\n",
    );
    for part in &PARTS {
        let rate = |system: &str| {
            let runs = record
                .runs
                .iter()
                .filter(|run| run.case == part.case && run.system == system);
            median(runs.map(|run| run.value))
        };
        let (ours, theirs) = (rate(part.ours.0), rate(part.theirs.0));
        let _ = writeln!(out, "{}", part.case);
        let _ = writeln!(
            out,
            "  {:<58} {:>12.2} {:>6.2}",
            part.ours.0,
            ours / 1e6,
            ours / theirs
        );
        let _ = writeln!(out, "  {:<58} {:>12.2}", part.theirs.0, theirs / 1e6);
    }
    out
}

/// Operations per second of `work`, which does `count` of them, over about a tenth of a second.
fn rate(count: u64, mut work: impl FnMut()) -> f64 {
    work();
    let began = Instant::now();
    let mut done = 0;
    while began.elapsed() < Duration::from_millis(100) {
        work();
        done += count;
    }
    done as f64 / began.elapsed().as_secs_f64()
}

fn pool() -> f64 {
    let Ok(mut buffers) = Buffers::new(8, None, BufferStock::default()) else {
        return 0.0;
    };
    rate(1000, || {
        for _ in 0..1000 {
            if let Some(buffer) = buffers.take() {
                black_box(buffers.bytes_mut(buffer))[0] = 1;
                buffers.give(buffer);
            }
        }
    })
}

/// A buffer that nobody has used is not in memory: the first byte of each page brings it there.
fn malloc() -> f64 {
    rate(10, || {
        for _ in 0..10 {
            let mut buffer = Vec::<u8>::with_capacity(BUFFER_BYTES);
            buffer.resize(1, 1);
            black_box(&mut buffer);
        }
    })
}

const MESSAGES: u64 = 200_000;

fn mailbox() -> f64 {
    let Ok(mailbox) = Mailbox::<u64>::new() else {
        return 0.0;
    };
    let other = mailbox.clone();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for message in 0..MESSAGES {
                while other.push(message).is_err() {
                    std::hint::spin_loop();
                }
            }
        });
        let mut taken = 0;
        while taken < MESSAGES {
            taken += u64::from(mailbox.wait(Duration::from_millis(100)).is_some());
        }
    });
    MESSAGES as f64 / began.elapsed().as_secs_f64()
}

fn channel() -> f64 {
    let (sender, receiver) = std::sync::mpsc::sync_channel::<u64>(4096);
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || (0..MESSAGES).all(|message| sender.send(message).is_ok()));
        for _ in 0..MESSAGES {
            black_box(receiver.recv().unwrap_or(0));
        }
    });
    MESSAGES as f64 / began.elapsed().as_secs_f64()
}

const STREAMS: usize = 32;

/// 32 streams whose other ends read nothing: each send goes into a socket buffer.
fn sends(is_batched: bool) -> std::io::Result<f64> {
    let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    let watched: OwnedFd = bell.as_fd().try_clone_to_owned()?;
    let opened = transport::open(TransportOptions {
        io: IoPath::Auto,
        send: SendChoice::Copy,
        buffers: STREAMS,
        sealed: false,
        kernel_tls: KernelTlsChoice::Off,
        node: None,
        stock: Stock::default(),
        ram: None,
        rdma: None,
        bell: watched,
    })?;
    let mut transport = opened.transport;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut others = vec![];
    for _ in 0..STREAMS {
        let near = TcpStream::connect(listener.local_addr()?)?;
        near.set_nodelay(true)?;
        transport.add(near, None)?;
        others.push(listener.accept()?.0);
    }
    let mut completions = Vec::with_capacity(STREAMS);
    let (began, mut sent) = (Instant::now(), 0_u64);
    // Few enough that no socket buffer is full.
    for _ in 0..200 {
        for slot in 0..STREAMS {
            let Some(buffer) = transport.buffers().take() else {
                continue;
            };
            transport.send(slot, SendFrame::alone(buffer, 0..64));
            sent += 1;
            while !is_batched && transport.buffers().free() < STREAMS {
                finish(&mut *transport, &mut completions)?;
            }
        }
        while transport.buffers().free() < STREAMS {
            finish(&mut *transport, &mut completions)?;
        }
    }
    Ok(sent as f64 / STREAMS as f64 / began.elapsed().as_secs_f64())
}

fn finish(
    transport: &mut dyn transport::Transport,
    completions: &mut Vec<transport::Completion>,
) -> std::io::Result<()> {
    transport.wait(Wait::Upto(Duration::from_millis(10)), completions)?;
    for completion in completions.drain(..) {
        if let transport::Completion::Sent { buffer, .. } = completion {
            transport.buffers().give(buffer);
        }
    }
    Ok(())
}

fn batched() -> f64 {
    sends(true).unwrap_or(0.0)
}

fn single() -> f64 {
    sends(false).unwrap_or(0.0)
}

/// 256 KiB: they stay in L2.
fn pages() -> Vec<Page> {
    let mut state = 0x5EED_0042_u64;
    let mut pages = vec![[0; PAGE_BYTES]; 64];
    for word in pages.as_flattened_mut().as_chunks_mut::<8>().0 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *word = (state ^ state >> 33).to_le_bytes();
    }
    pages
}

fn per_page(work: impl Fn(&Page) -> u64) -> f64 {
    let pages = pages();
    rate(64, || {
        for page in &pages {
            black_box(work(black_box(page)));
        }
    })
}

fn pass_of(kernels: &'static Kernels) -> f64 {
    let key = FingerprintKey::new(7);
    per_page(|page| {
        let found = kernels.fingerprint_live(&key, LivePage::of(page));
        found.lo + u64::from(key.is_zero(found))
    })
}

fn page_pass() -> f64 {
    pass_of(dwcp_simd::kernels())
}

fn portable() -> f64 {
    Kernels::all_available()
        .first()
        .map_or(0.0, |kernels| pass_of(kernels))
}

fn three_passes() -> f64 {
    let Some(kernels) = Kernels::all_available().first().copied() else {
        return 0.0;
    };
    let key = FingerprintKey::new(7);
    per_page(|page| {
        u64::from(kernels.is_zero(page))
            + kernels.fingerprint(&key, page).lo
            + u64::from(kernels.crc32c(0, page))
    })
}
