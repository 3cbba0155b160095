//! The machine as plain data, read by hwloc.

use std::path::Path;

use hwlocality::object::TopologyObject;
use hwlocality::object::attributes::ObjectAttributes;
use hwlocality::object::types::{OSDeviceType, ObjectType};
use hwlocality::topology::builder::{TopologyBuilder, TypeFilter};

/// Why a topology could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// hwloc could not configure or load the topology: bad XML, a bad description, or a system that
    /// does not show its processors.
    #[error("Cannot load the topology from {origin}")]
    Load {
        /// Where it was read from.
        origin: String,
        /// What hwloc said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A NUMA node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The operating system's number of the node.
    pub index: usize,
    /// Memory of the node in bytes; 0 when unknown.
    pub memory_bytes: u64,
    /// The CPUs (hardware threads) near it, ascending. Empty for a memory-only node.
    pub cpus: Vec<usize>,
}

/// A processor core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Core {
    /// Its hardware threads, ascending: more than one with SMT.
    pub cpus: Vec<usize>,
    /// The nearest NUMA node; of several kinds of memory, the one numbered first.
    pub node: Option<usize>,
    /// The socket.
    pub package: Option<usize>,
}

/// What a device is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// A network interface.
    Network,
    /// An RDMA device.
    Rdma,
    /// A disk.
    Storage,
    /// A PCI function, whatever it does.
    Pci,
    /// Something else that the operating system names.
    Other,
}

/// A device with a place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// The operating system's name (`eth0`, `mlx5_0`), or the PCI address (`0000:81:00.0`).
    pub name: String,
    /// What it is for.
    pub kind: DeviceKind,
    /// The nearest NUMA node; `None` when it is as near to all (or on a machine of one node, when
    /// the firmware does not say).
    pub node: Option<usize>,
}

/// NUMA nodes, cores and devices of one machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    nodes: Vec<Node>,
    cores: Vec<Core>,
    devices: Vec<Device>,
}

impl Topology {
    /// Reads the machine this runs on. CPUs that a control group forbids are left out.
    pub fn detect() -> Result<Self, TopologyError> {
        Self::load("this machine", Ok::<_, std::convert::Infallible>)
    }

    /// Reads hwloc's description of a made-up machine, such as `"pack:2 [numa] core:8 pu:2"`.
    pub fn from_synthetic(description: &str) -> Result<Self, TopologyError> {
        Self::load(description, |builder| builder.from_synthetic(description))
    }

    /// Reads an XML document that `lstopo` wrote on another machine.
    pub fn from_xml(xml: &str) -> Result<Self, TopologyError> {
        Self::load("XML", |builder| builder.from_xml(xml))
    }

    /// Reads an XML file that `lstopo` wrote on another machine.
    pub fn from_xml_file(path: &Path) -> Result<Self, TopologyError> {
        let origin = path.display().to_string();
        // Read here: the hwloc binding panics on a file that does not exist.
        let xml = std::fs::read_to_string(path).map_err(|error| TopologyError::Load {
            origin: origin.clone(),
            source: error.into(),
        })?;
        Self::load(&origin, |builder| builder.from_xml(&xml))
    }

    /// Returns the NUMA nodes by index; at least one.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the cores in hwloc's order: neighbours share the most.
    pub fn cores(&self) -> &[Core] {
        &self.cores
    }

    /// Returns the devices with a place, in bus order.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Returns the node with this index.
    pub fn node(&self, index: usize) -> Option<&Node> {
        self.nodes.iter().find(|node| node.index == index)
    }

    /// Returns the core that has `cpu` as a hardware thread.
    pub fn core_of_cpu(&self, cpu: usize) -> Option<&Core> {
        self.cores.iter().find(|core| core.cpus.contains(&cpu))
    }

    /// Returns the node nearest to `cpu`.
    pub fn node_of_cpu(&self, cpu: usize) -> Option<usize> {
        self.core_of_cpu(cpu)?.node
    }

    /// Returns the node nearest to a device: by its name, or by its PCI address.
    pub fn node_of_device(&self, name: &str) -> Option<usize> {
        self.devices.iter().find(|device| device.name == name)?.node
    }

