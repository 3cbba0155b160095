//! `docs/PROTOCOL.md` says what the program does.

use dwcp_proto::{Phase, is_transition_valid};
use dwcp_wire::limits;

fn section(name: &str) -> String {
    let path = format!("{}/../../docs/PROTOCOL.md", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let begin = format!("<!-- {name} -->\n");
    let (_, rest) = text.split_once(&begin).expect("the section's beginning");
    let (section, _) = rest.split_once("<!-- end -->").expect("its end");
    section.to_owned()
}

#[test]
fn the_transition_table_is_the_programs() {
    let mut table = String::from("| from | to |\n|---|---|\n");
    for from in Phase::ALL {
        let to: Vec<String> = Phase::ALL
            .into_iter()
            .filter(|&to| is_transition_valid(from, to))
            .map(|to| format!("`{to:?}`"))
            .collect();
        table += &format!("| `{from:?}` | {} |\n", to.join(", "));
    }
    assert_eq!(section("transitions"), table);
}

#[test]
fn the_limits_are_the_programs() {
    let mut table = String::from("| limit | value |\n|---|--:|\n");
    for (name, value) in [
        ("FRAME_DATA_PAGES_MAX", limits::FRAME_DATA_PAGES_MAX as u64),
        ("FRAME_ENTRIES_MAX", limits::FRAME_ENTRIES_MAX as u64),
        ("RUN_PAGES_MAX", limits::RUN_PAGES_MAX as u64),
        ("TABLE_BYTES_MAX", limits::TABLE_BYTES_MAX as u64),
        (
            "WINDOW_OVERHEAD_BYTES_MAX",
            limits::WINDOW_OVERHEAD_BYTES_MAX as u64,
        ),
        ("DELTA_GROUP_PAGES", limits::DELTA_GROUP_PAGES as u64),
        (
            "DELTA_OVERHEAD_BYTES_MAX",
            limits::DELTA_OVERHEAD_BYTES_MAX as u64,
        ),
        ("PAYLOAD_BYTES_MAX", limits::PAYLOAD_BYTES_MAX as u64),
        ("FRAME_BYTES_MAX", limits::FRAME_BYTES_MAX as u64),
        ("WINDOW_BYTES_MAX", limits::WINDOW_BYTES_MAX),
        ("CONTROL_BYTES_MAX", limits::CONTROL_BYTES_MAX as u64),
        ("DEVICE_BYTES_MAX", limits::DEVICE_BYTES_MAX as u64),
        ("WANTED_PAGES_MAX", limits::WANTED_PAGES_MAX as u64),
        (
            "WANTED_UNANSWERED_MAX",
            limits::WANTED_UNANSWERED_MAX as u64,
        ),
        ("MISSING_PAGES_MAX", limits::MISSING_PAGES_MAX as u64),
        ("MISSING_BYTES_MAX", limits::MISSING_BYTES_MAX as u64),
        ("REQUEST_PAGES_MAX", limits::REQUEST_PAGES_MAX.into()),
        ("REQUEST_RANGES_MAX", limits::REQUEST_RANGES_MAX as u64),
        ("RAM_BLOCKS_MAX", limits::RAM_BLOCKS_MAX as u64),
        ("RAM_BLOCK_BYTES_MAX", limits::RAM_BLOCK_BYTES_MAX),
        ("STREAMS_MAX", limits::STREAMS_MAX as u64),
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX as u64),
        ("REASON_BYTES_MAX", limits::REASON_BYTES_MAX as u64),
        ("SUSPECT_RANGES_MAX", limits::SUSPECT_RANGES_MAX as u64),
    ] {
        table += &format!("| `{name}` | {value} |\n");
    }
    assert_eq!(section("limits"), table);
}
