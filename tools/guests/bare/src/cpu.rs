//! The processor and the chips around it: ports, clock, interrupts.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::cell::UnsafeCell;

/// Ticks of the timer chip per second.
const PIT_HZ: u64 = 1_193_182;

/// How often the timer wakes us.
const WAKE_HZ: u64 = 500;

/// How long the processor's counter is measured, in ticks of the timer chip: 10 ms.
const CALIBRATION_TICKS: u64 = PIT_HZ / 100;

/// How often it is measured.
const CALIBRATIONS: u32 = 6;

/// First vector of the interrupt controllers, behind the processor's exceptions.
const VECTORS: usize = 0x20;

/// Interrupt vectors that are set up.
const GATES: usize = 0x30;

/// Code segment of `boot.s`.
const CODE_SEGMENT: u64 = 8;

unsafe extern "C" {
    fn timer_interrupt();
    fn spurious_interrupt();
    fn exception_entry();
}

/// The interrupt descriptor table: written once, before interrupts are allowed.
#[repr(C, align(16))]
struct Gates(UnsafeCell<[[u64; 2]; GATES]>);

// SAFETY: one processor, and the table is written before anything reads it.
unsafe impl Sync for Gates {}

static IDT: Gates = Gates(UnsafeCell::new([[0; 2]; GATES]));

/// Writes a byte to a port.
pub fn out(port: u16, value: u8) {
    // SAFETY: only this file and `serial.rs` call it, for ports of chips that every PC has and that
    // touch no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads a byte from a port.
pub fn inp(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as for `out`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// The processor's counter as a clock.
#[derive(Clone, Copy)]
pub struct Clock {
    ticks_per_ms: u64,
}

impl Clock {
    /// Measures the counter against channel 2 of the timer chip, which needs no interrupt.
    ///
    /// A host that gives the processor to somebody else meanwhile makes a measurement too long, never
    /// too short: the shortest of several is the right one.
    pub fn calibrate() -> Self {
        let passed = (0..CALIBRATIONS)
            .map(|_| ticks_of_one_shot())
            .min()
            .unwrap_or(1);
        let ticks_per_ms = passed * (PIT_HZ / 1000) / CALIBRATION_TICKS;
        Self {
            ticks_per_ms: ticks_per_ms.max(1),
        }
    }

    pub fn now_us(&self) -> u64 {
        (u128::from(ticks()) * 1000 / u128::from(self.ticks_per_ms)) as u64
    }
}

fn ticks_of_one_shot() -> u64 {
    // Gate on, speaker off; one shot.
    out(0x61, (inp(0x61) & !2) | 1);
    out(0x43, 0b1011_0000);
    out(0x42, CALIBRATION_TICKS as u8);
    out(0x42, (CALIBRATION_TICKS >> 8) as u8);
    let start = ticks();
    while inp(0x61) & 0x20 == 0 {}
    ticks().wrapping_sub(start)
}

fn ticks() -> u64 {
    // SAFETY: every 64-bit processor has the counter.
    unsafe { _rdtsc() }
}

/// Sets up interrupts and a timer that wakes [`sleep_until_interrupt`] many times a second.
pub fn start_timer() {
    let mut gates = [[0; 2]; GATES];
    for (vector, gate) in gates.iter_mut().enumerate() {
        *gate = match vector {
            VECTORS => gate_to(timer_interrupt),
            _ if vector < VECTORS => gate_to(exception_entry),
            _ => gate_to(spurious_interrupt),
        };
    }
    // SAFETY: interrupts are off and there is one processor: nobody looks at the table.
    unsafe { IDT.0.get().write(gates) };
    let mut pointer = [0_u8; 10];
    pointer[..2].copy_from_slice(&((GATES * 16 - 1) as u16).to_le_bytes());
    pointer[2..].copy_from_slice(&(IDT.0.get() as u64).to_le_bytes());
    // SAFETY: the pointer describes a table that lives for ever; each gate leads to code of `boot.s`.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack)) };
    // Both controllers: vectors from 0x20 on, all lines but the timer's masked.
    for (port, value) in [
        (0x20, 0x11),
        (0xA0, 0x11),
        (0x21, VECTORS as u8),
        (0xA1, VECTORS as u8 + 8),
        (0x21, 4),
        (0xA1, 2),
        (0x21, 1),
        (0xA1, 1),
        (0x21, 0xFE),
        (0xA1, 0xFF),
    ] {
        out(port, value);
    }
    let divisor = PIT_HZ / WAKE_HZ;
    out(0x43, 0b0011_0100);
    out(0x40, divisor as u8);
    out(0x40, (divisor >> 8) as u8);
}

fn gate_to(handler: unsafe extern "C" fn()) -> [u64; 2] {
    let at = handler as usize as u64;
    let low = (at & 0xFFFF) | (CODE_SEGMENT << 16) | (0x8E00 << 32) | ((at >> 16 & 0xFFFF) << 48);
    [low, at >> 32]
}

/// Sleeps until the timer's next interrupt. Interrupts are allowed in here only.
pub fn sleep_until_interrupt() {
    // SAFETY: the handlers save what they use. The 128 bytes keep them off the red zone, which code
    // of this target may use below the stack pointer.
    unsafe { asm!("sub rsp, 128", "sti", "hlt", "cli", "add rsp, 128") };
}

/// The end.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts off, the processor stops.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
