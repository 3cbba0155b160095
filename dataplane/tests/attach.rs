//! Attaching and detaching while a VMM says nothing.

mod common;

use std::os::unix::net::UnixListener;

use common::{node, settings, until};
use dwcp_api::{Attachment, ErrorCode};

/// It would stay on record for ever: it is tried to be attached again and again.
#[test]
fn a_vm_whose_vmm_says_nothing_can_be_detached() {
    let folder = tempfile::tempdir().unwrap();
    let a = node(folder.path(), "a", &settings());
    let socket = folder.path().join("silent.sock");
    let silent = UnixListener::bind(&socket).unwrap();
    let attachment = Attachment::Process {
        socket: socket.to_str().unwrap().into(),
    };
    std::thread::scope(|scope| {
        let attaching = scope.spawn(|| a.node.attach("vm", attachment.clone()));
        until("attaching is not seen", || {
            a.node.list().iter().any(|vm| vm.state == "attaching")
        });
        a.node.detach("vm").unwrap();
        assert_eq!(a.node.list(), []);
        let again = a.node.detach("vm").unwrap_err();
        assert_eq!(again.code, ErrorCode::NotFound);
        // The look goes on, and nobody else looks meanwhile.
        let busy = a.node.attach("vm", attachment.clone()).unwrap_err();
        assert_eq!(busy.code, ErrorCode::Busy);
        drop(silent.accept().unwrap());
        let ended = attaching.join().unwrap().unwrap_err();
        assert_eq!(ended.code, ErrorCode::NotFound);
    });
    drop(silent);
    let gone = a.node.attach("vm", attachment).unwrap_err();
    assert!(gone.message.contains("gone"), "{gone}");
    assert_eq!(a.node.list(), []);
}
