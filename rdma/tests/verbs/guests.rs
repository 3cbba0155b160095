//! Runs the other tests of this program in guests.

use dwcp_testbed::rxe::in_guests;

#[test]
fn verbs_within_a_node() {
    in_guests(&["--timeout", "60"], "--ignored", "one_node::", 24);
}

#[test]
fn registering_with_little_lockable_memory() {
    let options = ["--timeout", "60", "--memlock", "4096"];
    in_guests(&options, "--ignored", "small_memlock::", 1);
}

#[test]
fn two_nodes_with_a_link_that_delays_and_loses() {
    let options = [
        "--timeout",
        "60",
        "--nodes",
        "2",
        "--delay",
        "5",
        "--loss",
        "0.5",
    ];
    in_guests(&options, "--ignored", "two_nodes::", 1);
}
