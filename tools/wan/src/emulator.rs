//! The loop between the two devices: one thread, which reads packets, asks the model, keeps them as
//! long as it says and writes them to the other side.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime};

use crate::control::{Reply, Request, Server, Status, WayStatus};
use crate::delay_line::DelayLine;
use crate::model::{Verdict, Way};
use crate::namespace;
use crate::params::{Direction, LinkParams};
use crate::process;
use crate::superframe::{Superframe, VNET_HEADER_BYTES};
use crate::tun::Tun;

/// Frames taken from one device before the other side's turn.
const BATCH_FRAMES: usize = 64;
/// The largest frame: an IP packet of 64 KiB and its header.
const FRAME_BYTES_MAX: usize = VNET_HEADER_BYTES + 65_536;
/// What a way may hold in memory: 10 Gbit/s for 400 ms.
const LINE_BYTES_MAX: usize = 512 << 20;
/// Segments of a superframe stay together while the first waits no longer than this for the last.
const TOGETHER_NS: u64 = 500_000;
/// A wake-up for each packet would cost more than its being this much late.
const SLEEP_NS_MIN: u64 = 50_000;
/// Whoever started the emulator starts the link within this time, or has gone.
const START_LIMIT_NS: u64 = 60_000_000_000;
const IDLE_NS_MAX: u64 = 1_000_000_000;
/// How often it looks whether it is still somebody's.
const LOOK_NS: u64 = 1_000_000_000;

struct Lane {
    way: Way,
    line: DelayLine,
}

struct Emulator {
    devices: [Tun; 2],
    lanes: [Lane; 2],
    seed: u64,
    started_ns: u64,
    is_started: bool,
}

/// Joins the two namespaces, by a device of that name in each, until the process is ended. Until it is told to start a link, packets
/// pass as they come.
///
/// # Errors
/// What the system refused; or nobody started a link.
pub fn run(folder: &Path, namespaces: &[String; 2], device: &str) -> io::Result<()> {
    let open = |name: &String| namespace::within(name, || Tun::open(device));
    let devices = [open(&namespaces[0])?, open(&namespaces[1])?];
    // Otherwise every sleep may be 50 us longer than asked.
    set_timerslack(1000)?;
    let mut emulator = Emulator::new(devices)?;
    let server = Server::bind(folder)?;
    let born_ns = now_ns()?;
    let mut look_ns = born_ns;
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        let (from_devices, from_clients) = emulator.sleep(&server)?;
        for (side, is_ready) in from_devices.into_iter().enumerate() {
            if is_ready {
                emulator.receive(side, &mut buffer)?;
            }
            emulator.deliver(side)?;
        }
        if from_clients {
            while let Some((request, from)) = server.next() {
                server.answer(&emulator.answer(request), &from);
            }
        }
        let now_ns = now_ns()?;
        if now_ns > look_ns {
            look_ns = now_ns + LOOK_NS;
            emulator.check_owner(folder, now_ns - born_ns)?;
        }
    }
}

impl Emulator {
    fn new(devices: [Tun; 2]) -> io::Result<Self> {
        let now_ns = now_ns()?;
        let params = LinkParams::default();
        Ok(Self {
            devices,
            lanes: lanes(&params, now_ns).map_err(io::Error::other)?,
            seed: params.seed,
            started_ns: now_ns,
            is_started: false,
        })
    }

    /// An error when nobody can take the link down any more, or nobody started it.
    fn check_owner(&self, folder: &Path, age_ns: u64) -> io::Result<()> {
        if !process::is_claimed(folder) {
            return Err(io::Error::other("the link's folder is gone"));
        }
        if !self.is_started && age_ns > START_LIMIT_NS {
            return Err(io::Error::other("nobody started a link"));
        }
        Ok(())
    }

    /// Takes what came from one side.
    fn receive(&mut self, side: usize, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH_FRAMES {
            let Some(bytes) = self.devices[side].receive(buffer)? else {
                break;
            };
            // Not once for the batch: a packet would leave before its delay is over.
            self.lanes[side].take(&buffer[..bytes], now_ns()?);
        }
        Ok(())
    }

    /// Hands over what is due at the other side.
    fn deliver(&mut self, side: usize) -> io::Result<()> {
        let now_ns = now_ns()?;
        let lane = &mut self.lanes[side];
        while let Some(frame) = lane.line.pop_due(now_ns) {
            if !self.devices[1 - side].send(&frame) {
                lane.way.counters_mut().dropped_by_receiver += 1;
            }
        }
        Ok(())
    }

