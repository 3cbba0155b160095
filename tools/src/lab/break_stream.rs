//! Breaking one data stream of a data plane: its socket is taken from the process and shut down. That is
//! what a middlebox does, as both ends see it, and nothing else of the migration is touched.

use std::collections::HashSet;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::fstat;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::SockRef;

/// `O_NONBLOCK` in a descriptor's flags: only workers' sockets have it.
const NON_BLOCKING: u32 = 0o4000;

/// Ends one of a data plane's data streams, the one of number `choice` modulo how many there are. Returns how
/// many there were.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub(super) fn break_stream(pid: u32, choice: u64) -> io::Result<usize> {
    let streams = data_streams(pid)?;
    if let Some(stream) = streams.get(choice as usize % streams.len().max(1)) {
        SockRef::from(stream).shutdown(Shutdown::Both)?;
    }
    Ok(streams.len())
}

/// The connected sockets of a process's workers.
fn data_streams(pid: u32) -> io::Result<Vec<OwnedFd>> {
    let process = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let folder = Path::new("/proc").join(pid.to_string());
    // A socket may have several descriptors, and in this process itself those that are taken here.
    let (mut streams, mut known) = (vec![], HashSet::new());
    for entry in folder.join("fd").read_dir()? {
        let number = entry?.file_name();
        // One that was closed since is no stream.
        let (Some(number), Ok(facts)) = (
            number.to_str().and_then(|text| text.parse().ok()),
            std::fs::read_to_string(folder.join("fdinfo").join(&number)),
        ) else {
            continue;
        };
        if !is_non_blocking(&facts) {
            continue;
        }
        let Ok(socket) = pidfd_getfd(process.as_fd(), number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let peer = SockRef::from(&socket).peer_addr();
        let is_connected = peer.is_ok_and(|peer| peer.as_socket().is_some());
        if is_connected && known.insert(fstat(&socket)?.st_ino) {
            streams.push(socket);
        }
    }
    Ok(streams)
}

/// What `/proc/PID/fdinfo` says of a descriptor.
fn is_non_blocking(facts: &str) -> bool {
    let flags = facts.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & NON_BLOCKING != 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_stream_of_a_process_is_broken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        assert_eq!(
            break_stream(std::process::id(), 3).unwrap(),
            0,
            "both block"
        );
        stream.set_nonblocking(true).unwrap();
        assert_eq!(break_stream(std::process::id(), 3).unwrap(), 1);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
