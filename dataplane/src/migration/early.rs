//! Connections that are made while the destination considers the offer, before there is a token to say on
//! them: a round trip less until the first page, and another one where the way is long. There they shake hands for TLS at
//! once, too; else that waits for the control connection's tickets, which spare both ends a round of public-key cryptography.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use super::meter::Meter;
use super::peer::PeerError;
use crate::tls::Connection;

/// A connection that is there before it is known what for.
#[derive(Debug)]
pub(super) enum Early {
    /// It is still to be made secure, where that is wanted.
    Socket(TcpStream),
    /// It is what it is to be.
    Connection(Connection),
}

/// A connection, and what could not be set on its socket.
pub(super) type Dialled = (Early, Option<String>);

/// The way is long where a round trip takes so long.
pub(super) const LONG_WAY: Duration = Duration::from_millis(5);

/// The other side waits twice as long for the first words on a connection.
const AGE_MAX: Duration = Duration::from_secs(5);

/// So many at most: each takes one of the places that the other node has for who has yet to say something.
pub(super) const EARLY_MAX: u16 = 5;

/// Connections on their way.
#[derive(Debug, Default)]
pub(super) struct EarlyConnections(VecDeque<EarlyConnection>);

/// One of them.
#[derive(Debug)]
pub(super) struct EarlyConnection(Receiver<Result<(Dialled, Instant), PeerError>>);

impl EarlyConnections {
    /// Connects one more, on a thread of its own.
    pub(super) fn connect(
        &mut self,
        connect: impl FnOnce() -> Result<Dialled, PeerError> + Send + 'static,
        meter: &Arc<Meter>,
    ) {
        let meter = Arc::clone(meter);
        let (give, take) = sync_channel(1);
        let run = move || {
            let _helper = meter.helper();
            // Nobody takes it where fewer streams are granted.
            let _ = give.send(connect().map(|dialled| (dialled, Instant::now())));
        };
        let thread = std::thread::Builder::new().name("dwcp-dial".into());
        if thread.spawn(run).is_ok() {
            self.0.push_back(EarlyConnection(take));
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        !self.0.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<EarlyConnection> {
        self.0.pop_front()
    }
}

impl EarlyConnection {
    /// Waits for it. `None` when it failed, or when the other side may be about to give it up.
    pub(super) fn dialled(self) -> Option<Dialled> {
        let (dialled, at) = self.0.recv().ok()?.ok()?;
        (at.elapsed() < AGE_MAX).then_some(dialled)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn sockets_are_taken_in_the_order_in_which_they_were_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut early = EarlyConnections::default();
        for number in 0..3 {
            let connect = move || {
                let socket = TcpStream::connect(address)?;
                Ok((Early::Socket(socket), Some(number.to_string())))
            };
            early.connect(connect, &Arc::default());
        }
        for number in 0..3 {
            let (_, note) = early.take().unwrap().dialled().unwrap();
            assert_eq!(note, Some(number.to_string()));
        }
        assert!(early.take().is_none());
    }

    #[test]
    fn one_that_waited_long_or_failed_is_not_used() {
        let socket = |age: Duration| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (give, take) = sync_channel(1);
            let at = Instant::now().checked_sub(age).unwrap();
            give.send(Ok(((Early::Socket(stream), None), at))).unwrap();
            EarlyConnection(take).dialled()
        };
        assert!(socket(Duration::from_secs(1)).is_some());
        assert!(socket(AGE_MAX).is_none());
        let mut early = EarlyConnections::default();
        early.connect(|| Err(PeerError::Closed), &Arc::default());
        assert!(early.take().unwrap().dialled().is_none());
    }
}
