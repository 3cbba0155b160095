//! Signals that this program hears, instead of being ended by them.

use std::io;
use std::task::Poll;

use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};

/// Handlers, not a blocked mask, which whatever is started would inherit: exec takes handlers away.
pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Hears these from now on. To be called in a runtime.
    ///
    /// # Errors
    /// From the system.
    pub(crate) fn listen(which: impl IntoIterator<Item = Signal>) -> io::Result<Self> {
        let listen = |signal: Signal| {
            let kind = SignalKind::from_raw(signal as i32);
            Ok((signal, unix::signal(kind)?))
        };
        which
            .into_iter()
            .map(listen)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The next one; never, where none is heard.
    pub(crate) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            let mut all = self.0.iter_mut();
            let heard = all
                .find_map(|(signal, heard)| heard.poll_recv(context).is_ready().then_some(*signal));
            heard.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Whether whoever started this program has it ignored, as `nohup` has SIGHUP.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or(0) >> (signal as i32 - 1) & 1 == 1
}
