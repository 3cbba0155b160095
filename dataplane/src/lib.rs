//! The data plane: moves guest memory between nodes.
//!
//! ```text
//!            control socket                      other nodes
//!                  │                                  │
//!   control ─► migration (drivers, one thread each) ◄─┘
//!                  │ runs dwcp_proto's machines
//!               engine (workers: one ring and some streams each)
//!                  │ run to completion
//!   vmm ◄──────► path: source classify encode frame stream | receive decode apply
//!                  │
//!               ram, transport
//! ```
//! Follow one page through [`path`], one migration through [`migration`].

pub mod control;
mod cpu_time;
pub mod doctor;
pub mod engine;
pub mod migration;
pub mod path;
pub mod ram;
pub mod store;
pub mod tls;
pub mod transport;
pub mod vmm;
