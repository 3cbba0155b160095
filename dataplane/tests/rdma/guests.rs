//! Runs the other tests of this program in guests.

use dwcp_testbed::rxe::in_guests;

fn in_two_guests(loss_percent: &str, tests: &str, count: usize) {
    let link = ["--nodes", "2", "--delay", "5", "--loss", loss_percent];
    let options = [&["--timeout", "200"][..], &link].concat();
    in_guests(&options, "--include-ignored", tests, count);
}

#[test]
fn two_nodes_with_a_link_that_delays_and_loses() {
    in_two_guests("0.5", "two_nodes::a_guest_is_moved_over", 1);
}

#[test]
fn two_nodes_that_lose_the_way_of_queue_pairs() {
    in_two_guests("0.3", "_guest_is_moved_though", 2);
}

/// Nothing waits for the queue pair by which pages are read: on a link that loses, its request may come too late.
#[test]
fn two_nodes_of_which_one_reads_until_nobody_answers() {
    in_two_guests("0", "two_nodes::d_guest_is_post_copied", 1);
}

#[test]
fn with_little_lockable_memory() {
    let options = ["--timeout", "90", "--memlock", "16384"];
    in_guests(&options, "--include-ignored", "small_memlock::", 2);
}

#[test]
fn within_a_node() {
    in_guests(&["--timeout", "300"], "--include-ignored", "one_node::", 11);
}
