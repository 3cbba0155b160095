//! An open device: `ibv_open_device`, `ibv_query_device`.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use rdma_sys::{
    ___ibv_query_port, ibv_close_device, ibv_context, ibv_device_attr, ibv_port_attr,
    ibv_query_device,
};

use crate::{PortInfo, RdmaError};

/// What a device says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// The kernel's name, such as `mlx5_0`.
    pub name: String,
    /// The globally unique identifier.
    pub guid: u64,
    /// The firmware's version.
    pub firmware: String,
    /// The largest number of queue pairs.
    pub max_qp: u32,
    /// The largest number of outstanding work requests on a queue.
    pub max_qp_wr: u32,
    /// The largest number of memory regions.
    pub max_mr: u32,
    /// The largest memory region, in bytes.
    pub max_mr_size: u64,
    /// Its ports, by number from 1.
    pub ports: Vec<PortInfo>,
}

/// An open device.
#[derive(Debug)]
pub struct Context {
    context: NonNull<ibv_context>,
    name: String,
    guid: u64,
}

// SAFETY: verbs objects may be used and closed by any thread (libibverbs is thread-safe); the
// context is not bound to the thread that opened it.
unsafe impl Send for Context {}

impl Context {
    /// Takes ownership of `context`, which `ibv_open_device` must just have returned.
    pub(crate) fn owning(context: NonNull<ibv_context>, name: String, guid: u64) -> Self {
        Self {
            context,
            name,
            guid,
        }
    }

    /// Asks the device for its limits and its ports.
    pub fn info(&self) -> Result<DeviceInfo, RdmaError> {
        let attributes = self.query_device()?;
        let numbers = 1..=attributes.phys_port_cnt;
        let ports = numbers
            .map(|number| self.query_port(number))
            .collect::<Result<_, _>>()?;
        let firmware = attributes.fw_ver.iter().map(|byte| *byte as u8);
        let firmware: Vec<u8> = firmware.take_while(|byte| *byte != 0).collect();
        let limit = |value: i32| u32::try_from(value).unwrap_or(0);
        Ok(DeviceInfo {
            name: self.name.clone(),
            guid: self.guid,
            firmware: String::from_utf8_lossy(&firmware).into_owned(),
            max_qp: limit(attributes.max_qp),
            max_qp_wr: limit(attributes.max_qp_wr),
            max_mr: limit(attributes.max_mr),
            max_mr_size: attributes.max_mr_size,
            ports,
        })
    }

    fn query_device(&self) -> Result<ibv_device_attr, RdmaError> {
        let mut attributes = MaybeUninit::<ibv_device_attr>::zeroed();
        // SAFETY: the context is open until `Drop`; `attributes` is writable and of the right size.
        let code = unsafe { ibv_query_device(self.context.as_ptr(), attributes.as_mut_ptr()) };
        self.check(code, || "attributes".to_owned())?;
        // SAFETY: plain integers, zeroed above, so every field is initialised whatever the driver
        // left out.
        Ok(unsafe { attributes.assume_init() })
    }

    fn query_port(&self, number: u8) -> Result<PortInfo, RdmaError> {
        let mut attributes = MaybeUninit::<ibv_port_attr>::zeroed();
        // SAFETY: the context is open until `Drop`; `attributes` is zeroed, writable and of the size
        // that the call states.
        let code =
            unsafe { ___ibv_query_port(self.context.as_ptr(), number, attributes.as_mut_ptr()) };
        self.check(code, || format!("port {number}"))?;
        // SAFETY: plain integers, zeroed above, so every field is initialised whatever the driver
        // left out.
        Ok(PortInfo::of(number, &unsafe { attributes.assume_init() }))
    }

    /// Verbs return an error number, or a negative one.
    fn check(&self, code: i32, what: impl FnOnce() -> String) -> Result<(), RdmaError> {
        if code == 0 {
            return Ok(());
        }
        let source = io::Error::from_raw_os_error(code.saturating_abs());
        Err(RdmaError::Query {
            device: self.name.clone(),
            what: what(),
            source,
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `ibv_open_device` returned the context and it is closed only here; nothing made
        // from it exists (this crate makes nothing from it yet).
        unsafe { ibv_close_device(self.context.as_ptr()) };
    }
}
