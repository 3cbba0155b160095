//! What registration costs and how fast WRITEs are on this node's RDMA device, beside perftest's `ib_write_bw`, as JSON.
//!
//! ```text
//! cargo build -p dwcp-rdma --example rdma_measure
//! tools/testbed/rxe --memory 1536 --huge 320 --timeout 300 --with ib_write_bw target/debug/examples/rdma_measure
//! ```
//! Arguments: `quick` (two shapes, once), `registration`, `writes` (one part only). Without `ib_write_bw` in `PATH` its
//! figures, and the ratios, are null.
//!
//! Of a registration the shortest of five counts. Both ends of WRITEs are on one device; runs of this program and of
//! `ib_write_bw` alternate, and medians of five are compared; both poll without sleeping, and both figures are MiB (2²⁰
//! bytes) per second.

use std::error::Error;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_rdma::{
    Access, Buffer, CompletionQueue, Context, DeviceList, Endpoint, MemoryRegion, Path, Patience,
    ProtectionDomain, QueuePair, QueuePairOptions, ReadyToSend, SendRequest, ToInit,
    ToReadyToReceive, ToReadyToSend,
};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MIB: usize = 1 << 20;
/// Requests of a queue pair, as `ib_write_bw` has.
const DEPTH: u32 = 128;
const PERFTEST: &str = "ib_write_bw";

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let context = DeviceList::get()?.iter().next().map(|one| one.open());
    let context = context.ok_or("no device")??;
    let registration = if has("writes") {
        Value::Null
    } else {
        registrations(&context)?
    };
    let writes = if has("registration") {
        Value::Null
    } else {
        writes(&context, has("quick"))?
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let report = json!({
        "device": context.name(),
        "kernel": kernel.trim(),
        "processors": std::thread::available_parallelism()?.get(),
        "registration": registration,
        "writes": writes,
    });
    println!("{report:#}");
    Ok(())
}

/// Registers memory that is not there, and memory that is, at once and in pieces, on small and on huge pages.
fn registrations(context: &Arc<Context>) -> Outcome<Value> {
    let domain = ProtectionDomain::new(context)?;
    let mut all = vec![];
    for (page_bytes, make) in [
        (4096, Buffer::new as fn(usize) -> _),
        (2 * MIB, Buffer::on_huge_pages),
    ] {
        let bytes = 256 * MIB;
        let buffer = match make(bytes) {
            Ok(buffer) => Arc::new(buffer),
            Err(error) => {
                let why = format!("no such pages: {error}");
                all.push(json!({ "page_bytes": page_bytes, "skipped": why }));
                continue;
            }
        };
        if page_bytes == 4096 {
            // Memory that is not there yet is made by registering it.
            let begun = Instant::now();
            let range = 0..bytes;
            drop(MemoryRegion::register(
                &domain,
                buffer.clone(),
                range,
                Access::REMOTE_WRITE,
            )?);
            let us = micros(begun) * (1 << 30) as f64 / bytes as f64;
            let resident = kernel_value("/proc/self/status", "RssAnon:")?;
            all.push(json!({
                "page_bytes": page_bytes,
                "untouched": true,
                "register_and_release_us_per_gib": us.round(),
                "resident_after_mib": resident >> 20,
            }));
        }
        for page in (0..bytes).step_by(4096) {
            buffer.write(page, &[1])?;
        }
        for piece in [bytes, 64 * MIB, 16 * MIB, 2 * MIB] {
            all.push(registration(&domain, &buffer, page_bytes, piece)?);
        }
    }
    Ok(json!(all))
}

