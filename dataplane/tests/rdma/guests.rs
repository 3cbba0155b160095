//! Runs the other tests of this program in guests.

use dwcp_testbed::rxe::in_guests;

#[test]
fn two_nodes_with_a_link_that_delays_and_loses() {
    let options = [
        "--timeout",
        "200",
        "--nodes",
        "2",
        "--delay",
        "5",
        "--loss",
        "0.3",
    ];
    in_guests(&options, "--include-ignored", "two_nodes::", 3);
}

#[test]
fn with_little_lockable_memory() {
    let options = ["--timeout", "90", "--memlock", "16384"];
    in_guests(&options, "--include-ignored", "small_memlock::", 1);
}

#[test]
fn within_a_node() {
    in_guests(&["--timeout", "150"], "--include-ignored", "one_node::", 8);
}
