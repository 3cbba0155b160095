//! Drivers: they carry out what the protocol's machines ask for, one thread per migration and end.
//!
//! | file | what |
//! |---|---|
//! | `source.rs`, `source_actions.rs` | the source's driver |
//! | `destination.rs`, `destination_actions.rs`, `destination_rounds.rs` | the destination's |
//! | `node.rs`, `handle.rs`, `vms.rs` | what all migrations of a node share; how others see one; who has which VM to himself |
//! | `admission.rs`, `placement.rs`, `network_card.rs`, `room.rs` | when a migration may begin, where its workers run, whether it fits |
//! | `dial.rs`, `peer.rs`, `control_writer.rs` | connecting to another node; the control connection |
//! | `source_streams.rs`, `destination_streams.rs` | the further connections: made, given to workers, made anew |
//! | `secure.rs` | TLS or plain text |
//! | `source_rdma.rs`, `destination_rdma.rs` | whether streams are queue pairs |
//! | `relay.rs` | device state between the VMM and the other node |
//! | `reread.rs` | reading RAM again for the proof |
//! | `listener.rs` | who connects, and to which migration |
//! | `itself.rs` | whether the other node is this one |
//! | `recorder.rs`, `meter.rs` | rounds, the parts of the pause, bytes and CPU time, the report |
//! | `recovery.rs`, `doubt.rs` | what a restarted daemon finishes; a handover without an answer |
//! | `settle.rs`, `recall.rs` | what an operator decides about a half-done migration; the other node hears of it |
//! | `journal_scope.rs` | records of one migration |

mod admission;
mod baseline;
mod control_writer;
mod destination;
mod destination_actions;
mod destination_found;
mod destination_postcopy;
mod destination_rdma;
mod destination_rounds;
mod destination_streams;
mod dial;
mod doubt;
mod early;
mod eta;
mod handle;
mod itself;
mod journal_scope;
mod kept;
mod listener;
mod meter;
mod network_card;
mod node;
mod pause;
mod peer;
mod placement;
mod postcopy;
mod readers;
mod recall;
mod recorder;
mod recovery;
mod relay;
mod reread;
mod room;
mod secure;
mod seldom;
mod settle;
mod shares;
mod source;
mod source_actions;
mod source_asks;
mod source_dial;
mod source_forecast;
mod source_grants;
mod source_path;
mod source_paths;
mod source_postcopy;
mod source_prospect;
mod source_rdma;
mod source_replace;
mod source_rounds;
mod source_streams;
mod source_throttle;
mod stream_count;
mod vms;
mod vms_look;

pub use handle::MigrationHandle;
pub use listener::Listener;
pub use node::{Node, NodeError, NodeOptions, PeerNode};
pub use recovery::recover;
pub use source_path::probe_path;
