//! The bare test guest: a kernel of its own that does nothing but what a test of migration needs.
//!
//! It fills RAM with self-describing pages, rewrites pages of a hot window at a given rate, checks
//! every page again and again, and says on the serial port how it goes:
//! ```text
//! DWCP READY filled_mib=64
//! DWCP T=1 writes=300 verified=20000 bad=0 max_gap_ms=3
//! ```
//! Options come from the kernel's command line, see `GuestOptions`. Time is the processor's counter,
//! measured against the timer chip at the start; it stands still while the guest is stopped, so
//! `max_gap_ms` shows page faults served slowly, not the pause of a migration.
//!
//! | file        | what                                                   |
//! |-------------|--------------------------------------------------------|
//! | `boot.s`    | PVH note, 32-bit entry, page tables, interrupt stubs   |
//! | `boot.rs`   | what QEMU tells us: command line, map of RAM           |
//! | `cpu.rs`    | ports, clock, interrupts, sleeping                     |
//! | `ram.rs`    | the pages and their table                              |
//! | `serial.rs` | the log                                                |
//! | `mem.rs`    | the four functions that compiled code calls by name    |
#![no_std]
#![no_main]

mod boot;
mod cpu;
mod mem;
mod ram;
mod serial;

use core::fmt::Write;
use core::panic::PanicInfo;
use dwcp_guest_page::{GuestOptions, Pace};

use crate::cpu::Clock;
use crate::ram::Ram;
use crate::serial::Serial;

core::arch::global_asm!(include_str!("boot.s"));

/// Called by `boot.s` with the address of QEMU's start_info.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    let mut serial = Serial::new();
    let mut line = [0; boot::COMMAND_LINE_BYTES_MAX];
    let Some(info) = boot::read(start_info, &mut line) else {
        fail("not started by PVH");
    };
    let options = GuestOptions::from_command_line(info.command_line);
    let clock = Clock::calibrate();
    let Some(mut ram) = Ram::new(&info.regions, options) else {
        fail("not enough RAM");
    };
    ram.fill();
    cpu::start_timer();
    // The serial port takes every byte; the trait wants to know.
    let _ = writeln!(serial, "DWCP READY filled_mib={}", ram.mib());
    run(&mut ram, &mut serial, clock)
}

fn run(ram: &mut Ram, serial: &mut Serial, clock: Clock) -> ! {
    let options = *ram.options();
    let (mut writes, mut checks) = (Pace::new(options.rate), Pace::new(options.verify_rate));
    let start_us = clock.now_us();
    let (mut last_us, mut said, mut max_gap_us) = (start_us, 0, 0);
    loop {
        cpu::sleep_until_interrupt();
        let now_us = clock.now_us();
        let elapsed_us = now_us.saturating_sub(last_us);
        last_us = now_us;
        if elapsed_us > max_gap_us {
            max_gap_us = elapsed_us;
        }
        let due = writes.advance(elapsed_us);
        for _ in 0..due {
            ram.rewrite_one();
        }
        writes.take(due);
        let due = checks.advance(elapsed_us);
        for _ in 0..due {
            ram.check_one();
        }
        checks.take(due);
        let seconds = now_us.saturating_sub(start_us) / 1_000_000;
        if seconds > said {
            said = seconds;
            let (written, verified, bad) = ram.counters();
            let _ = writeln!(
                serial,
                "DWCP T={seconds} writes={written} verified={verified} bad={bad} max_gap_ms={}",
                max_gap_us / 1000
            );
        }
    }
}

fn fail(why: &str) -> ! {
    let _ = writeln!(Serial::new(), "DWCP FAILED {why}");
    cpu::halt()
}

/// Called by `boot.s` for every exception of the processor.
#[unsafe(no_mangle)]
extern "C" fn guest_exception() -> ! {
    fail("processor exception")
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Serial::new(), "DWCP FAILED {info}");
    cpu::halt()
}
