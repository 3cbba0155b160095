//! How the kernel is to send on a TCP connection: see socket(7), tcp(7) and linux/tcp.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use libc::c_int;

/// `TCP_RTO_MIN_US` and `TCP_DELACK_MAX_US` of linux/tcp.h, since Linux 6.15.
const TCP_RTO_MIN_US: c_int = 45;
const TCP_DELACK_MAX_US: c_int = 46;

/// A packet is taken for lost when it is not acknowledged a round trip and so long after it was sent, or later where round
/// trips vary by more. The kernel's own 200 ms are for receivers that acknowledge late; ours do not.
const RTO_MIN: Duration = Duration::from_millis(50);

/// An acknowledgement waits no longer for another packet: two ticks of the slowest kernels, which take no less. Both about as
/// QUIC has them (RFC 9002, 6.2.1).
const DELACK_MAX: Duration = Duration::from_millis(20);

fn set(socket: &impl AsFd, (level, option): (c_int, c_int), value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `value` has, and it outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel send no more than so many bytes a second on a connection, evenly; `None` is no limit.
///
/// # Errors
/// From setsockopt(2).
pub fn set_pacing_rate(socket: &impl AsFd, bytes_per_s: Option<u64>) -> io::Result<()> {
    let rate = bytes_per_s.unwrap_or(u64::MAX).to_ne_bytes();
    set(socket, (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE), &rate)
}

/// Has the kernel notice a lost packet 150 ms sooner where nothing is sent behind it, as at the end of a pause.
///
/// # Errors
/// From setsockopt(2): the kernel is older than 6.15.
pub fn hasten_losses(socket: &impl AsFd) -> io::Result<()> {
    for (option, time) in [(TCP_RTO_MIN_US, RTO_MIN), (TCP_DELACK_MAX_US, DELACK_MAX)] {
        let us = (time.as_micros() as u32).to_ne_bytes();
        set(socket, (libc::IPPROTO_TCP, option), &us)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::transport::TcpInfo;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (sender, listener.accept().unwrap().0)
    }

    /// 4 MiB a second.
    const SLOW: Option<u64> = Some(4 << 20);

    /// How long 2 MiB take.
    fn takes(bytes_per_s: Option<u64>) -> Duration {
        const BYTES: usize = 2 << 20;
        let (mut sender, mut receiver) = connected();
        set_pacing_rate(&sender, SLOW).unwrap();
        set_pacing_rate(&sender, bytes_per_s).unwrap();
        let began = std::time::Instant::now();
        let writer = std::thread::spawn(move || sender.write_all(&vec![7; BYTES]).map(|()| sender));
        receiver.read_exact(&mut vec![0; BYTES]).unwrap();
        let time = began.elapsed();
        writer.join().unwrap().unwrap();
        time
    }

    #[test]
    fn a_paced_connection_takes_its_time_and_one_without_a_limit_does_not() {
        // Half of a second, but for the first ten segments, of 64 KiB here.
        let paced = takes(SLOW);
        assert!(paced > Duration::from_millis(200), "{paced:?}");
        let free = takes(None);
        assert!(free < paced, "{free:?} against {paced:?}");
    }

    /// Of a connection that words have gone over, there and back.
    fn retransmit_timeout(is_hastened: bool) -> Duration {
        let (mut one, mut other) = connected();
        if is_hastened && let Err(error) = hasten_losses(&one) {
            println!("skipped: no times for lost packets in this kernel: {error}");
            return Duration::ZERO;
        }
        for _ in 0..20 {
            one.write_all(&[7]).unwrap();
            other.read_exact(&mut [0]).unwrap();
            other.write_all(&[7]).unwrap();
            one.read_exact(&mut [0]).unwrap();
        }
        TcpInfo::of(&one).unwrap().retransmit_timeout
    }

    #[test]
    fn a_lost_packet_is_noticed_sooner_where_that_is_asked_for() {
        assert!(retransmit_timeout(true) < retransmit_timeout(false));
    }
}
