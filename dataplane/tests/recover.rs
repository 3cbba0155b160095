//! `Request::Recover` against data planes as processes: a destination that is gone for good, one that comes back
//! later, one that answers.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use common::daemon::Daemon;
use common::proxy::{CONTROL, Harm, Plan, Progress, Proxy, Way};
use common::stranger::{frame, unchecked};
use common::{TestGuest, outruns, settings, small, until};
use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{
    ErrorCode, HalfDone, HalfDoneState, MigrationId, NotConverged, RecoverRequest, Recovery, Role,
    RunResult, SettledOwner, TransferSettings,
};
use dwcp_journal::{Journal, Stage, State};
use dwcp_wire::{Control, FrameHeader, FrameKind, HEADER_BYTES, Hello};

const ID: MigrationId = MigrationId(7);

/// An address that nobody has for the moment.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Two data planes and a guest whose handover was sent over a link that was lost then.
struct Doubt {
    folder: tempfile::TempDir,
    addresses: [String; 2],
    a: Option<Daemon>,
    b: Option<Daemon>,
    old: TestGuest,
    new: TestGuest,
    proxy: Proxy,
}

const NAMES: [&str; 2] = ["a", "b"];

/// The link is lost before this message.
fn severs_before(message: fn(&Control) -> bool, way: Way) -> Plan {
    let act = |progress: &Progress| {
        progress.refuse();
        progress.close(|_| true);
    };
    Plan {
        connections: CONTROL..CONTROL + 1,
        way,
        harm: Harm::Before { message, act },
    }
}

fn handover() -> Plan {
    let message = |message: &Control| matches!(message, Control::Handover { .. });
    severs_before(message, Way::ToDestination)
}

fn committed() -> Plan {
    let message = |message: &Control| matches!(message, Control::Committed { .. });
    severs_before(message, Way::ToSource)
}

fn start(folder: &Path, addresses: &[String; 2], at: usize) -> Daemon {
    Daemon::start(folder, NAMES[at], (&addresses[at], "auto"))
}

impl Doubt {
    fn after(plan: Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let addresses = [free_address(), free_address()];
        let mut daemons = [0, 1].map(|at| start(folder.path(), &addresses, at));
        let old = TestGuest::start(folder.path(), "source", &small(1, false));
        let new = TestGuest::start(folder.path(), "destination", &small(1, true));
        daemons[0].attach(&old);
        daemons[1].attach(&new);
        let proxy = Proxy::start(&addresses[1], plan);
        migrate(&mut daemons[0], &proxy, settings());
        until("the source is not in doubt", || {
            list(&mut daemons[0])
                .iter()
                .any(|open| open.state == HalfDoneState::InDoubt)
        });
        assert!(proxy.has_harmed());
        let [a, b] = daemons.map(Some);
        Self {
            folder,
            addresses,
            a,
            b,
            old,
            new,
            proxy,
        }
    }

    fn a(&mut self) -> &mut Daemon {
        self.a.as_mut().unwrap()
    }

    fn restart_a(&mut self) {
        self.a.take().unwrap().kill();
        self.a = Some(start(self.folder.path(), &self.addresses, 0));
    }

    fn kill_b(&mut self) {
        self.b.take().unwrap().kill();
    }

    /// In the place of the destination's data plane, which was killed, one that knows nothing.
    fn start_b_without_its_journal(&mut self) {
        self.b = Some(Daemon::start(
            self.folder.path(),
            "other-b",
            (&self.addresses[1], "auto"),
        ));
    }

    /// The destination has taken the guest over and runs it, and its data plane was started anew without its journal.
    fn with_another_journal() -> Self {
        let mut doubt = Self::after(committed());
        until("not taken over", || doubt.new.is_running());
        doubt.kill_b();
        doubt.start_b_without_its_journal();
        doubt.proxy.restore();
        doubt
    }

    fn start_b(&mut self) {
        self.b = Some(start(self.folder.path(), &self.addresses, 1));
    }

    /// What the journal of a node says.
    fn journal(&self, at: usize) -> State {
        let folder = self.folder.path().join(NAMES[at]);
        Journal::read(&folder).unwrap().state()
    }

    fn owner(&self, at: usize) -> (String, u64) {
        let ownership = self.journal(at).ownership_of("vm").unwrap();
        (ownership.owner, ownership.epoch)
    }
}

fn migrate(source: &mut Daemon, proxy: &Proxy, settings: TransferSettings) {
    source.ask(&Request::StartMigration {
        id: ID,
        vm: "vm".into(),
        destination: proxy.address.clone(),
        destination_name: Some("b".into()),
        settings,
        dry_run: false,
    });
}

