//! Workers: one thread, one transport and some streams each. They run the path to completion and
//! meet others only through [`Mailbox`]es, a few times a round.

mod adapting;
mod as_it_came;
mod busy_poll;
mod destination_worker;
mod found;
mod holes;
mod mailbox;
mod pace;
mod prove;
mod recycle;
mod send_stream;
mod session;
mod source_worker;
mod sweep;
mod waits;
mod wanted;
mod worker;

pub use as_it_came::AsItCame;
pub use destination_worker::{DestinationCommand, StreamRound, spawn_destination_worker};
pub use found::{FindError, Finder, Found, PageLibrary};
pub use holes::{count_zero, give_back};
pub use mailbox::{Mailbox, MailboxError};
pub use pace::Pace;
pub use prove::{Reread, read_again, read_everything, read_root};
pub use recycle::{NotWiped, keep_allocated, wipe_unknown};
pub use session::{Sealed, Session};
pub use source_worker::{SourceCommand, WorkerRound, spawn_source_worker};
pub use waits::{Waited, Waits};
pub use wanted::{Asker, Asking, NotAsked, Question, Taken, take_found};
pub use worker::{WorkerEvent, WorkerHandle, WorkerSettings};
