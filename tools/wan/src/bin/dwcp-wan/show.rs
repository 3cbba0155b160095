//! `dwcp-wan show`: links and their counters.

use dwcp_wan::control::{Request, Status, WayStatus};
use dwcp_wan::link::{self, Link, LinkError, LinkName};
use dwcp_wan::units::show_time;
use serde_json::{Value, json};

use crate::failure::Failure;

pub(crate) fn run(name: Option<&LinkName>, json: bool) -> Result<(), Failure> {
    if let Some(name) = name {
        let (link, status) = (link::find(name)?, link::ask(name, &Request::Show)?);
        match json {
            true => println!("{:#}", value(&link, &status)),
            false => print(&link, &status),
        }
        return Ok(());
    }
    let mut values = vec![];
    let names = link::list();
    for name in &names {
        let found = link::find(name).and_then(|link| Ok((link, link::ask(name, &Request::Show)?)));
        match (found, json) {
            (Ok((link, status)), true) => values.push(value(&link, &status)),
            (Ok((link, status)), false) => print(&link, &status),
            // What is left of a link is listed, so that it can be taken down.
            (Err(error), true) => values.push(json!({"name": name, "error": left(name, &error)})),
            (Err(error), false) => println!("{name}: {}", left(name, &error)),
        }
    }
    match json {
        true => println!("{:#}", json!({ "links": values })),
        false if names.is_empty() => println!("there is no link"),
        false => {}
    }
    Ok(())
}

fn left(name: &LinkName, error: &LinkError) -> String {
    match error {
        LinkError::NotFound(_) => format!("not whole: `dwcp-wan down {name}`"),
        error => error.to_string(),
    }
}

fn value(link: &Link, status: &Status) -> Value {
    json!({"link": link, "status": status})
}

fn print(link: &Link, status: &Status) {
    let (pid, elapsed, cpu) = (status.pid, status.elapsed_s, status.cpu_s);
    println!(
        "{}: up for {elapsed:.1} s, process {pid}, CPU {cpu:.2} s, mtu {}",
        link.name, link.mtu
    );
    for (namespace, address) in link.namespaces.iter().zip(&link.addresses) {
        println!("  {namespace}  {address}");
    }
    status.ways.iter().for_each(print_way);
}

fn print_way(way: &WayStatus) {
    let counters = &way.counters;
    let cut = if way.is_cut { "  CUT" } else { "" };
    println!("  {}  {}{cut}", way.direction.name(), way.params.in_words());
    println!(
        "    in {} packets, {} bytes; passed {} packets, {} bytes; held back {}",
        counters.packets,
        counters.bytes,
        counters.passed_packets,
        counters.passed_bytes,
        counters.held_back,
    );
    println!(
        "    dropped: loss {}, queue {}, cut {}, memory {}, receiver {}",
        counters.dropped_by_loss,
        counters.dropped_by_queue,
        counters.dropped_by_cut,
        counters.dropped_by_memory,
        counters.dropped_by_receiver,
    );
    println!(
        "    queue {} bytes ({}); on the way {} frames, {} bytes",
        way.queue_bytes,
        show_time(way.queue_ns),
        way.in_flight_frames,
        way.in_flight_bytes,
    );
}
