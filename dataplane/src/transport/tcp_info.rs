//! What the kernel knows of a TCP connection: `TCP_INFO`, see tcp(7) and linux/tcp.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Bytes of `struct tcp_info` that are read: up to `tcpi_reord_seen`, Linux 4.19.
const BYTES: usize = 224;

/// A path with a shorter round trip is within a site, where links are fast.
pub const SHORT_RTT: Duration = Duration::from_millis(2);

/// State of a connection, as far as anything is decided by it. What an old kernel does not tell is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Round-trip time, smoothed.
    pub rtt: Duration,
    /// Its mean deviation.
    pub rtt_var: Duration,
    /// The least round-trip time seen lately.
    pub min_rtt: Duration,
    /// What the path has carried last, bytes per second.
    pub delivery_rate: u64,
    /// That was less than the path could carry: there was nothing more to send.
    pub is_app_limited: bool,
    /// Bytes that the peer's kernel has acknowledged.
    pub bytes_acked: u64,
    /// Bytes sent, those sent again included.
    pub bytes_sent: u64,
    /// Bytes sent again.
    pub bytes_retransmitted: u64,
    /// Bytes in the kernel that have not been sent yet.
    pub unsent_bytes: u64,
    /// What is not acknowledged is sent again after so long.
    pub retransmit_timeout: Duration,
}

impl TcpInfo {
    /// Asks the kernel.
    ///
    /// # Errors
    /// From getsockopt(2).
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let mut bytes = [0u8; BYTES];
        let mut length = BYTES as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `bytes`, which has as many, and the length
        // to `length`; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8; BYTES]) -> Self {
        let u32_at = |at: usize| {
            let field = bytes[at..].first_chunk().copied();
            field.map_or(0, u32::from_ne_bytes)
        };
        let u64_at = |at: usize| {
            let field = bytes[at..].first_chunk().copied();
            field.map_or(0, u64::from_ne_bytes)
        };
        let micros = |at: usize| Duration::from_micros(u32_at(at).into());
        // An old kernel has seen none yet, or says so by the largest number.
        let min_rtt = micros(148);
        Self {
            rtt: micros(68),
            rtt_var: micros(72),
            min_rtt: if u32_at(148) == u32::MAX {
                Duration::ZERO
            } else {
                min_rtt
            },
            delivery_rate: u64_at(160),
            is_app_limited: bytes[7] & 1 == 1,
            bytes_acked: u64_at(120),
            bytes_sent: u64_at(200),
            bytes_retransmitted: u64_at(208),
            unsent_bytes: u32_at(144).into(),
            retransmit_timeout: micros(8),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_counts_what_was_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        sender.write_all(&[7; 10_000]).unwrap();
        receiver.read_exact(&mut [0; 10_000]).unwrap();
        // The peer has read it, so its kernel has acknowledged it; the last acknowledgement may be late.
        let began = std::time::Instant::now();
        let info = loop {
            let info = TcpInfo::of(&sender).unwrap();
            // It counts one for the handshake.
            if info.bytes_acked >= 10_000 || began.elapsed() > Duration::from_secs(5) {
                break info;
            }
            std::thread::yield_now();
        };
        assert!((10_000..=10_001).contains(&info.bytes_acked), "{info:?}");
        assert_eq!(info.bytes_sent, 10_000);
        assert_eq!((info.bytes_retransmitted, info.unsent_bytes), (0, 0));
        assert!(info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(1));
        assert!(info.min_rtt > Duration::ZERO && info.min_rtt <= info.rtt * 2);
        assert!(info.delivery_rate > 0);
    }

    #[test]
    fn what_is_no_tcp_socket_has_no_state() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(TcpInfo::of(&one).is_err());
    }
}
