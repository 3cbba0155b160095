//! Tests that run in guests with an RDMA device: soft-RoCE, by the script `rxe` beside this crate.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Guests take both processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What the script says when it cannot run guests here.
const SKIPPED: i32 = 77;

/// Runs tests of the calling program in guests: those whose names begin with `tests`, chosen by `ignored`, which is
/// `--ignored` or `--include-ignored`.
///
/// # Panics
/// Unless `count` of them pass in each guest, or the script says why no guest can run here.
pub fn in_guests(options: &[&str], ignored: &str, tests: &str, count: usize) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("rxe");
    let begun = Instant::now();
    let output = Command::new(script)
        .args(options)
        .args(["--env", "RUST_BACKTRACE=1"])
        .arg(std::env::current_exe().expect("this program"))
        .args([ignored, "--nocapture", "--test-threads=1", tests])
        .output()
        .expect("the script runs");
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
