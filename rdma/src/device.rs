//! The list of devices: `ibv_get_device_list`.

use std::ffi::CStr;
use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_close_device, ibv_device, ibv_free_device_list, ibv_get_device_guid, ibv_get_device_list,
    ibv_get_device_name, ibv_open_device,
};

use crate::owned::Owned;
use crate::{Context, RdmaError};

/// The devices of this node at one moment; not empty.
#[derive(Debug)]
pub struct DeviceList {
    start: NonNull<*mut ibv_device>,
    count: usize,
}

/// A device of a [`DeviceList`], which it borrows.
#[derive(Clone, Copy, Debug)]
pub struct Device<'list> {
    device: NonNull<ibv_device>,
    list: PhantomData<&'list DeviceList>,
}

impl DeviceList {
    /// Asks the system for its devices.
    ///
    /// # Errors
    /// [`RdmaError::NoRdma`] when the list is null (no driver at all) or empty.
    pub fn get() -> Result<Self, RdmaError> {
        let mut count = 0;
        // SAFETY: `count` is writable for the length of the call; null is handled below.
        let start = unsafe { ibv_get_device_list(&raw mut count) };
        let start = NonNull::new(start).ok_or(RdmaError::NoRdma)?;
        let list = Self {
            start,
            count: usize::try_from(count).unwrap_or(0),
        };
        if list.count == 0 {
            Err(RdmaError::NoRdma)
        } else {
            Ok(list)
        }
    }

    /// Returns the devices.
    pub fn iter(&self) -> impl Iterator<Item = Device<'_>> {
        let all = NonNull::slice_from_raw_parts(self.start, self.count);
        // SAFETY: `ibv_get_device_list` returned an array of `count` pointers that stays until
        // `ibv_free_device_list`, which only `Drop` calls; nobody writes to it.
        let all = unsafe { all.as_ref() };
        all.iter().filter_map(|device| {
            Some(Device {
                device: NonNull::new(*device)?,
                list: PhantomData,
            })
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the list came from `ibv_get_device_list` and is freed only here; no `Device`
        // outlives it. Contexts opened from it stay valid: they hold their own reference.
        unsafe { ibv_free_device_list(self.start.as_ptr()) };
    }
}

impl Device<'_> {
    /// Returns the kernel's name of the device, such as `mlx5_0`.
    pub fn name(&self) -> String {
        // SAFETY: the device is in a list that is alive.
        let name = unsafe { ibv_get_device_name(self.device.as_ptr()) };
        if name.is_null() {
            return String::new();
        }
        // SAFETY: not null; a terminated string inside the device, which outlives this call.
        unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned()
    }

    /// Returns the globally unique identifier of the device.
    pub fn guid(&self) -> u64 {
        // SAFETY: the device is in a list that is alive.
        u64::from_be(unsafe { ibv_get_device_guid(self.device.as_ptr()) })
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`RdmaError::Open`], mostly for lack of permission on `/dev/infiniband/uverbs*`.
    pub fn open(&self) -> Result<Arc<Context>, RdmaError> {
        // SAFETY: the device is in a list that is alive; null is handled below.
        let context = unsafe { ibv_open_device(self.device.as_ptr()) };
        // SAFETY: it was returned just now, and `ibv_close_device` is what closes it. It outlives the list: it holds its own
        // reference to the device.
        let context = unsafe { Owned::new(context, ibv_close_device, "context") };
        match context {
            Ok(context) => Ok(Arc::new(Context::owning(context, self.name(), self.guid()))),
            Err(_) => Err(RdmaError::Open {
                device: self.name(),
                source: io::Error::last_os_error(),
            }),
        }
    }
}
