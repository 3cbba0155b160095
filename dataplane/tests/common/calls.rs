//! Every system call of some processes, counted by thread and by name (ptrace).

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Calls by number.
pub(crate) type Counts = BTreeMap<i64, u64>;

/// A thread that has ended: its name, and what it called.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    pub(crate) thread: String,
    pub(crate) calls: Counts,
}

/// Counts until the processes end.
pub(crate) struct Tracer {
    thread: JoinHandle<Vec<Counted>>,
}

impl Tracer {
    /// Counts the calls of all threads of `processes`, those included that they start from now on.
    ///
    /// # Errors
    /// Why the system does not permit it.
    pub(crate) fn start(processes: Vec<Pid>) -> Result<Self, Errno> {
        let (tell, hear) = mpsc::channel();
        // Only the thread that seized may trace.
        let thread = std::thread::spawn(move || {
            let seized = processes.into_iter().try_for_each(seize_all);
            let permitted = seized.is_ok();
            tell.send(seized).unwrap();
            if permitted { count() } else { vec![] }
        });
        hear.recv().unwrap()?;
        Ok(Self { thread })
    }

    /// The threads, once all processes have ended.
    pub(crate) fn finish(self) -> Vec<Counted> {
        self.thread.join().unwrap()
    }
}

/// Threads that are started meanwhile are found by the next look, or were started by a traced one.
fn seize_all(process: Pid) -> Result<(), Errno> {
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXIT;
    let mut seized = vec![];
    loop {
        let before = seized.len();
        let folder = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        for thread in folder {
            let name = thread.unwrap().file_name();
            let thread = Pid::from_raw(name.to_string_lossy().parse().unwrap());
            if !seized.contains(&thread) {
                // Later looks may find threads that are traced already, by their starter's option.
                match ptrace::seize(thread, options) {
                    Err(errno) if before == 0 => return Err(errno),
                    _ => seized.push(thread),
                }
                // A seized thread goes on; calls are reported after it has stopped once.
                let _ = ptrace::interrupt(thread);
            }
        }
        if seized.len() == before {
            return Ok(());
        }
    }
}

fn count() -> Vec<Counted> {
    let mut running: BTreeMap<Pid, Counts> = BTreeMap::new();
    let mut ended = vec![];
    loop {
        // Children of other threads are not ours to wait for.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let (thread, signal) = match waitpid(Pid::from_raw(-1), Some(flags)) {
            Err(Errno::ECHILD) => return ended,
            Err(Errno::EINTR) => continue,
            Err(errno) => panic!("waitpid: {errno}"),
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                if let Some(number) = entered(thread) {
                    *running
                        .entry(thread)
                        .or_default()
                        .entry(number)
                        .or_default() += 1;
                }
                (thread, None)
            }
            Ok(WaitStatus::PtraceEvent(thread, _, event)) => {
                if event == Event::PTRACE_EVENT_EXIT as i32 {
                    ended.push(Counted {
                        thread: name(thread),
                        calls: running.remove(&thread).unwrap_or_default(),
                    });
                }
                (thread, None)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(_) => continue,
        };
        // It may have been killed meanwhile; then its end is the next thing that is heard.
        let _ = ptrace::syscall(thread, signal);
    }
}

/// The number of the call that the thread has just entered; `None` when it comes out of one.
fn entered(thread: Pid) -> Option<i64> {
    let stop = ptrace::syscall_info(thread).ok()?;
    let is_entry = stop.op == libc::PTRACE_SYSCALL_INFO_ENTRY;
    let registers = is_entry.then(|| ptrace::getregs(thread).ok()).flatten()?;
    Some(registers.orig_rax as i64)
}

fn name(thread: Pid) -> String {
    let name = std::fs::read_to_string(format!("/proc/{thread}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

/// Name of a call. Those that no worker makes have their number only.
pub(crate) fn call_name(number: i64) -> String {
    let known = [
        (libc::SYS_io_uring_setup, "io_uring_setup"),
        (libc::SYS_io_uring_enter, "io_uring_enter"),
        (libc::SYS_io_uring_register, "io_uring_register"),
        (libc::SYS_vmsplice, "vmsplice"),
        (libc::SYS_splice, "splice"),
        (libc::SYS_sendfile, "sendfile"),
        (libc::SYS_sendmsg, "sendmsg"),
        (libc::SYS_sendto, "sendto"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_recvfrom, "recvfrom"),
        (libc::SYS_read, "read"),
        (libc::SYS_readv, "readv"),
        (libc::SYS_write, "write"),
        (libc::SYS_writev, "writev"),
        (libc::SYS_poll, "poll"),
        (libc::SYS_ppoll, "ppoll"),
        (libc::SYS_epoll_wait, "epoll_wait"),
        (libc::SYS_futex, "futex"),
        (libc::SYS_madvise, "madvise"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_munmap, "munmap"),
        (libc::SYS_mprotect, "mprotect"),
        (libc::SYS_brk, "brk"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_close, "close"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_pipe2, "pipe2"),
        (libc::SYS_setsockopt, "setsockopt"),
        (libc::SYS_getsockopt, "getsockopt"),
        (libc::SYS_getsockname, "getsockname"),
        (libc::SYS_shutdown, "shutdown"),
        (libc::SYS_fallocate, "fallocate"),
        (libc::SYS_clock_gettime, "clock_gettime"),
        (libc::SYS_getpid, "getpid"),
        (libc::SYS_gettid, "gettid"),
        (libc::SYS_getrusage, "getrusage"),
        (libc::SYS_prctl, "prctl"),
        (libc::SYS_sched_yield, "sched_yield"),
        (libc::SYS_sched_getaffinity, "sched_getaffinity"),
        (libc::SYS_sched_setaffinity, "sched_setaffinity"),
        (libc::SYS_set_robust_list, "set_robust_list"),
        (libc::SYS_rseq, "rseq"),
        (libc::SYS_rt_sigprocmask, "rt_sigprocmask"),
        (libc::SYS_sigaltstack, "sigaltstack"),
        (libc::SYS_exit, "exit"),
    ];
    let known = known.into_iter().find(|(at, _)| *at == number);
    known.map_or_else(|| format!("call {number}"), |(_, name)| name.into())
}
