//! Workers, work and RAM on several NUMA nodes, with the kernel as the witness.
//!
//! The machine that tests run on mostly has one node. So this program packs itself into Linux guests of
//! two and four nodes, runs [`on_this_machine`] in them, and reads what it says on the serial port:
//! ```text
//! DWCP NUMA {"nodes":2,"cards":[1],"workers":4,…}
//! ```

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use common::{TwoNodes, busy, settings, wait};
use dwcp_api::{
    Codec, IoPath, KernelTlsChoice, MigrationId, RunResult, SendChoice, TransferSettings,
};
use dwcp_dataplane::engine::{
    Mailbox, Session, WorkerEvent, WorkerSettings, spawn_destination_worker, spawn_source_worker,
};
use dwcp_dataplane::path::{Lanes, RoundWork};
use dwcp_dataplane::ram::{RamBlock, RamLayout, RamNodes};
use dwcp_dataplane::transport::Stock;
use dwcp_numa::{Topology, WorkerWish, nodes_of_pages};
use dwcp_testbed::guests::{Backend, GuestError, Program, QemuGuest, qemu_binary};
use dwcp_testbed::synthetic::SyntheticOptions;
use serde::{Deserialize, Serialize};

const LIMIT: Duration = Duration::from_secs(240);
const MARK: &str = "DWCP NUMA ";

/// What was seen; `away` is on another node than it should be.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Findings {
    nodes: usize,
    /// Nodes of the network cards.
    cards: Vec<usize>,
    /// Workers of each end that were looked at.
    workers: usize,
    buffer_pages: u64,
    buffer_pages_away: u64,
    /// Pages that workers took from the lane of their node, and from others.
    near: u64,
    helped: u64,
    /// Pages of a lane that do not lie on its node.
    lane_away: u64,
    /// Of a real migration, by its report.
    moved: u64,
    moved_away: u64,
    /// Pages at the destination.
    arrived: u64,
    arrived_away: u64,
}

#[test]
fn in_a_guest_of_two_nodes() {
    in_a_guest(2, "4,sockets=2,cores=2", 640);
}

#[test]
fn in_a_guest_of_four_nodes() {
    in_a_guest(4, "4,sockets=4,cores=1", 1024);
}

fn in_a_guest(nodes: usize, processors: &str, memory_mib: u64) {
    let version = Command::new(qemu_binary())
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if version.is_err() {
        return eprintln!("SKIPPED: no QEMU; run tools/setup or set DWCP_QEMU");
    }
    let folder = tempfile::tempdir().unwrap();
    let own = std::env::current_exe().unwrap();
    let program = Program::new(
        own,
        ["--exact", "on_this_machine", "--ignored", "--nocapture"],
    );
    // A bus of its own, near the last node, with a network card on it.
    let last = nodes - 1;
    let bus = format!("pxb-pcie,id=far,bus_nr=64,numa_node={last},bus=pcie.0");
    let port = "pcie-root-port,id=farport,bus=far,chassis=1";
    let card = "virtio-net-pci,bus=farport,romfile=";
    let guest = QemuGuest::builder(&format!("numa{nodes}"), folder.path())
        .program(program)
        .memory_mib(memory_mib)
        .backend(Backend::Nodes(vec!["/dev/shm".into(); nodes]))
        .args(["-smp", processors])
        .args(["-device", &bus, "-device", port, "-device", card]);
    let mut guest = match guest.spawn() {
        Err(GuestError::NoImage { what, hint }) => {
            return eprintln!("SKIPPED: no {what}: {hint}");
        }
        guest => guest.unwrap(),
    };
    let code = guest.wait_exit(LIMIT);
    let said = guest.serial().text();
    println!("{said}");
    assert_eq!(code.unwrap(), 0, "it failed in the guest: {said}");
    let line = said.lines().find_map(|line| line.split_once(MARK));
    let found: Findings = serde_json::from_str(line.expect("no verdict").1).unwrap();
    let shape = (found.nodes, found.workers, &found.cards[..]);
    assert_eq!(shape, (nodes, 2 * nodes, &[last][..]), "{found:?}");
    found.check();
}

