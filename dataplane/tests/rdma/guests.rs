//! Runs the other tests of this program in guests.

use crate::in_guests::in_guests;

#[test]
fn within_a_node() {
    in_guests(&["--timeout", "150"], "one_node::", 4);
}
