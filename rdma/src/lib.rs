//! RDMA verbs, each object under its own name. So far: which devices this node has.
//!
//! | object | file | made from | released by |
//! |---|---|---|---|
//! | [`DeviceList`] | `device.rs` | the system | `ibv_free_device_list` |
//! | [`Context`] | `context.rs` | a device of the list | `ibv_close_device` |
//!
//! A node without RDMA is normal: that is [`RdmaError::NoRdma`], never a crash. See
//! `ibv_get_device_list(3)`, `ibv_open_device(3)`, `ibv_query_device(3)`, `ibv_query_port(3)`.

mod context;
mod device;
mod error;
mod port;

pub use context::{Context, DeviceInfo};
pub use device::{Device, DeviceList};
pub use error::RdmaError;
pub use port::{LinkLayer, PortInfo, PortState};

/// Returns what is known of every RDMA device of this node.
///
/// # Errors
/// [`RdmaError::NoRdma`] when there is none; the first device that cannot be asked ends the search.
pub fn devices() -> Result<Vec<DeviceInfo>, RdmaError> {
    let list = DeviceList::get()?;
    list.iter().map(|device| device.open()?.info()).collect()
}