fn registration(
    domain: &Arc<ProtectionDomain>,
    buffer: &Arc<Buffer>,
    page_bytes: usize,
    piece: usize,
) -> Outcome<Value> {
    let bytes = buffer.len();
    let per_gib = |value: f64| value * (1 << 30) as f64 / bytes as f64;
    // The shortest of five: whatever else the machine does only adds.
    let (mut register_us, mut release_us) = (f64::MAX, f64::MAX);
    // The largest: slabs that an earlier turn has left are not counted again.
    let (mut pinned, mut kernel_bytes) = (0, 0);
    for _ in 0..5 {
        let before = kernel_value("/proc/meminfo", "Slab:")?;
        let begun = Instant::now();
        let regions = (0..bytes).step_by(piece).map(|start| {
            let range = start..start + piece;
            MemoryRegion::register(domain, buffer.clone(), range, Access::REMOTE_WRITE)
        });
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        register_us = register_us.min(micros(begun));
        let after = kernel_value("/proc/meminfo", "Slab:")?;
        kernel_bytes = kernel_bytes.max(after.saturating_sub(before));
        pinned = kernel_value("/proc/self/status", "VmPin:")?;
        let begun = Instant::now();
        drop(regions);
        release_us = release_us.min(micros(begun));
    }
    Ok(json!({
        "page_bytes": page_bytes,
        "piece_bytes": piece,
        "register_us_per_gib": per_gib(register_us).round(),
        "release_us_per_gib": per_gib(release_us).round(),
        "kernel_bytes_per_gib": per_gib(kernel_bytes as f64).round(),
        "pinned_bytes_per_gib": per_gib(pinned as f64).round(),
    }))
}

fn micros(begun: Instant) -> f64 {
    begun.elapsed().as_nanos() as f64 / 1000.0
}

/// A line such as `MemFree:  1234 kB`, in bytes.
fn kernel_value(file: &str, name: &str) -> Outcome<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("not in /proc")?.parse::<u64>()? * 1024)
}

