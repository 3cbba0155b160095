//! An open device: `ibv_open_device`, `ibv_query_device`.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;

use rdma_sys::{___ibv_query_port, ibv_context, ibv_device_attr, ibv_port_attr, ibv_query_device};

use crate::owned::{Owned, result_of};
use crate::{DeviceList, PortInfo, RdmaError};

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

/// An open device. Whatever is made from it keeps it open.
#[derive(Debug)]
pub struct Context {
    context: Owned<ibv_context>,
    name: String,
    guid: u64,
}

impl Context {
    pub(crate) const fn owning(context: Owned<ibv_context>, name: String, guid: u64) -> Self {
        Self {
            context,
            name,
            guid,
        }
    }

    /// Opens the device of that name, such as `mlx5_0`.
    ///
    /// # Errors
    /// [`RdmaError::NoRdma`] when there is no device at all, [`RdmaError::NoSuchDevice`] when there are others,
    /// [`RdmaError::Open`] when it cannot be opened.
    pub fn open(name: &str) -> Result<Arc<Self>, RdmaError> {
        let list = DeviceList::get()?;
        let device = list.iter().find(|device| device.name() == name);
        let device = device.ok_or_else(|| RdmaError::NoSuchDevice {
            device: name.to_owned(),
        })?;
        device.open()
    }

    /// Returns the kernel's name of the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) const fn as_ptr(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }

    /// Asks the device for its limits and its ports.
    ///
    /// # Errors
    /// [`RdmaError::Query`] when it does not answer.
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
        let code = unsafe { ibv_query_device(self.as_ptr(), attributes.as_mut_ptr()) };
        self.check(code, || "attributes".to_owned())?;
        // SAFETY: plain integers, zeroed above, so every field is initialised whatever the driver
        // left out.
        Ok(unsafe { attributes.assume_init() })
    }

    /// Asks for one port; they count from 1.
    ///
    /// # Errors
    /// [`RdmaError::Query`] when there is no such port, or it does not answer.
    pub fn query_port(&self, number: u8) -> Result<PortInfo, RdmaError> {
        let mut attributes = MaybeUninit::<ibv_port_attr>::zeroed();
        // SAFETY: the context is open until `Drop`; `attributes` is zeroed, writable and of the size
        // that the call states.
        let code = unsafe { ___ibv_query_port(self.as_ptr(), number, attributes.as_mut_ptr()) };
        self.check(code, || format!("port {number}"))?;
        // SAFETY: plain integers, zeroed above, so every field is initialised whatever the driver
        // left out.
        Ok(PortInfo::of(number, &unsafe { attributes.assume_init() }))
    }

    /// Turns a code into an error that names what was asked for.
    pub(crate) fn check(&self, code: i32, what: impl FnOnce() -> String) -> Result<(), RdmaError> {
        result_of(code).map_err(|source: io::Error| RdmaError::Query {
            device: self.name.clone(),
            what: what(),
            source,
        })
    }
}
