//! The synthetic guest's userfaultfd in the hands of a mover: the guest runs at the destination while
//! every page is still at the source.

use dwcp_testbed::synthetic::{SyntheticClient, SyntheticGuest, SyntheticOptions};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
const PAGE: usize = 4096;

/// Numbers of `linux/userfaultfd.h`.
const UFFDIO_API: libc::c_ulong = 0xC018_AA3F;
const UFFDIO_REGISTER: libc::c_ulong = 0xC020_AA00;
const UFFDIO_COPY: libc::c_ulong = 0xC028_AA03;
const API: u64 = 0xAA;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const REGISTER_MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;

fn control<const N: usize>(fd: &File, request: libc::c_ulong, words: &mut [u64; N]) -> bool {
    // SAFETY: each request above takes a structure of as many u64 as its callers pass; addresses in
    // it are checked by the kernel and those of sources outlive the call.
    unsafe { libc::ioctl(fd.as_raw_fd(), request, words.as_mut_ptr()) == 0 }
}

/// Answers faults from the source's RAM until told to stop.
fn serve(uffd: &mut File, va: u64, source: &File, stop: &AtomicBool, served: &AtomicU64) {
    let mut message = [0_u8; 32];
    let deadline = Instant::now() + LIMIT * 2;
    while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
        match uffd.read(&mut message) {
            Ok(32) if message[0] == EVENT_PAGEFAULT => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_micros(100));
                continue;
            }
            other => panic!("{other:?} {message:?}"),
        }
        let address = u64::from_ne_bytes(message[16..24].try_into().expect("8"));
        let address = address / PAGE as u64 * PAGE as u64;
        let mut page = vec![0_u64; PAGE / 8];
        let mut bytes = vec![0; PAGE];
        source
            .read_exact_at(&mut bytes, address - va)
            .expect("read");
        for (word, chunk) in page.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into().expect("8"));
        }
        let mut copy = [address, page.as_ptr().addr() as u64, PAGE as u64, 0, 0];
        assert!(
            control(uffd, UFFDIO_COPY, &mut copy),
            "{}",
            std::io::Error::last_os_error()
        );
        served.fetch_add(1, Ordering::Relaxed);
    }
}

fn start(path: &Path, incoming: bool) -> (SyntheticGuest, SyntheticClient) {
    let options = SyntheticOptions {
        socket: path.into(),
        ram_mib: 8,
        hot_mib: 2,
        rate: 5_000,
        incoming,
        ..SyntheticOptions::default()
    };
    let guest = SyntheticGuest::start(options).expect("start");
    (
        guest,
        SyntheticClient::connect(path, LIMIT).expect("connect"),
    )
}

/// Has every missing page of the block reported; false when this kernel cannot.
fn register(uffd: &File, va: u64, bytes: u64) -> bool {
    let mut api = [API, FEATURE_MISSING_SHMEM, 0];
    let mut register = [va, bytes, REGISTER_MODE_MISSING, 0];
    control(uffd, UFFDIO_API, &mut api) && control(uffd, UFFDIO_REGISTER, &mut register)
}

#[test]
fn a_guest_runs_on_pages_that_come_when_it_needs_them() {
    let folder = tempfile::tempdir().expect("folder");
    let (_a, mut from) = start(&folder.path().join("a"), false);
    let (_b, mut to) = start(&folder.path().join("b"), true);
    let Some(uffd) = to.userfaultfd() else {
        eprintln!("SKIPPED: this kernel gives no userfaultfd");
        return;
    };
    let mut uffd = File::from(uffd.try_clone_to_owned().expect("clone"));
    let (va, bytes) = (to.ram()[0].va, to.ram()[0].bytes);
    if !register(&uffd, va, bytes) {
        eprintln!("SKIPPED: userfaultfd: {}", std::io::Error::last_os_error());
        return;
    }
    from.pause().expect("pause");
    let (near, far) = UnixStream::pair().expect("pair");
    thread::scope(|scope| {
        let loading = scope.spawn(|| to.load(far.as_fd()));
        from.save(near.as_fd()).expect("save");
        drop(near);
        loading.join().expect("thread").expect("load");
    });
    let source = File::from(from.ram_descriptors()[0].try_clone().expect("clone"));

    // It runs and stands still in its first page; it still says how it is.
    to.resume().expect("resume");
    thread::sleep(Duration::from_millis(100));
    assert!(to.status().expect("status").running);

    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let after = thread::scope(|scope| {
        scope.spawn(|| serve(&mut uffd, va, &source, &stop, &served));
        let deadline = Instant::now() + LIMIT;
        let passes = to.status().expect("status").passes;
        let after = loop {
            let status = to.status().expect("status");
            if status.passes > passes + 1 || Instant::now() > deadline {
                break status;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let report = to.verify();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(report.expect("verify").bad, 0);
        after
    });
    assert!(after.bad == 0 && after.max_gap_ms >= 90, "{after:?}");
    assert_eq!(served.load(Ordering::Relaxed), bytes / PAGE as u64);
}
