//! The first serial port, by polling.

use crate::cpu::{inp, out};
use core::fmt;

const PORT: u16 = 0x3F8;

/// The log.
pub struct Serial;

impl Serial {
    /// Sets the port up: 115200 baud, 8N1, no interrupts.
    pub fn new() -> Self {
        for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
            out(PORT + register, value);
        }
        Self
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inp(PORT + 5) & 0x20 == 0 {}
            out(PORT, byte);
        }
        Ok(())
    }
}
