//! Discovery on this machine, with or without a device.

use dwcp_rdma::{DeviceList, RdmaError, devices};

#[test]
fn devices_are_described_or_their_absence_is_said() {
    match devices() {
        Ok(devices) => {
            println!("found {} RDMA devices", devices.len());
            for device in devices {
                println!("{device:?}");
                assert!(!device.name.is_empty());
                assert!(
                    device.max_qp > 0 && device.max_mr_size > 0,
                    "{}",
                    device.name
                );
                assert!(!device.ports.is_empty(), "{}", device.name);
            }
        }
        Err(error) => {
            assert!(error.is_absence(), "{error}");
            assert!(matches!(error, RdmaError::NoRdma));
            assert_eq!(error.to_string(), "no RDMA device on this node");
            println!("skipped: no RDMA device");
        }
    }
}

#[test]
fn asking_twice_is_harmless() {
    let first = DeviceList::get().map(|list| list.iter().count()).ok();
    let second = DeviceList::get().map(|list| list.iter().count()).ok();
    assert_eq!(first, second);
}
