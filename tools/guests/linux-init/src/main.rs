//! `/init` of the Linux test guest: the only process of an otherwise empty system.
//!
//! It fills RAM with self-describing pages, rewrites pages of a hot window at a given rate, checks
//! every page again and again, and says on the serial port how it goes:
//! ```text
//! DWCP READY filled_mib=64
//! DWCP T=1 writes=300 verified=20000 bad=0 max_gap_ms=3
//! ```
//! Options come from the kernel's command line, see `GuestOptions`. `max_gap_ms` is the longest time
//! between two turns of the loop by the guest's own clock, which stands still while the guest is
//! stopped: it shows page faults served slowly, not the pause of a migration.
//!
//! Asked to, it runs a program instead: see `program.rs`; or goes over to a system on a disk: see
//! `root.rs`.

mod program;
mod root;

use dwcp_guest_page::{
    GuestOptions, PAGE_BYTES, Pace, UNWRITTEN, check_page, next_random, write_page,
};
use std::io::Write;
use std::ptr;
use std::time::{Duration, Instant};

/// Time between two turns of the loop.
const BEAT: Duration = Duration::from_millis(2);

/// RAM left to the kernel when the whole is to be filled, in MiB.
const SPARE_MIB: u64 = 64;

/// The filled memory and its table: what the guest knows of its pages without looking at them.
struct Ram {
    base: *mut u64,
    options: GuestOptions,
    generations: Vec<u32>,
    random: u64,
    cursor: usize,
    writes: u64,
    verified: u64,
    bad: u64,
}

impl Ram {
    fn new(options: GuestOptions, mib: u64) -> Self {
        let pages = (mib << 20) as usize / PAGE_BYTES;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe { libc::mmap(ptr::null_mut(), pages * PAGE_BYTES, access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            stay_forever("DWCP FAILED not enough RAM");
        }
        let generations = vec![UNWRITTEN; pages];
        let base = base.cast();
        Self {
            base,
            options,
            generations,
            random: 1,
            cursor: 0,
            writes: 0,
            verified: 0,
            bad: 0,
        }
    }

    fn write(&mut self, page: usize) {
        let (kind, before) = (self.options.kind, self.generations[page]);
        let generation = before.checked_add(1).unwrap_or(UNWRITTEN + 1);
        // SAFETY: `page` is an index of the table (checked just above), which has one entry for each
        // page of the mapping; the mapping is never undone.
        unsafe {
            write_page(
                self.base.byte_add(page * PAGE_BYTES),
                kind,
                page as u64,
                before,
                generation,
            )
        };
        self.generations[page] = generation;
    }

    fn check(&mut self, page: usize) {
        let (kind, generation) = (self.options.kind, self.generations[page]);
        // SAFETY: as in `write`.
        let good = unsafe {
            check_page(
                self.base.byte_add(page * PAGE_BYTES),
                kind,
                page as u64,
                generation,
            )
        };
        if !good {
            self.bad += 1;
        }
    }

    fn rewrite_one(&mut self) {
        let hot = ((self.options.hot_mib << 8) as usize).min(self.generations.len());
        if hot == 0 {
            return;
        }
        self.random = next_random(self.random);
        let page = (self.random % hot as u64) as usize;
        self.check(page);
        self.write(page);
        self.writes += 1;
    }

    fn check_one(&mut self) {
        self.check(self.cursor);
        self.verified += 1;
        self.cursor = (self.cursor + 1) % self.generations.len();
    }
}

/// PID 1 must not end: the kernel would panic and the log would be lost in its noise.
fn stay_forever(last_words: &str) -> ! {
    println!("{last_words}");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Free RAM in MiB, by the kernel's estimate.
fn available_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|n| n.parse().ok());
    kib.unwrap_or(0_u64) / 1024
}

fn main() {
    if let Err(error) = program::mount(c"proc", c"/proc") {
        println!("DWCP no /proc: {error}");
    }
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(program) = program::wanted(&line) {
        program::run(program);
    }
    if root::is_wanted(&line) {
        stay_forever(&format!("DWCP FAILED {}", root::enter()));
    }
    let options = GuestOptions::from_command_line(&line);
    let room = available_mib().saturating_sub(SPARE_MIB);
    let mib = if options.fill_mib == 0 {
        room
    } else {
        options.fill_mib.min(room)
    };
    if mib == 0 {
        stay_forever("DWCP FAILED not enough RAM");
    }
    let mut ram = Ram::new(options, mib);
    for page in 0..ram.generations.len() {
        ram.write(page);
    }
    println!("DWCP READY filled_mib={mib}");
    run(&mut ram);
}

fn run(ram: &mut Ram) -> ! {
    let (mut writes, mut checks) = (
        Pace::new(ram.options.rate),
        Pace::new(ram.options.verify_rate),
    );
    let start = Instant::now();
    let (mut last, mut said, mut max_gap) = (start, 0, Duration::ZERO);
    loop {
        std::thread::sleep(BEAT);
        let now = Instant::now();
        let elapsed = now - last;
        last = now;
        max_gap = max_gap.max(elapsed);
        let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let due = writes.advance(elapsed_us);
        (0..due).for_each(|_| ram.rewrite_one());
        writes.take(due);
        let due = checks.advance(elapsed_us);
        (0..due).for_each(|_| ram.check_one());
        checks.take(due);
        let seconds = (now - start).as_secs();
        if seconds > said {
            said = seconds;
            let (written, verified, bad) = (ram.writes, ram.verified, ram.bad);
            let gap = max_gap.as_millis();
            println!(
                "DWCP T={seconds} writes={written} verified={verified} bad={bad} max_gap_ms={gap}"
            );
            // A serial port that does not take the line is nothing the guest could say.
            let _ = std::io::stdout().flush();
        }
    }
}