impl Findings {
    fn check(&self) {
        assert!(self.buffer_pages > 0 && self.near > 0 && self.moved > 0 && self.arrived > 0);
        let away = (self.buffer_pages_away, self.lane_away, self.arrived_away);
        assert_eq!(away, (0, 0, 0), "{self:?}");
        // A worker that stands still all the time would have all of its pages read by others.
        // Without lanes, of four nodes three quarters would be.
        assert!(self.moved_away * 2 < self.moved, "{self:?}");
    }
}

#[test]
#[ignore = "for a machine of several NUMA nodes: the others run it in guests"]
fn on_this_machine() {
    let topology = Topology::detect().unwrap();
    let nodes: Vec<usize> = topology.nodes().iter().map(|node| node.index).collect();
    if nodes.len() < 2 {
        return eprintln!("SKIPPED: this machine has one NUMA node");
    }
    let mut found = Findings {
        nodes: nodes.len(),
        ..Findings::default()
    };
    look_at_cards(&topology, &mut found);
    look_at_workers(&topology, &mut found);
    let settings = TransferSettings {
        streams: nodes.len() as u16,
        pin_workers: true,
        busy_poll_us: 0,
        bandwidth_limit_mbit: 0,
        follow_path: false,
        ..settings()
    };
    // At the destination in the other order: its own policy decides there.
    let reversed: Vec<usize> = nodes.iter().rev().copied().collect();
    let two = TwoNodes::start(&settings, |incoming| SyntheticOptions {
        nodes: if incoming {
            reversed.clone()
        } else {
            nodes.clone()
        },
        ..busy(incoming)
    });
    look_at_lanes(&topology, &ram_of(&two.old), &nodes, &mut found);
    move_it(&two, &settings, &mut found);
    look_at_arrival(&ram_of(&two.new), &reversed, &mut found);
    println!("{MARK}{}", serde_json::to_string(&found).unwrap());
    found.check();
}

/// RAM of a guest, mapped once more.
fn ram_of(guest: &common::TestGuest) -> RamLayout {
    let client = guest.client();
    let blocks = client.ram().iter().zip(client.ram_descriptors());
    let blocks = blocks.map(|(block, file)| {
        let file = file.try_clone().unwrap();
        RamBlock::map(block.name.clone(), file, block.bytes, block.va).unwrap()
    });
    RamLayout::new(blocks.collect()).unwrap()
}

/// Network cards are found near the node that the kernel says; workers go there while nothing is known
/// of the memory.
fn look_at_cards(topology: &Topology, found: &mut Findings) {
    for device in fs::read_dir("/sys/bus/pci/devices").unwrap() {
        let device = device.unwrap();
        let read = |name| fs::read_to_string(device.path().join(name)).unwrap();
        // -1 where the firmware does not say.
        let Ok(node) = read("numa_node").trim().parse::<usize>() else {
            continue;
        };
        if !read("class").starts_with("0x02") {
            continue;
        }
        let address = device.file_name().into_string().unwrap();
        let device_node = topology.node_of_device(&address);
        assert_eq!(device_node, Some(node), "{address}");
        let plan = topology.plan_workers(&WorkerWish {
            count: 1,
            ram: &[],
            device_node,
        });
        assert_eq!(plan.workers[0].node, Some(node), "{}", plan.why);
        found.cards.push(node);
    }
}