    /// Until a packet or a request comes, or the next packet is due. Gives which of the two devices
    /// and the control socket have something.
    fn sleep(&self, server: &Server) -> io::Result<([bool; 2], bool)> {
        let next_ns = self
            .lanes
            .iter()
            .filter_map(|lane| lane.line.next_ns())
            .min();
        let now_ns = now_ns()?;
        let wait_ns = next_ns.map_or(IDLE_NS_MAX, |next_ns| {
            next_ns.saturating_sub(now_ns).max(SLEEP_NS_MIN)
        });
        let wait = TimeSpec::from_duration(Duration::from_nanos(wait_ns.min(IDLE_NS_MAX)));
        let [a, b] = &self.devices;
        let mut fds = [a.as_fd(), b.as_fd(), server.socket().as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match ppoll(&mut fds, Some(wait), None) {
            // Errors, too, are found by reading.
            Ok(_) => {
                let [a, b, clients] = fds.map(|fd| fd.any().unwrap_or(true));
                Ok(([a, b], clients))
            }
            Err(nix::Error::EINTR) => Ok(([false; 2], false)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn answer(&mut self, request: Request) -> Reply {
        let now_ns = now_ns().map_err(|error| error.to_string())?;
        match request {
            Request::Start(params) => {
                self.lanes = lanes(&params, now_ns)?;
                self.seed = params.seed;
                self.started_ns = now_ns;
                self.is_started = true;
            }
            Request::Set(ways) => {
                for (lane, params) in self.lanes.iter_mut().zip(&ways) {
                    let changed = lane.way.change(params, now_ns);
                    changed.map_err(|error| error.to_string())?;
                }
            }
            Request::Cut { ways, for_ns } => {
                let until_ns = for_ns.map_or(u64::MAX, |for_ns| now_ns.saturating_add(for_ns));
                for direction in ways {
                    self.lanes[direction as usize].way.cut(until_ns);
                }
            }
            Request::Mend => self.lanes.iter_mut().for_each(|lane| lane.way.cut(0)),
            Request::Show => {}
        }
        self.status(now_ns).map_err(|error| error.to_string())
    }

    fn status(&mut self, now_ns: u64) -> io::Result<Status> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let cpu = usage.user_time() + usage.system_time();
        let mut directions = Direction::BOTH.into_iter();
        let ways = self.lanes.each_mut().map(|lane| {
            let direction = directions.next().unwrap_or(Direction::BToA);
            lane.status(direction, now_ns)
        });
        #[expect(
            clippy::cast_precision_loss,
            reason = "microseconds of a process's life"
        )]
        let cpu_s = cpu.num_microseconds() as f64 / 1e6;
        Ok(Status {
            pid: std::process::id(),
            cpu_s,
            elapsed_s: Duration::from_nanos(now_ns - self.started_ns).as_secs_f64(),
            seed: self.seed,
            ways,
        })
    }
}

fn lanes(params: &LinkParams, now_ns: u64) -> Result<[Lane; 2], String> {
    let lane = |number: usize| -> Result<Lane, String> {
        let way = Way::new(&params.ways[number], params.seed, number as u64, now_ns);
        Ok(Lane {
            way: way.map_err(|error| error.to_string())?,
            line: DelayLine::new(LINE_BYTES_MAX),
        })
    };
    Ok([lane(0)?, lane(1)?])
}

impl Lane {
    fn take(&mut self, frame: &[u8], now_ns: u64) {
        match Superframe::find(frame) {
            Some(superframe) => self.take_segments(frame, &superframe, now_ns),
            None => {
                let bytes = frame.len().saturating_sub(VNET_HEADER_BYTES);
                if let Verdict::Deliver { at_ns, is_late } = self.offer(now_ns, bytes) {
                    self.hold(at_ns, is_late, frame.into(), 1);
                }
            }
        }
    }

    /// Decides about each segment, and keeps neighbours together that arrive at about the same time:
    /// at the time of the last.
    fn take_segments(&mut self, frame: &[u8], superframe: &Superframe, now_ns: u64) {
        let mut run: Option<Run> = None;
        for segment in 0..superframe.segments() {
            let verdict = self.offer(now_ns, superframe.packet_bytes(segment));
            run = match (run.take(), verdict) {
                (
                    Some(run),
                    Verdict::Deliver {
                        at_ns,
                        is_late: false,
                    },
                ) if run.takes(at_ns) => Some(Run {
                    at_ns,
                    end: segment + 1,
                    ..run
                }),
                (before, verdict) => {
                    if let Some(run) = before {
                        self.hold_run(frame, superframe, &run);
                    }
                    Run::begin(segment, verdict)
                }
            };
        }
        if let Some(run) = run {
            self.hold_run(frame, superframe, &run);
        }
    }

    fn hold_run(&mut self, frame: &[u8], superframe: &Superframe, run: &Run) {
        let part = superframe.part(frame, run.start..run.end);
        self.hold(run.at_ns, run.is_late, part, (run.end - run.start) as u64);
    }

    fn offer(&mut self, now_ns: u64, bytes: usize) -> Verdict {
        self.way
            .offer(now_ns, u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    fn hold(&mut self, at_ns: u64, is_late: bool, frame: Box<[u8]>, packets: u64) {
        if !self.line.push(at_ns, is_late, frame) {
            self.way.counters_mut().dropped_by_memory += packets;
        }
    }

    fn status(&mut self, direction: Direction, now_ns: u64) -> WayStatus {
        let (queue_bytes, queue_ns) = self.way.backlog(now_ns);
        WayStatus {
            direction,
            params: self.way.params().clone(),
            is_cut: self.way.is_cut(now_ns),
            queue_bytes,
            queue_ns,
            in_flight_frames: self.line.len(),
            in_flight_bytes: self.line.bytes(),
            counters: *self.way.counters(),
        }
    }
}

/// Segments of one superframe that stay together.
struct Run {
    start: usize,
    end: usize,
    first_ns: u64,
    at_ns: u64,
    is_late: bool,
}

impl Run {
    fn begin(segment: usize, verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Drop(_) => None,
            Verdict::Deliver { at_ns, is_late } => Some(Self {
                start: segment,
                end: segment + 1,
                first_ns: at_ns,
                at_ns,
                is_late,
            }),
        }
    }

    const fn takes(&self, at_ns: u64) -> bool {
        !self.is_late && at_ns - self.first_ns <= TOGETHER_NS
    }
}

fn now_ns() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.num_nanoseconds().cast_unsigned())
}