    /// Returns the topology with only these CPUs: what is left to a process of limited affinity.
    /// Nodes stay (their memory is still there), cores without CPUs go.
    pub fn restricted_to(&self, cpus: &[usize]) -> Self {
        let keep = |from: &[usize]| {
            from.iter()
                .copied()
                .filter(|cpu| cpus.contains(cpu))
                .collect()
        };
        let mut restricted = self.clone();
        for node in &mut restricted.nodes {
            node.cpus = keep(&node.cpus);
        }
        for core in &mut restricted.cores {
            core.cpus = keep(&core.cpus);
        }
        restricted.cores.retain(|core| !core.cpus.is_empty());
        restricted
    }

    fn load<E: std::error::Error + Send + Sync + 'static>(
        origin: &str,
        configure: impl FnOnce(TopologyBuilder) -> Result<TopologyBuilder, E>,
    ) -> Result<Self, TopologyError> {
        let failed = |source| TopologyError::Load {
            origin: origin.to_owned(),
            source,
        };
        let builder = configure(TopologyBuilder::new()).map_err(|error| failed(error.into()))?;
        let builder = builder
            .with_io_type_filter(TypeFilter::KeepImportant)
            .map_err(|error| failed(error.into()))?;
        let hwloc = builder.build().map_err(|error| failed(error.into()))?;
        Ok(Self::read(&hwloc))
    }

    fn read(hwloc: &hwlocality::Topology) -> Self {
        let mut nodes: Vec<Node> = hwloc
            .objects_with_type(ObjectType::NUMANode)
            .map(read_node)
            .collect();
        nodes.sort_by_key(|node| node.index);
        let mut cores: Vec<Core> = hwloc
            .objects_with_type(ObjectType::Core)
            .map(read_core)
            .collect();
        if cores.is_empty() {
            // Some virtual machines show hardware threads only.
            cores = hwloc
                .objects_with_type(ObjectType::PU)
                .map(read_core)
                .collect();
        }
        cores.retain(|core| !core.cpus.is_empty());
        let devices = hwloc.io_objects().filter_map(read_device).collect();
        Self {
            nodes,
            cores,
            devices,
        }
    }
}

fn cpus_of(object: &TopologyObject) -> Vec<usize> {
    object
        .cpuset()
        .map(|set| set.iter_set().map(usize::from).collect())
        .unwrap_or_default()
}

/// Returns the only node an object is near to; `None` when there are several.
fn node_of(object: &TopologyObject) -> Option<usize> {
    let nodes = object.nodeset()?;
    let mut indexes = nodes.iter_set().map(usize::from);
    let first = indexes.next();
    if indexes.next().is_some() {
        None
    } else {
        first
    }
}

fn read_node(object: &TopologyObject) -> Node {
    let memory_bytes = match object.attributes() {
        Some(ObjectAttributes::NUMANode(node)) => {
            node.local_memory().map_or(0, |bytes| bytes.get())
        }
        _ => 0,
    };
    let index = object.os_index().unwrap_or_else(|| object.logical_index());
    Node {
        index,
        memory_bytes,
        cpus: cpus_of(object),
    }
}

fn read_core(object: &TopologyObject) -> Core {
    let package = object.first_ancestor_with_type(ObjectType::Package);
    let package = package.and_then(TopologyObject::os_index);
    // A core has several nodes where there are several kinds of memory: the ordinary one comes first.
    let nodes = object.nodeset();
    let node = nodes.and_then(|nodes| nodes.first_set().map(usize::from));
    Core {
        cpus: cpus_of(object),
        node,
        package,
    }
}

fn read_device(object: &TopologyObject) -> Option<Device> {
    let (name, kind) = match object.attributes()? {
        ObjectAttributes::OSDevice(device) => {
            let kind = match device.device_type() {
                OSDeviceType::Network => DeviceKind::Network,
                OSDeviceType::OpenFabrics => DeviceKind::Rdma,
                OSDeviceType::Storage => DeviceKind::Storage,
                _ => DeviceKind::Other,
            };
            (object.name()?.to_string_lossy().into_owned(), kind)
        }
        ObjectAttributes::PCIDevice(pci) => {
            let (domain, bus) = (pci.domain(), pci.bus_id());
            let (slot, function) = (pci.bus_device(), pci.function());
            (
                format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"),
                DeviceKind::Pci,
            )
        }
        _ => return None,
    };
    Some(Device {
        name,
        kind,
        node: object.first_non_io_ancestor().and_then(node_of),
    })
}