/// Starts a worker of each end for every node; their threads and buffers are where they should be.
fn look_at_workers(topology: &Topology, found: &mut Findings) {
    for node in topology.nodes() {
        let near = topology
            .cores()
            .iter()
            .find(|core| core.node == Some(node.index));
        let cpu = near.expect("each node has a core").cpus[0];
        let settings = WorkerSettings {
            index: node.index,
            io: IoPath::Auto,
            send: SendChoice::Auto,
            cpu: Some(cpu),
            node: Some(node.index),
            stock: Stock::default(),
            streams: 2,
            sealed: false,
            kernel_tls: KernelTlsChoice::Off,
            shuffles: false,
            rdma: None,
            streams_in_all: 2,
            window_bytes: 1 << 20,
            stream_window_bytes: 1 << 20,
            ack_bytes: 1 << 16,
            busy_poll: Duration::ZERO,
        };
        let session = Arc::new(Session::new(common::line::ram(&[64]), 1, Codec::Raw));
        let events: Mailbox<WorkerEvent> = Mailbox::new().unwrap();
        let source =
            spawn_source_worker(settings.clone(), Arc::clone(&session), events.clone()).unwrap();
        started(&events);
        look_at_buffers(&format!("dwcp-send-{}", node.index), cpu, node.index, found);
        drop(source);
        let destination = spawn_destination_worker(&settings, session, events.clone()).unwrap();
        started(&events);
        look_at_buffers(&format!("dwcp-recv-{}", node.index), cpu, node.index, found);
        drop(destination);
    }
}

fn started(events: &Mailbox<WorkerEvent>) {
    let event = events.wait(Duration::from_secs(60));
    assert!(
        matches!(event, Some(WorkerEvent::Started { .. })),
        "{event:?}"
    );
}

/// By the kernel's list of this process' memory: what prefers `node` lies there. Nothing but the
/// worker's buffers has such a wish.
fn look_at_buffers(thread: &str, cpu: usize, node: usize, found: &mut Findings) {
    let allowed = fs::read_dir("/proc/self/task").unwrap().find_map(|task| {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        (name.trim() == thread).then(|| fs::read_to_string(task.join("status")).unwrap())
    });
    let allowed = allowed.expect("the worker's thread is there");
    let list = allowed
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    assert_eq!(list.unwrap().trim(), cpu.to_string(), "{thread}");
    let wish = format!("prefer:{node}");
    let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
    let buffers: Vec<&str> = maps
        .lines()
        .filter(|line| line.split(' ').any(|word| word == wish))
        .collect();
    assert!(
        !buffers.is_empty(),
        "no memory of {thread} prefers node {node}:\n{maps}"
    );
    for word in buffers.iter().flat_map(|line| line.split(' ')) {
        let Some((on, pages)) = word.strip_prefix('N').and_then(|word| word.split_once('=')) else {
            continue;
        };
        let pages: u64 = pages.parse().unwrap();
        found.buffer_pages += pages;
        if on.parse() != Ok(node) {
            found.buffer_pages_away += pages;
        }
    }
    found.workers += 1;
}