fn writes(context: &Arc<Context>, quick: bool) -> Outcome<Value> {
    let beside = Command::new(PERFTEST)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    let shapes: &[(usize, usize)] = if quick {
        &[(64 << 10, 1), (MIB, 1)]
    } else {
        &[
            (64 << 10, 1),
            (256 << 10, 1),
            (MIB, 1),
            (64 << 10, 4),
            (256 << 10, 4),
            (MIB, 4),
        ]
    };
    let mut all = vec![];
    for &(bytes, pairs) in shapes {
        let total = if quick { 64 * MIB } else { 128 * MIB };
        let (mut own, mut theirs) = (vec![], vec![]);
        for _ in 0..if quick { 1 } else { 5 } {
            own.push(own_rate(context, bytes, pairs, total)?);
            if beside {
                theirs.push(perftest_rate(context, bytes, pairs, total)?);
            }
        }
        let own = median(&mut own);
        let theirs = beside.then(|| median(&mut theirs));
        all.push(json!({
            "write_bytes": bytes,
            "queue_pairs": pairs,
            "mib_per_s": rounded(own),
            "ib_write_bw_mib_per_s": theirs.map(rounded),
            "ratio": theirs.map(|theirs| rounded(own / theirs)),
        }));
    }
    Ok(json!(all))
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Writes `total` bytes over that many queue pairs in turn, and says how fast.
fn own_rate(context: &Arc<Context>, bytes: usize, pairs: usize, total: usize) -> Outcome<f64> {
    let domain = ProtectionDomain::new(context)?;
    let completions = CompletionQueue::new(context, DEPTH * pairs as u32 * 2)?;
    let region = |access| {
        let buffer = Arc::new(Buffer::new(bytes * pairs)?);
        buffer.write(0, &vec![7; bytes * pairs])?;
        let all = 0..buffer.len();
        Ok::<_, Box<dyn Error>>(MemoryRegion::register(&domain, buffer, all, access)?)
    };
    let (from, to) = (region(Access::SOURCE)?, region(Access::REMOTE_WRITE)?);
    let ends = (0..pairs).map(|_| connected(context, &domain, &completions));
    let mut ends = ends.collect::<Outcome<Vec<_>>>()?;
    let requests = total / bytes;
    let (mut posted, mut complete) = (0, 0);
    let mut done = vec![];
    let begun = Instant::now();
    while complete < requests {
        for (index, (pair, _)) in ends.iter_mut().enumerate() {
            if posted == requests || pair.sends_outstanding() >= DEPTH as usize {
                continue;
            }
            let at = index * bytes;
            let span = from.span(at..at + bytes)?;
            let request = SendRequest::write(&span, to.remote_address(at)?).signalled();
            let mut batch = pair.send_batch();
            batch.push(&request)?;
            batch.post()?;
            posted += 1;
        }
        completions.poll(&mut done)?;
        for completion in done.drain(..) {
            if !completion.is_success() {
                return Err(completion.status.to_string().into());
            }
            complete += completion.requests as usize;
        }
    }
    Ok(total as f64 / MIB as f64 / begun.elapsed().as_secs_f64())
}

type Pair = QueuePair<ReadyToSend>;

fn connected(
    context: &Arc<Context>,
    domain: &Arc<ProtectionDomain>,
    completions: &Arc<CompletionQueue>,
) -> Outcome<(Pair, Pair)> {
    let port = context.query_port(1)?;
    let gid = context.default_gid(1)?.ok_or("the port has no address")?;
    let options = QueuePairOptions {
        send_completions: completions,
        receive_completions: completions,
        shared_receives: None,
        sends_max: DEPTH,
        receives_max: 1,
        spans_max: 1,
        inline_bytes_max: 0,
    };
    let make = || -> Outcome<_> {
        let pair = QueuePair::new(domain, &options)?;
        Ok(pair.init(ToInit::new(1, Access::REMOTE_WRITE))?)
    };
    let (one, other) = (make()?, make()?);
    let numbers = (one.number(), other.number());
    let up = |pair: QueuePair<_>, queue_pair| -> Outcome<Pair> {
        let path = Path {
            port: port.clone(),
            gid: gid.clone(),
            peer: Endpoint {
                queue_pair,
                first_packet: 0,
                gid: gid.address,
                lid: 0,
            },
            mtu_bytes: port.active_mtu_bytes,
        };
        let pair = pair.ready_to_receive(ToReadyToReceive::new(&path))?;
        Ok(pair.ready_to_send(ToReadyToSend::new(0, Patience::default()))?)
    };
    Ok((up(one, numbers.1)?, up(other, numbers.0)?))
}

/// Runs both ends of `ib_write_bw` and takes its average.
fn perftest_rate(context: &Context, bytes: usize, pairs: usize, total: usize) -> Outcome<f64> {
    let gid = context.default_gid(1)?.ok_or("the port has no address")?;
    let address = gid.address.to_ipv4_mapped().ok_or("no IPv4 address")?;
    let command = || {
        let mut command = Command::new(PERFTEST);
        let iterations = (total / bytes / pairs).max(5);
        command
            .args(["-d", context.name(), "-x", &gid.index.to_string()])
            .args(["-s", &bytes.to_string(), "-q", &pairs.to_string()])
            .args(["-n", &iterations.to_string(), "-F"])
            .stderr(Stdio::null());
        command
    };
    let mut server = command().stdout(Stdio::null()).spawn()?;
    // It listens a moment after its start; a client that comes too early says so.
    let mut rate = Err("ib_write_bw printed no rate".into());
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(250));
        let output = command().arg(address.to_string()).output()?;
        if let Some(found) = average_of(&String::from_utf8_lossy(&output.stdout), bytes) {
            rate = Ok(found);
            break;
        }
    }
    if rate.is_err() {
        server.kill()?;
    }
    server.wait()?;
    rate
}

/// The row `bytes iterations peak average …`.
fn average_of(output: &str, bytes: usize) -> Option<f64> {
    output.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.parse() == Ok(bytes)).then_some(())?;
        words.nth(2)?.parse().ok()
    })
}