fn recover(daemon: &mut Daemon, request: RecoverRequest) -> Result<Recovery, dwcp_api::ApiError> {
    match daemon.try_ask(&Request::Recover(request)) {
        Reply::Recovery(recovery) => Ok(recovery),
        Reply::Error(error) => Err(error),
        other => panic!("{other:?}"),
    }
}

fn list(daemon: &mut Daemon) -> Vec<HalfDone> {
    recover(daemon, RecoverRequest::List).unwrap().half_done
}

fn settle(
    daemon: &mut Daemon,
    owner: SettledOwner,
    dry_run: bool,
) -> Result<String, dwcp_api::ApiError> {
    let vm = "vm".to_owned();
    let settled = recover(daemon, RecoverRequest::Settle { vm, owner, dry_run });
    settled.map(|recovery| recovery.said)
}

fn try_now(daemon: &mut Daemon) -> Result<Recovery, dwcp_api::ApiError> {
    let vm = "vm".to_owned();
    recover(daemon, RecoverRequest::Try { vm })
}

#[test]
fn a_guest_whose_destination_is_gone_for_good_is_taken_back() {
    let mut doubt = Doubt::after(handover());
    doubt.kill_b();
    doubt.new.client().quit().unwrap();

    let open = &list(doubt.a())[0];
    assert_eq!((open.vm.as_str(), open.migration), ("vm", ID));
    assert_eq!(open.role, Role::Source);
    assert_eq!(open.reached, "handover sent");
    assert!(open.peer.contains(&doubt.proxy.address), "{}", open.peer);
    assert!(open.advice.contains("--the-other-node-is-gone"));
    until("why is not said", || !list(doubt.a())[0].why.is_empty());
    let tried = try_now(doubt.a()).unwrap();
    assert!(tried.said.contains("b does not answer"), "{}", tried.said);

    let would = settle(doubt.a(), SettledOwner::Here, true).unwrap();
    assert!(would.contains("epoch 2"), "{would}");
    assert_eq!(doubt.owner(0).0, "in-doubt");
    assert!(!doubt.old.is_running());

    let said = settle(doubt.a(), SettledOwner::Here, false).unwrap();
    assert!(said.contains("runs here, at epoch 2"), "{said}");
    assert!(doubt.old.is_running());
    assert_eq!(doubt.owner(0), ("here".to_owned(), 2));
    let report = doubt.a().report(ID);
    assert_eq!((report.result, report.epoch), (RunResult::Aborted, 2));
    assert!(
        report.reason.contains("by an operator"),
        "{}",
        report.reason
    );
    assert_eq!(list(doubt.a())[0].state, HalfDoneState::Untold);
    let again = settle(doubt.a(), SettledOwner::Here, false).unwrap_err();
    assert!(again.message.contains("taken back already"), "{again}");

    // The next start acts on the decision, and asks nobody.
    doubt.restart_a();
    assert!(doubt.old.is_running());
    assert_eq!(doubt.owner(0), ("here".to_owned(), 2));
    assert_eq!(list(doubt.a())[0].state, HalfDoneState::Untold);
    assert_eq!(doubt.old.bad_pages(), 0);
}

/// The operator was wrong, or the network came back: the guest runs at the destination by its own commit. From
/// the moment on at which that node is heard of again it does not.
#[test]
fn a_destination_that_comes_back_with_its_commit_gives_the_guest_up() {
    let mut doubt = Doubt::after(committed());
    until("not taken over", || doubt.new.is_running());
    doubt.kill_b();
    settle(doubt.a(), SettledOwner::Here, false).unwrap();
    assert!(doubt.old.is_running());
    assert_eq!(
        doubt.owner(1).0,
        "here",
        "by its own journal it owns the guest, too"
    );

    doubt.proxy.restore();
    doubt.start_b();
    until("the destination still claims the guest", || {
        doubt.owner(1) == ("away".to_owned(), 2)
    });
    assert!(!doubt.new.is_running());
    until("the source still tells", || list(doubt.a()).is_empty());
    assert_eq!(list(doubt.b.as_mut().unwrap()), []);
    assert_eq!(doubt.owner(0), ("here".to_owned(), 2));
    assert!(doubt.old.is_running());
    assert_eq!(doubt.old.bad_pages(), 0);
    // What it answers from now on is that it is not the owner.
    assert!(!doubt.journal(1).committed(ID));
}

#[test]
fn a_destination_that_answers_decides_and_no_operator() {
    let mut doubt = Doubt::after(committed());
    doubt.proxy.restore();
    let refused = settle(doubt.a(), SettledOwner::Here, false).unwrap_err();
    let is_its_answer = refused.message.contains("has taken the VM over");
    // It may have been asked in the second before.
    assert!(
        is_its_answer || refused.code == ErrorCode::NotFound,
        "{refused}"
    );
    assert_eq!(doubt.a().report(ID).result, RunResult::Completed);
    assert!(!doubt.old.is_running() && doubt.new.is_running());
    let nothing = try_now(doubt.a()).unwrap_err();
    assert_eq!(nothing.code, ErrorCode::NotFound);
    assert_eq!(list(doubt.a()), []);
}

