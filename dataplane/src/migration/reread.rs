//! Reading RAM again without going silent: a driver that reads for seconds sends no heartbeat, and its
//! peer gives it up.

use std::sync::Arc;

use dwcp_api::Verify;

use super::meter::Meter;
use crate::engine::{Reread, Session, read_again, read_everything};

/// Pages that are read in a few milliseconds: less than a thread is worth.
const PAGES_AT_ONCE: u32 = 16 * 1024;

/// Reads what `verify` asks for. Little is read at once, and `Some`; more on a thread of its own, that
/// calls `done`.
pub(super) fn reread(
    session: &Arc<Session>,
    verify: Verify,
    sample_pages: u32,
    turn: u64,
    meter: &Arc<Meter>,
    done: impl FnOnce(Reread) + Send + 'static,
) -> Option<Reread> {
    let (of, meter) = (Arc::clone(session), Arc::clone(meter));
    let read = move |session: &Session| match verify {
        Verify::Full => read_everything(session),
        Verify::Sample => read_again(session, sample_pages, turn),
    };
    if verify == Verify::Sample && sample_pages <= PAGES_AT_ONCE {
        return Some(read(session));
    }
    let on_thread = move || {
        let _helper = meter.helper();
        done(read(&of));
    };
    let thread = std::thread::Builder::new().name("dwcp-reread".into());
    // Without a thread it takes as long here, and the peer may lose patience.
    thread.spawn(on_thread).err().map(|_| read(session))
}
