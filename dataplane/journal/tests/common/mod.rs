//! Records for tests.
#![allow(dead_code, unreachable_pub, missing_docs)]

use dwcp_api::{Attachment, MigrationId, Role};
use dwcp_journal::{Record, RecordKind};

pub fn record(migration: u128, vm: &str, role: Role, epoch: u64, kind: RecordKind) -> Record {
    Record {
        sequence: 0,
        migration: MigrationId(migration),
        vm: vm.to_owned(),
        role,
        peer_node: "b".to_owned(),
        peer_address: "192.0.2.2:7000".to_owned(),
        tls: false,
        epoch,
        wall_ms: 1_700_000_000_000,
        kind,
    }
}

pub fn begin() -> RecordKind {
    RecordKind::Begin {
        attachment: Attachment::Qemu {
            qmp_socket: "/run/vm.qmp".to_owned(),
            uffd_socket: None,
        },
    }
}

pub fn aborted() -> RecordKind {
    RecordKind::Aborted {
        reason: "peer went silent".to_owned(),
    }
}