/// Its guest runs in a VMM that is still there: "it never began here" would let a second one run.
#[test]
fn a_destination_that_has_lost_its_journal_decides_nothing() {
    let mut doubt = Doubt::with_another_journal();
    let says_why = |doubt: &mut Doubt| {
        let open = list(doubt.a());
        open.len() == 1 && open[0].why.contains("knows nothing of this migration")
    };
    until("why is not said", || says_why(&mut doubt));
    // The next start asks the same.
    doubt.restart_a();
    until("why is not said again", || says_why(&mut doubt));
    assert!(is(doubt.a(), HalfDoneState::InDoubt));
    assert!(!doubt.old.is_running() && doubt.new.is_running());

    doubt.kill_b();
    doubt.start_b();
    assert_eq!(doubt.a().report(ID).result, RunResult::Completed);
    assert_eq!(doubt.owner(0), ("away".to_owned(), 1));
    assert!(!doubt.old.is_running() && doubt.new.is_running());
}

/// Nobody at the destination's address knows of it: a person has it shown no more. It is told all the same, since the
/// right journal may come back.
#[test]
fn a_destination_that_was_installed_anew_is_told_until_it_knows() {
    let mut doubt = Doubt::with_another_journal();
    settle(doubt.a(), SettledOwner::Here, false).unwrap();
    assert!(doubt.old.is_running());
    until("why is not said", || {
        list(doubt.a())[0].why.contains("knows nothing")
    });
    let vm = "vm".to_owned();
    assert!(list(doubt.a())[0].state.needs_someone());
    let told = recover(doubt.a(), RecoverRequest::Close { vm }).unwrap();
    assert!(told.said.contains("is told once a minute"), "{}", told.said);
    assert_eq!(told.half_done, []);
    assert_eq!(doubt.owner(0), ("here".to_owned(), 2));

    doubt.kill_b();
    doubt.start_b();
    doubt.restart_a();
    assert_eq!(list(doubt.a()), []);
    until("the destination still claims the guest", || {
        doubt.owner(1) == ("away".to_owned(), 2)
    });
    assert!(doubt.old.is_running() && !doubt.new.is_running());
}

/// Its answer to the driver is on its way while the operator's own question is lost.
#[test]
fn an_answer_that_is_on_its_way_comes_before_the_decision() {
    let mut doubt = Doubt::after(handover());
    doubt.kill_b();
    let listener = TcpListener::bind(&doubt.addresses[1]).unwrap();
    doubt.proxy.restore();
    let (mut asks, _) = listener.accept().unwrap();
    let hear = |stream: &mut TcpStream| {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).unwrap();
        let header = FrameHeader::from_bytes(&header).unwrap();
        stream
            .read_exact(&mut vec![0; header.payload_len()])
            .unwrap();
    };
    hear(&mut asks);
    let reply = frame(FrameKind::HelloReply, 1, &Hello::own().to_bytes());
    asks.write_all(&reply).unwrap();
    hear(&mut asks);
    std::thread::spawn(move || {
        drop(listener.accept().unwrap());
        std::thread::sleep(Duration::from_millis(300));
        let answer = unchecked(&Control::OwnerAnswer { committed: true });
        asks.write_all(&answer).unwrap();
        let _ = asks.read(&mut [0; 1024]);
    });
    let refused = settle(doubt.a(), SettledOwner::Here, false).unwrap_err();
    assert_eq!(refused.code, ErrorCode::TooLate, "{refused}");
    assert_eq!(doubt.a().report(ID).result, RunResult::Completed);
    assert_eq!(doubt.owner(0), ("away".to_owned(), 1));
    assert!(!doubt.old.is_running());
}

#[test]
fn a_guest_that_is_given_up_is_ended_here() {
    let mut doubt = Doubt::after(handover());
    doubt.kill_b();
    // As well after a restart, where a question waits instead of a driver.
    doubt.restart_a();
    until("nobody asks", || !list(doubt.a())[0].why.is_empty());
    let said = settle(doubt.a(), SettledOwner::There, false).unwrap();
    assert!(said.contains("its VMM was ended"), "{said}");
    until("its VMM stays", || !doubt.old.is_running());
    assert_eq!(doubt.owner(0), ("away".to_owned(), 1));
    let report = doubt.a().report(ID);
    assert_eq!(report.result, RunResult::Failed);
    assert_eq!((report.owner.as_str(), report.epoch), ("destination", 1));
    assert_eq!(list(doubt.a()), []);
}

