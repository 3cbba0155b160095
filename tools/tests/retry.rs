//! `dwcp migrate --retry-s`: which ends are followed by another attempt.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;
mod local;

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{MigrationReport, RunResult};
use fake::Script;
use local::{TestNode, json, run};

/// How an attempt ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Completed,
    /// In the middle.
    Lost,
    /// Before the destination had accepted.
    NotReached,
    Refused,
    Cancelled,
}

use End::{Cancelled, Completed, Lost, NotReached, Refused};

/// Attempts that end so, one after the other.
fn attempts(ends: &'static [End]) -> Script {
    let (mut begun, mut started) = (0, None);
    Box::new(move |request| {
        Some(match request {
            Request::StartMigration { id, vm, .. } => {
                started = Some((*id, vm.clone()));
                begun += 1;
                Reply::Done
            }
            Request::Status { .. } => {
                let (id, vm) = started.clone()?;
                let end = *ends.get(begun - 1).expect("no more attempts than ends");
                let result = match end {
                    Completed => RunResult::Completed,
                    _ => RunResult::Aborted,
                };
                let report = MigrationReport {
                    connection_lost: matches!(end, Lost | NotReached),
                    refused: matches!(end, NotReached | Refused),
                    ..fake::report(id, &vm, result)
                };
                Reply::Migration(Box::new(fake::status(id, &vm, Some(report))))
            }
            _ => Reply::Done,
        })
    })
}

/// Attempts made, and whether the last one completed.
fn migrate(ends: &'static [End], retry: &[&str]) -> (usize, bool) {
    let node = TestNode::start(Some(attempts(ends)));
    let mut arguments = vec!["migrate", "web", "--to", "b", "--json"];
    arguments.extend(retry);
    let completed = ends.last() == Some(&Completed);
    let code = match ends.last() {
        Some(Completed) => 0,
        Some(NotReached | Refused) => 4,
        _ => 7,
    };
    let (out, err) = run(&mut node.dwcp(&arguments), code);
    let report = json(&out);
    let is_completed = report["result"] == "completed";
    let told = report["notes"].to_string();
    let again = err.matches("the next in").count();
    assert_eq!(
        told.contains(&format!("attempt {}", again + 1)),
        again > 0,
        "{told}"
    );
    assert_eq!(is_completed, completed);
    (again + 1, is_completed)
}

#[test]
fn a_lost_connection_is_followed_by_another_attempt() {
    const AGAIN: &[&str] = &["--retry-s", "60"];
    assert_eq!(migrate(&[Lost, Completed], AGAIN), (2, true));
    // It is not back yet, and then still busy with the end of the first.
    let ends = &[Lost, NotReached, Refused, Completed];
    assert_eq!(migrate(ends, AGAIN), (4, true));
    assert_eq!(migrate(&[Lost, Cancelled], AGAIN), (2, false));
}

#[test]
fn no_other_end_is() {
    const AGAIN: &[&str] = &["--retry-s", "60"];
    assert_eq!(migrate(&[Lost], &[]), (1, false));
    assert_eq!(migrate(&[Lost], &["--retry-s", "0"]), (1, false));
    assert_eq!(migrate(&[Cancelled], AGAIN), (1, false));
    // A wrong address is not waited for.
    assert_eq!(migrate(&[NotReached], AGAIN), (1, false));
    assert_eq!(migrate(&[Refused], AGAIN), (1, false));
}
