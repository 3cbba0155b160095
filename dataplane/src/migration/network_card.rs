//! On which NUMA node the network card is that an address belongs to.

use std::net::IpAddr;
use std::path::Path;

use dwcp_numa::Topology;

/// Bridges on bonds on VLANs: deeper than that nobody stacks them.
const LAYERS_MAX: usize = 4;

/// The node of the card behind an address of this machine; `None` for loopback, for cards that are as
/// near to all, and for what lies on several.
pub(super) fn node_of_address(topology: &Topology, address: IpAddr) -> Option<usize> {
    let interface = interface_of(address)?;
    node_of_interface(
        topology,
        Path::new("/sys/class/net"),
        &interface,
        LAYERS_MAX,
    )
}

/// The interface that has an address.
fn interface_of(address: IpAddr) -> Option<String> {
    let mut interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let found = interfaces.find(|interface| {
        let Some(own) = &interface.address else {
            return false;
        };
        match address.to_canonical() {
            IpAddr::V4(address) => own.as_sockaddr_in().is_some_and(|own| own.ip() == address),
            IpAddr::V6(address) => own.as_sockaddr_in6().is_some_and(|own| own.ip() == address),
        }
    })?;
    Some(found.interface_name)
}

/// The node of an interface, or the one of all that it is made of: a bridge, a bond, a VLAN.
fn node_of_interface(
    topology: &Topology,
    folder: &Path,
    name: &str,
    layers: usize,
) -> Option<usize> {
    if let Some(node) = topology.node_of_device(name) {
        return Some(node);
    }
    let entries = std::fs::read_dir(folder.join(name)).ok()?;
    let mut below = entries.flatten().filter_map(|entry| {
        let entry = entry.file_name();
        Some(entry.to_str()?.strip_prefix("lower_")?.to_owned())
    });
    let layers = layers.checked_sub(1)?;
    let mut node_below = |name: String| node_of_interface(topology, folder, &name, layers);
    let node = below.next().and_then(&mut node_below)?;
    below
        .all(|name| node_below(name) == Some(node))
        .then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `eth0` and `eth1` near node 1, nothing near node 0.
    const SERVER: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../numa/tests/topologies/servers/supermicro-2x-xeon-e5-2650-2-nodes.xml"
    ));

    #[test]
    fn loopback_is_an_interface_without_a_card() {
        let name = interface_of("127.0.0.1".parse().unwrap());
        assert_eq!(name.as_deref(), Some("lo"));
        assert_eq!(interface_of("192.0.2.77".parse().unwrap()), None);
        let mapped = interface_of("::ffff:127.0.0.1".parse().unwrap());
        assert_eq!(mapped, name, "a listener on all addresses sees it so");
        let topology = Topology::from_xml(SERVER).unwrap();
        assert_eq!(
            node_of_address(&topology, "127.0.0.1".parse().unwrap()),
            None
        );
    }

    #[test]
    fn a_bridge_on_a_bond_is_where_its_cards_are() {
        let topology = Topology::from_xml(SERVER).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let lower = |of: &str, names: &[&str]| {
            for name in names {
                std::fs::create_dir_all(folder.path().join(of).join(format!("lower_{name}")))
                    .unwrap();
            }
        };
        lower("bond0", &["eth0", "eth1"]);
        lower("br0", &["bond0"]);
        // File systems list names in orders of their own: some of these come before the card's.
        for tap in 0..16 {
            lower(&format!("mixed{tap}"), &["eth0", &format!("tap{tap}")]);
        }
        lower("ring", &["ring"]);
        std::fs::create_dir_all(folder.path().join("tap0/queues")).unwrap();
        let node = |name: &str| node_of_interface(&topology, folder.path(), name, LAYERS_MAX);
        assert_eq!(node("eth1"), Some(1));
        assert_eq!(node("br0"), Some(1));
        for name in ["ring", "tap0", "gone"] {
            assert_eq!(node(name), None, "{name}");
        }
        for tap in 0..16 {
            assert_eq!(node(&format!("mixed{tap}")), None, "{tap}");
        }
    }
}
