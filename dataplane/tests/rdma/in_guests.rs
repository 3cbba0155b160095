//! Runs tests of this program in guests that have an RDMA device.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Guests take both processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What the script says when it cannot run guests here.
const SKIPPED: i32 = 77;

/// Runs the tests whose names begin with `tests`, and wants `count` of them to pass in each guest.
pub(crate) fn in_guests(options: &[&str], tests: &str, count: usize) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/testbed/rxe");
    let begun = Instant::now();
    let output = Command::new(script)
        .args(options)
        .args(["--env", "RUST_BACKTRACE=1"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--include-ignored",
            "--nocapture",
            "--test-threads=1",
            tests,
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    if output.status.code() == Some(SKIPPED) {
        return;
    }
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    println!("{tests}: {:.1} s", begun.elapsed().as_secs_f64());
    assert!(output.status.success(), "{}", output.status);
    // A run that found no test would be a success, too.
    let guests = 1 + usize::from(options.contains(&"--nodes"));
    let passed = format!("test result: ok. {count} passed");
    assert_eq!(said.matches(&passed).count(), guests, "not {count} tests");
}