/// A worker per node, at once, as they are planned: each takes pages of its own node until there are
/// none left.
fn look_at_lanes(topology: &Topology, layout: &RamLayout, nodes: &[usize], found: &mut Findings) {
    let ram = RamNodes::find(layout);
    let shares = ram.shares();
    let in_order: Vec<usize> = shares.iter().map(|share| share.node).collect();
    assert_eq!(in_order, nodes, "{ram:?}");
    let plan = topology.plan_workers(&WorkerWish {
        count: nodes.len(),
        ram: &shares,
        device_node: None,
    });
    let places: Vec<usize> = plan.workers.iter().flat_map(|worker| worker.node).collect();
    assert_eq!(places, nodes, "{}", plan.why);
    let mut dirty = layout.empty_bitmap();
    for (block, bitmap) in layout.blocks().iter().zip(&mut dirty.blocks) {
        block.mark_data(bitmap).unwrap();
    }
    let expected = dirty.count();
    let lanes = Arc::new(Lanes::by_node(layout, &ram));
    let work = RoundWork::by_lanes(0, dirty, layout.empty_bitmap(), lanes);
    let ready = Barrier::new(plan.workers.len());
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = plan
            .workers
            .iter()
            .map(|worker| {
                let (work, ready) = (&work, &ready);
                scope.spawn(move || {
                    dwcp_numa::pin_current_thread(worker.cpu).unwrap();
                    ready.wait();
                    take_all(layout, work, worker.node)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    for (near, helped, wrong) in parts {
        found.near += near;
        found.helped += helped;
        found.lane_away += wrong;
    }
    assert_eq!(found.near + found.helped, expected);
}

/// Pages taken near, taken elsewhere, and taken as near or elsewhere against the kernel's word.
fn take_all(layout: &RamLayout, work: &RoundWork, node: Option<usize>) -> (u64, u64, u64) {
    let (mut near, mut helped, mut wrong) = (0, 0, 0);
    let mut cursor = work.cursor(node);
    while let Some(batch) = cursor.next_batch(work) {
        let away = cursor.is_away(work);
        assert!(
            away || helped == 0,
            "it helped before its own pages were done"
        );
        let pages = (0..64).filter(|bit| batch.dirty >> bit & 1 == 1);
        let pages: Vec<u32> = pages.map(|bit| batch.first_page + bit).collect();
        let lies = nodes_of(layout, batch.block as usize, &pages);
        wrong += lies.iter().filter(|lies| (**lies == node) == away).count() as u64;
        *if away { &mut helped } else { &mut near } += pages.len() as u64;
    }
    (near, helped, wrong)
}

/// Asks the kernel, once the pages are mapped here.
fn nodes_of(layout: &RamLayout, block: usize, pages: &[u32]) -> Vec<Option<usize>> {
    let block = &layout.blocks()[block];
    let addresses: Vec<usize> = pages
        .iter()
        .map(|page| {
            block.populate(*page, 1).unwrap();
            block.address(*page)
        })
        .collect();
    let nodes = nodes_of_pages(&addresses).unwrap();
    assert!(
        nodes.iter().all(Option::is_some),
        "pages without memory: {nodes:?}"
    );
    nodes
}

/// A real migration of the guest under load.
fn move_it(two: &TwoNodes, settings: &TransferSettings, found: &mut Findings) {
    let id = MigrationId(9);
    let (a, b) = (&two.a, &two.b);
    a.node
        .start_migration(id, "vm", &b.address, settings.clone(), false)
        .unwrap();
    let report = wait(&a.node, id);
    let there = wait(&b.node, id);
    println!("source: {:?}", report.notes);
    println!("destination: {:?}", there.notes);
    let reasons = (&report.reason, &there.reason);
    assert_eq!(report.result, RunResult::Completed, "{reasons:?}");
    assert!(report.verified && two.new.is_running());
    assert_eq!(two.new.bad_pages(), 0);
    let counts = report.notes.iter().find_map(|note| {
        let (away, all) = note.strip_prefix("NUMA: ")?.split_once(" of ")?;
        let all = all.strip_suffix(" pages read from another node")?;
        Some((away.parse().ok()?, all.parse().ok()?))
    });
    (found.moved_away, found.moved) = counts.expect("the report says where pages were read");
}

/// Every page of the destination is on the node that the policy of its file says.
fn look_at_arrival(layout: &RamLayout, nodes: &[usize], found: &mut Findings) {
    for (index, block) in layout.blocks().iter().enumerate() {
        let mut held = layout.empty_bitmap();
        block.mark_data(&mut held.blocks[index]).unwrap();
        let words = held.blocks[index].words().iter().enumerate();
        for (word, bits) in words {
            let pages = (0..64).filter(|bit| bits >> bit & 1 == 1);
            let pages: Vec<u32> = pages.map(|bit| word as u32 * 64 + bit).collect();
            let share = block.pages() as usize / nodes.len();
            for (page, lies) in pages.iter().zip(nodes_of(layout, index, &pages)) {
                found.arrived += 1;
                if lies != Some(nodes[*page as usize / share]) {
                    found.arrived_away += 1;
                }
            }
        }
    }
}
