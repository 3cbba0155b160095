//! Signals that would end the program while a link is half up, or up: held until it can be taken down.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::thread;

use dwcp_wan::link::{self, LinkName};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};

/// Signals that are not delivered, but read here.
#[derive(Debug)]
pub(crate) struct Held {
    signals: SignalFd,
    ending: SigSet,
}

impl Held {
    /// Holds them from now on. To be called before any thread is started.
    pub(crate) fn hold() -> io::Result<Self> {
        let ending = [
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGHUP,
        ];
        let ending: SigSet = ending.into_iter().collect();
        let mut held = ending;
        held.add(Signal::SIGCHLD);
        held.thread_block()?;
        let signals = SignalFd::with_flags(&held, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { signals, ending })
    }

    /// The next one.
    pub(crate) fn next(&self) -> io::Result<Option<siginfo>> {
        Ok(self.signals.read_signal()?)
    }

    /// Number of one that has come and would have ended the program.
    pub(crate) fn pending(&self) -> io::Result<Option<u8>> {
        while let Some(info) = self.next()? {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                return Ok(Some(number(&info)));
            }
        }
        Ok(None)
    }

    /// From now on, one of them takes the link down and ends the program.
    pub(crate) fn end_with(&self, name: &LinkName) {
        let (ending, name) = (self.ending, name.clone());
        thread::spawn(move || {
            let signal = ending.wait().unwrap_or(Signal::SIGTERM);
            if let Err(error) = link::down(&name) {
                eprintln!("dwcp-wan: {error}");
            }
            exit(128 + signal as i32);
        });
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// Numbers of signals are below 65.
pub(crate) fn number(info: &siginfo) -> u8 {
    u8::try_from(info.ssi_signo).unwrap_or_default()
}

/// Lets a program start with no signal held.
pub(crate) fn release_in(command: &mut Command) {
    let release = || Ok(SigSet::empty().thread_set_mask()?);
    // SAFETY: between fork and exec only `pthread_sigmask` is called, which is async-signal-safe, on a
    // set on the stack; nothing is allocated.
    unsafe { command.pre_exec(release) };
}
