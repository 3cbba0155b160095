//! `dwcp-wan show`: links and their counters.

use dwcp_wan::control::{Request, Status, WayStatus};
use dwcp_wan::link::{self, Link, LinkError, LinkName};
use dwcp_wan::units::show_time;
use serde_json::json;

use crate::failure::Failure;
use crate::output;

pub(crate) fn run(name: Option<&LinkName>, json: bool) -> Result<(), Failure> {
    if let Some(name) = name {
        let (link, status) = whole(name)?;
        let value = json!({"link": link, "status": status});
        return output::print(json, &value, || in_words(&link, &status));
    }
    link::check_rights()?;
    let (mut values, mut texts) = (vec![], vec![]);
    for name in link::list() {
        match whole(&name) {
            Ok((link, status)) => {
                texts.push(in_words(&link, &status));
                values.push(json!({"link": link, "status": status}));
            }
            // What is left of a link is listed, so that it can be taken down.
            Err(error) => {
                let left = left(&name, &error);
                texts.push(format!("{name}: {left}"));
                values.push(json!({"name": name, "error": left}));
            }
        }
    }
    output::print(json, &json!({ "links": values }), || match &texts[..] {
        [] => "there is no link".to_owned(),
        texts => texts.join("\n"),
    })
}

fn whole(name: &LinkName) -> Result<(Link, Status), LinkError> {
    Ok((link::find(name)?, link::ask(name, &Request::Show)?))
}

fn left(name: &LinkName, error: &LinkError) -> String {
    match error {
        LinkError::NotFound(_) => format!("not whole: `dwcp-wan down {name}`"),
        error => error.to_string(),
    }
}

fn in_words(link: &Link, status: &Status) -> String {
    let mut lines = vec![format!(
        "{}: up for {:.1} s, process {}, CPU {:.2} s, mtu {}",
        link.name, status.elapsed_s, status.pid, status.cpu_s, link.mtu
    )];
    for (namespace, address) in link.namespaces.iter().zip(&link.addresses) {
        lines.push(format!("  {namespace}  {address}  {}", link.device));
    }
    lines.extend(status.ways.iter().flat_map(way_in_words));
    lines.join("\n")
}

fn way_in_words(way: &WayStatus) -> [String; 4] {
    let counters = &way.counters;
    let cut = if way.is_cut { "  CUT" } else { "" };
    [
        format!("  {}  {}{cut}", way.direction.name(), way.params.in_words()),
        format!(
            "    in {} packets, {} bytes; passed {} packets, {} bytes; held back {}",
            counters.packets,
            counters.bytes,
            counters.passed_packets,
            counters.passed_bytes,
            counters.held_back,
        ),
        format!(
            "    dropped: loss {}, queue {}, cut {}, memory {}, receiver {}",
            counters.dropped_by_loss,
            counters.dropped_by_queue,
            counters.dropped_by_cut,
            counters.dropped_by_memory,
            counters.dropped_by_receiver,
        ),
        format!(
            "    queue {} bytes ({}); on the way {} frames, {} bytes",
            way.queue_bytes,
            show_time(way.queue_ns),
            way.in_flight_frames,
            way.in_flight_bytes,
        ),
    ]
}