/// Somebody has typed `cont` into its monitor.
#[test]
fn a_guest_that_runs_already_is_not_taken_back() {
    let mut doubt = Doubt::after(handover());
    doubt.kill_b();
    // The driver has its connection; a question has it only while it looks.
    doubt.restart_a();
    doubt.old.client().resume().unwrap();
    let refused = settle(doubt.a(), SettledOwner::Here, false).unwrap_err();
    assert!(refused.message.contains("runs here already"), "{refused}");
    assert_eq!(doubt.owner(0).0, "in-doubt");
    doubt.restart_a();
    assert_eq!(doubt.owner(0), ("here".to_owned(), 0));
}

/// Two data planes and a guest that runs at the second, with pages at the first, whose link was lost.
struct CutOff {
    folder: tempfile::TempDir,
    addresses: [String; 2],
    daemons: [Daemon; 2],
    old: TestGuest,
    new: TestGuest,
    proxy: Proxy,
}

impl CutOff {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let addresses = [free_address(), free_address()];
        let mut daemons = [0, 1].map(|at| start(folder.path(), &addresses, at));
        let old = TestGuest::start(folder.path(), "source", &outruns(false));
        let new = TestGuest::start(folder.path(), "destination", &outruns(true));
        daemons[0].attach(&old);
        daemons[1].attach(&new);
        let proxy = Proxy::start(
            &addresses[1],
            Plan {
                connections: common::proxy::missing(1)..common::proxy::missing(1) + 1,
                way: Way::ToDestination,
                harm: Harm::Sever { bytes: 1 << 20 },
            },
        );
        migrate(
            &mut daemons[0],
            &proxy,
            TransferSettings {
                bandwidth_limit_mbit: 200,
                if_not_converged: NotConverged::PostCopy,
                ..settings()
            },
        );
        until("the source is not cut off", || {
            is(&mut daemons[0], HalfDoneState::CutOff)
        });
        Self {
            folder,
            addresses,
            daemons,
            old,
            new,
            proxy,
        }
    }
}

fn is(daemon: &mut Daemon, state: HalfDoneState) -> bool {
    list(daemon).iter().any(|open| open.state == state)
}

#[test]
fn what_is_missing_nobody_takes_back() {
    let CutOff {
        folder,
        daemons: [mut a, b],
        old,
        new,
        ..
    } = CutOff::new();
    b.kill();
    let refused = settle(&mut a, SettledOwner::Here, false).unwrap_err();
    assert!(
        refused.message.contains("older than its disks"),
        "{refused}"
    );
    settle(&mut a, SettledOwner::There, false).unwrap();
    until("its VMM stays", || !old.is_running());
    let report = a.report(ID);
    assert_eq!(report.result, RunResult::Failed, "{}", report.reason);
    let state = Journal::read(&folder.path().join("a")).unwrap().state();
    assert_eq!(state.stage(ID, Role::Source), Some(Stage::Committed));
    assert_eq!(list(&mut a), []);
    // Whose memory is not whole it was never.
    drop(new);
}

/// The source's host was started anew: its data plane is back, its VMM and the guest's pages are not.
#[test]
fn a_guest_whose_pages_are_lost_is_given_up_where_it_waits() {
    let CutOff {
        folder,
        addresses,
        daemons: [a, mut b],
        old,
        new,
        proxy,
    } = CutOff::new();
    until("the destination says nothing of it", || {
        is(&mut b, HalfDoneState::CutOff)
    });
    let told = &list(&mut b)[0];
    assert!(told.state.needs_someone());
    assert!(told.advice.contains("--owner there"), "{}", told.advice);
    assert!(!told.advice.contains("dwcp cancel"), "{}", told.advice);
    let refused = settle(&mut b, SettledOwner::There, false).unwrap_err();
    assert!(
        refused.message.contains("has the missing pages"),
        "{refused}"
    );
    let tried = try_now(&mut b).unwrap();
    assert!(
        tried.said.contains("has the missing pages"),
        "{}",
        tried.said
    );

    a.kill();
    old.client().quit().unwrap();
    let mut a = start(folder.path(), &addresses, 0);
    until("the source does not say that they are lost", || {
        is(&mut a, HalfDoneState::Failed)
    });
    let told = &list(&mut a)[0];
    assert!(
        told.advice.contains("dwcp recover vm --owner there"),
        "{}",
        told.advice
    );
    // It can be reached, and has nothing to say on the link itself.
    proxy.restore();
    let tried = try_now(&mut b).unwrap();
    assert!(tried.said.contains("are lost"), "{}", tried.said);
    let would = settle(&mut b, SettledOwner::There, true).unwrap();
    assert!(would.contains("would end the VMM"), "{would}");
    // Not carried out: the process of this guest's VMM is that of the test.
    drop(new);
}
