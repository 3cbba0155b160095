//! `dwcp recover` end to end: real daemons and guests, a node that is gone for good, and one that comes back.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;
mod local;

use std::time::{Duration, Instant};

use dwcp_api::node::{Reply, Request};
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{
    Binaries, GuestChoice, GuestSpec, Lab, LabNode, Moment, Plane, Proxy, RunSpec, Way,
};
use dwcp_wire::Control;
use local::{dwcp, run};

const PATIENCE: Duration = Duration::from_secs(60);

/// Two nodes whose link has stopped at a moment of the guest's migration.
struct Stopped {
    lab: Lab,
    proxy: Proxy,
    _folder: tempfile::TempDir,
}

impl Stopped {
    /// `None`, and said, where the daemons are not built: they are not this crate's.
    fn at(moment: Moment, post_copy: bool) -> Option<Self> {
        if let Err(error) = Binaries::find() {
            println!("skipped: {error}");
            return None;
        }
        let settings = profile::with_changes(
            &profile::load("datacenter").unwrap(),
            [
                "timeouts.peer_silence=2s",
                "transfer.bandwidth_limit_mbit=400",
            ],
        );
        let spec = RunSpec {
            settings: settings.unwrap(),
            guest: GuestSpec {
                choice: GuestChoice::Synthetic,
                ram_mib: 16,
                fill_mib: 12,
                hot_mib: 4,
                dirty_pages_per_s: 4000,
                checked_pages_per_s: 1000,
                kind: Kind::Random,
                backing: Backing::Fresh,
            },
        };
        let folder = tempfile::tempdir().unwrap();
        let mut lab = Lab::start(&spec, folder.path(), &mut |_| {}).unwrap();
        let proxy = Proxy::start(lab.b.address(), Some(moment)).unwrap();
        let id = lab.migrate_by(proxy.address(), &spec.settings).unwrap();
        if post_copy {
            let which = id.to_string();
            let tune = Request::Tune {
                which,
                bandwidth_limit_mbit: None,
                post_copy: true,
            };
            lab.a.ask(&tune).unwrap();
        }
        assert!(proxy.wait_stopped(PATIENCE, || false));
        Some(Self {
            lab,
            proxy,
            _folder: folder,
        })
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Lab) -> bool) {
        let began = Instant::now();
        while !done(&mut self.lab) {
            assert!(began.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn handover() -> Moment {
    Moment::Message {
        way: Way::ToDestination,
        is_it: |said| matches!(said, Control::Handover { .. }),
        after: false,
    }
}

fn committed() -> Moment {
    Moment::Message {
        way: Way::ToSource,
        is_it: |said| matches!(said, Control::Committed { .. }),
        after: false,
    }
}

/// The data plane first: it must have no time to learn that its link is cut.
fn kill(node: &mut LabNode) {
    node.kill(Plane::Data);
    node.kill(Plane::Control);
}

fn recover(node: &LabNode, arguments: &[&str], code: i32) -> String {
    let mut command = dwcp();
    command
        .arg("--node-socket")
        .arg(node.folder().join("node.sock"))
        .arg("recover")
        .args(arguments);
    run(&mut command, code).0
}

fn is_in_doubt(lab: &mut Lab) -> bool {
    let mut command = dwcp();
    let socket = lab.a.folder().join("node.sock");
    command.arg("--node-socket").arg(socket).arg("recover");
    let output = command.output().unwrap();
    output.status.code() == Some(8) && String::from_utf8_lossy(&output.stdout).contains("in doubt")
}

fn owner(node: &mut LabNode) -> Option<(String, u64)> {
    match node.ask(&Request::Ownership) {
        Ok(Reply::Ownership(list)) => {
            let of_it = list.into_iter().find(|vm| vm.vm == "guest")?;
            Some((of_it.owner, of_it.epoch))
        }
        _ => None,
    }
}

const DECIDE: [&str; 3] = ["guest", "--owner", "here"];
const GONE: &str = "--the-other-node-is-gone";

#[test]
fn a_guest_comes_back_from_a_node_that_is_gone_for_good() {
    let Some(mut at) = Stopped::at(handover(), false) else {
        return;
    };
    kill(&mut at.lab.b);
    at.lab.guest.kill_destination();
    at.proxy.cut();
    at.until("not in doubt", is_in_doubt);
    recover(&at.lab.a, &["guest", "--timeout-s", "0"], 8);
    assert_eq!(at.lab.guest.running(), (false, false));

    let out = recover(&at.lab.a, &[&DECIDE[..], &[GONE]].concat(), 8);
    assert!(out.contains("runs here, at epoch 2"), "{out}");
    assert_eq!(at.lab.guest.running(), (true, false));
    assert_eq!(at.lab.guest.verify_at_source().unwrap(), Ok(()));
    let out = recover(&at.lab.a, &[], 8);
    assert!(out.contains("the other node does not know it"), "{out}");
    assert_eq!(owner(&mut at.lab.a), Some(("here".to_owned(), 2)));
}

/// Its journal has the commit, and its VMM lives: the promise of the operator was not kept.
#[test]
fn a_node_that_comes_back_with_its_commit_ends_what_it_has() {
    let Some(mut at) = Stopped::at(committed(), false) else {
        return;
    };
    kill(&mut at.lab.b);
    at.proxy.cut();
    at.until("not in doubt", is_in_doubt);
    recover(&at.lab.a, &[&DECIDE[..], &[GONE]].concat(), 8);
    at.proxy.mend();
    at.lab.b.revive().unwrap();
    at.until("the destination still claims it", |lab| {
        owner(&mut lab.b) == Some(("away".to_owned(), 2))
    });
    assert_eq!(at.lab.guest.running(), (true, false));
    assert_eq!(at.lab.guest.verify_at_source().unwrap(), Ok(()));
    assert_eq!(recover(&at.lab.b, &[], 0).trim(), "nothing is half done");
}

#[test]
fn a_guest_whose_missing_pages_are_gone_is_given_up_at_its_destination() {
    let Some(mut at) = Stopped::at(Moment::Missing(128 << 10), true) else {
        return;
    };
    kill(&mut at.lab.a);
    at.proxy.cut();
    let refused = [&DECIDE[..], &[GONE]].concat();
    recover(&at.lab.b, &refused, 1);
    let decide = ["guest", "--owner", "there", GONE];
    let out = recover(&at.lab.b, &decide, 8);
    assert!(out.contains("was ended here"), "{out}");
    assert!(!at.lab.guest.running().1);
    let out = recover(&at.lab.b, &[], 8);
    assert!(out.contains("given up by an operator"), "{out}");
    recover(&at.lab.b, &["guest", "--looked-after"], 0);
    assert_eq!(recover(&at.lab.b, &[], 0).trim(), "nothing is half done");
}
