//! Preloaded into a daemon of a test, this library lets its wall clock jump, and nobody else's.
//!
//! ```text
//! LD_PRELOAD=libdwcp_clock.so DWCP_CLOCK_JUMP=/tmp/jump dwcp-dataplane …
//! ```
//! The file holds seconds as decimal digits, perhaps behind a minus sign; the wall clock is ahead by so many. The
//! monotonic clocks stay as they are, as they do where an operator or NTP sets the time. It is looked at with each
//! look at the clock: a test may be slow.

use std::ffi::CStr;
use std::sync::OnceLock;

use libc::{CLOCK_REALTIME, c_int, clockid_t, time_t, timespec};

const FILE_ENV: &CStr = c"DWCP_CLOCK_JUMP";

/// Longer than any number of seconds.
const DIGITS_MAX: usize = 24;

/// The loader lets this one be called in the C library's place.
///
/// # Safety
/// As of `clock_gettime` of the C library: `now` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, now: *mut timespec) -> c_int {
    // SAFETY: the kernel checks both arguments, and writes only to what the caller gave.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, now) } as c_int;
    if result == 0 && clock == CLOCK_REALTIME {
        // SAFETY: the kernel has just written to it.
        unsafe { (*now).tv_sec += jump_s() };
    }
    result
}

/// By how much the wall clock is ahead. Nothing is allocated: an allocator may look at the clock.
fn jump_s() -> time_t {
    static FILE: OnceLock<Option<usize>> = OnceLock::new();
    let path = FILE.get_or_init(|| {
        // SAFETY: the name ends with a zero byte, and the tests' daemons do not write their environment.
        let path = unsafe { libc::getenv(FILE_ENV.as_ptr()) };
        (!path.is_null()).then_some(path as usize)
    });
    let Some(path) = path else { return 0 };
    // SAFETY: it is the environment's text, which ends with a zero byte and lives as long as the process.
    let file = unsafe {
        libc::open(
            *path as *const libc::c_char,
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    if file < 0 {
        return 0;
    }
    let mut text = [0_u8; DIGITS_MAX];
    // SAFETY: the buffer is ours, and has so many bytes.
    let read = unsafe { libc::read(file, text.as_mut_ptr().cast(), text.len()) };
    // SAFETY: it was opened above, and nobody else knows it.
    unsafe { libc::close(file) };
    seconds(&text[..usize::try_from(read).unwrap_or(0)])
}

fn seconds(text: &[u8]) -> time_t {
    let (sign, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let value = digits.fold(0, |value: time_t, &digit| {
        value
            .saturating_mul(10)
            .saturating_add(time_t::from(digit - b'0'))
    });
    sign * value
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn text_is_read_as_far_as_it_goes() {
        let read = [&b"3600\n"[..], b"-86400", b"", b"-", b"x"].map(seconds);
        assert_eq!(read, [3600, -86400, 0, 0, 0]);
    }
}
