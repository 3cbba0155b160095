//! Counts what a QEMU really receives.
//!
//! QEMU 7.2 counts compressed multifd pages by their size before compression, so its own figure is
//! no measure. Here the kernel counts: we take a copy of every TCP socket of the destination as it
//! appears and ask `TCP_INFO` at the end. Copies of the *receiving* ends only: they keep no end of
//! stream from anybody, because the source closes sockets that nobody else holds.

use nix::sys::stat::fstat;
use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often new sockets are looked for; a connection lives far longer.
const LOOK: Duration = Duration::from_millis(2);

/// Where `tcpi_bytes_received` is in `struct tcp_info`, and its end.
const BYTES_RECEIVED: std::ops::Range<usize> = 128..136;

/// `TCP_LISTEN` of the kernel: the first byte of `struct tcp_info` of a listening socket.
const STATE_LISTEN: u8 = 10;

/// States after the peer's end of stream: `TCP_TIME_WAIT`, `CLOSE`, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`.
///
/// The end of stream takes a sequence number, which the kernel counts as a byte received. `CLOSE` is
/// also reached by a reset, which takes none: then we are one byte short.
const STATES_ENDED: [u8; 5] = [6, 7, 8, 9, 11];

/// Watches one process.
#[derive(Debug)]
pub(super) struct WireMeter {
    stop: Arc<AtomicBool>,
    watcher: JoinHandle<Vec<OwnedFd>>,
}

impl WireMeter {
    /// Starts to watch; `None` when the kernel does not let us (then QEMU's figure must do).
    pub(super) fn start(pid: u32) -> Option<Self> {
        let process = open_process(pid)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watch = move || {
            let (mut seen, mut sockets) = (HashSet::new(), Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                take_new_sockets(pid, &process, &mut seen, &mut sockets);
                thread::sleep(LOOK);
            }
            sockets
        };
        let watcher = thread::Builder::new()
            .name("wire-meter".into())
            .spawn(watch)
            .ok()?;
        Some(Self { stop, watcher })
    }

    /// Bytes received by all connections since [`Self::start`]; `None` when none was seen.
    pub(super) fn finish(self) -> Option<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let sockets = self.watcher.join().ok()?;
        let received = sockets
            .iter()
            .filter_map(|socket| payload_received(&tcp_info(socket)?));
        Some(received.sum()).filter(|bytes| *bytes > 0)
    }
}

fn take_new_sockets(
    pid: u32,
    process: &OwnedFd,
    seen: &mut HashSet<u64>,
    sockets: &mut Vec<OwnedFd>,
) {
    // A process that is gone has no more sockets.
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let Some(inode) = socket_inode(&target.to_string_lossy()) else {
            continue;
        };
        let number = entry.file_name().to_string_lossy().parse::<RawFd>();
        let Ok(number) = number else { continue };
        if seen.contains(&inode) {
            continue;
        }
        let Some(copy) = copy_descriptor(process, number) else {
            continue;
        };
        // The number may stand for something else by now.
        if fstat(&copy).is_ok_and(|stat| stat.st_ino == inode) {
            seen.insert(inode);
            if tcp_info(&copy).is_some_and(|info| info[0] != STATE_LISTEN) {
                sockets.push(copy);
            }
        }
    }
}

fn socket_inode(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn open_process(pid: u32) -> Option<OwnedFd> {
    // SAFETY: the call takes two numbers and gives a new descriptor or -1.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn copy_descriptor(process: &OwnedFd, number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the call takes three numbers and gives a new descriptor or -1.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

fn owned(result: libc::c_long) -> Option<OwnedFd> {
    let fd = RawFd::try_from(result).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: both callers just got this descriptor from the kernel; nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn payload_received(info: &[u8; 256]) -> Option<u64> {
    let counted = u64::from_ne_bytes(*info[BYTES_RECEIVED].first_chunk()?);
    Some(counted.saturating_sub(u64::from(STATES_ENDED.contains(&info[0]))))
}

/// `struct tcp_info` as bytes (the C library's own lacks the field we want); `None` when it is no TCP
/// socket or the kernel is too old to count.
fn tcp_info(socket: &OwnedFd) -> Option<[u8; 256]> {
    let mut info = [0_u8; 256];
    let mut length: libc::socklen_t = 256;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize >= BYTES_RECEIVED.end).then_some(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    /// Goal: the same count whether the sender's end of stream has come or not. It once was one more.
    /// Method: `shutdown` sends it whoever else holds the socket, as our own meter does here.
    #[test]
    fn the_kernels_count_is_exact_before_and_after_the_end_of_the_stream() {
        for ended in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
            let Some(meter) = WireMeter::start(std::process::id()) else {
                eprintln!("SKIPPED: no pidfd_getfd here");
                return;
            };
            let address = listener.local_addr().expect("address");
            let mut near = TcpStream::connect(address).expect("connect");
            let (mut far, _) = listener.accept().expect("accept");
            thread::sleep(LOOK * 50);
            let writer = thread::spawn(move || {
                near.write_all(&vec![7; 300_001]).expect("write");
                near
            });
            let mut bytes = vec![0; 300_001];
            far.read_exact(&mut bytes).expect("read");
            let near = writer.join().expect("thread");
            if ended {
                near.shutdown(Shutdown::Write).expect("shutdown");
                assert_eq!(far.read(&mut bytes).expect("read"), 0, "the end was seen");
            }
            drop(far);
            assert_eq!(meter.finish(), Some(300_001), "ended: {ended}");
        }
    }
}
