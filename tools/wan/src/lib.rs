//! A link between two network namespaces of this machine, as slow, long and lossy as asked: for
//! kernels without `netem`.
//!
//! | file | what |
//! |---|---|
//! | `units.rs` | quantities as people write them: `100mbit`, `50ms`, `0.1%`, `256KiB` |
//! | `params.rs` | what a link is asked to be |
//! | `trace.rs` | a rate that changes over time, from a CSV file |
//! | `draws.rs` | the seeded decisions |
//! | `model.rs` | a packet in, the time of its arrival or the reason of its loss out; no clock, no I/O |
//! | `superframe.rs` | what the kernel leaves unsegmented, taken apart where its segments part |
//! | `delay_line.rs` | packets on their way |
//! | `tun.rs`, `emulator.rs` | the two devices, and the loop between them |
//! | `control.rs` | how a running emulator is asked and told |
//! | `namespace.rs`, `process.rs`, `link.rs` | namespaces, the process, state files: up, down, what there is |
//! | `needs.rs` | what the machine must have |
//! | `traffic.rs` | probes and transfers through a link |

pub mod control;
mod delay_line;
mod draws;
pub mod emulator;
pub mod link;
pub mod model;
pub mod namespace;
pub mod needs;
pub mod params;
pub mod process;
mod superframe;
pub mod trace;
pub mod traffic;
mod tun;
pub mod units;
