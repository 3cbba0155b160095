//! Handing the descriptor to whoever may have it.

use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::ptr;

use crate::uffd::Userfaultfd;

/// Small: the thread accepts and sends, nothing else.
const STACK_BYTES: usize = 128 * 1024;

/// Listens on `path` and gives `uffd` to each client, for ever.
pub(crate) fn serve(path: &Path, uffd: io::Result<Userfaultfd>) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    if let Err(error) = &uffd {
        eprintln!("dwcp-preload: no userfaultfd: {error}");
    }
    let uffd = uffd.ok();
    // The VMM's signals must never land on this thread: it is made with all of them blocked.
    let unblock = block_signals();
    let thread = std::thread::Builder::new()
        .name("dwcp-uffd".into())
        .stack_size(STACK_BYTES)
        .spawn(move || accept_for_ever(&listener, uffd.as_ref()));
    unblock.restore();
    thread.map(drop)
}

fn accept_for_ever(listener: &UnixListener, uffd: Option<&Userfaultfd>) {
    for client in listener.incoming() {
        let Ok(client) = client else {
            // Out of descriptors: the VMM may close some.
            std::thread::sleep(std::time::Duration::from_millis(100));
            continue;
        };
        if is_allowed(&client) {
            let _ = hand_out(&client, uffd);
        }
    }
}

/// Root, and the VMM's own user.
fn is_allowed(client: &UnixStream) -> bool {
    // SAFETY: `ucred` is plain integers, for which all zeros is a value.
    let mut peer: libc::ucred = unsafe { zeroed() };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes to `peer`, which has that size; both outlive
    // the call.
    let outcome = unsafe {
        libc::getsockopt(
            client.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut peer).cast(),
            &raw mut bytes,
        )
    };
    // SAFETY: geteuid(2) always succeeds and touches no memory.
    let own = unsafe { libc::geteuid() };
    outcome == 0 && (peer.uid == 0 || peer.uid == own)
}

fn hand_out(client: &UnixStream, uffd: Option<&Userfaultfd>) -> io::Result<()> {
    let mut byte = [match uffd {
        None => b'0',
        Some(uffd) if uffd.tells_kernel_faults => b'1',
        Some(_) => b'2',
    }];
    let mut slice = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // Room for one descriptor, aligned for `cmsghdr`.
    let mut control = [0u64; 4];
    // SAFETY: all zeros is an empty `msghdr`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    if let Some(uffd) = uffd {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as usize;
        assert!(message.msg_controllen <= size_of_val(&control));
        // SAFETY: `msg_control` points to `msg_controllen` bytes, enough for one header, so the
        // result points into `control`.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: `header` points to a whole, aligned `cmsghdr` within `control`, ours alone.
        let header = unsafe { &mut *header };
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: CMSG_LEN only computes.
        header.cmsg_len = unsafe { libc::CMSG_LEN(4) } as usize;
        // SAFETY: computes the address of the data behind the header, within `control`.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: CMSG_SPACE(4) left room for four bytes there; the write may be unaligned.
        unsafe {
            data.cast::<libc::c_int>()
                .write_unaligned(uffd.fd.as_raw_fd());
        };
    }
    // SAFETY: every pointer in `message` is to a local that outlives the call, with its length.
    let sent = unsafe { libc::sendmsg(client.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    if sent == 1 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The thread's signal mask from before.
struct SignalMask(libc::sigset_t);

fn block_signals() -> SignalMask {
    // SAFETY: a signal set is plain bits; sigfillset and pthread_sigmask overwrite both.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { zeroed() };
    // SAFETY: writes the set it is given, nothing else.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: reads `all` and writes `before`; both outlive the call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    SignalMask(before)
}

impl SignalMask {
    fn restore(self) {
        // SAFETY: reads the mask that pthread_sigmask itself gave; the old one is not wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}
