//! All VMs of a node are looked at side by side: one whose VMM hangs is in nobody's way.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_api::VmInfo;

use super::node::lock;
use crate::vmm::VmmError;

/// Whoever has not answered by then is shown so; a control plane waits five times as long for the list.
const LOOK_TIME: Duration = Duration::from_secs(3);

/// Threads that look.
const THREADS_MAX: usize = 16;

/// Names of the VMs that are being asked: one that hangs is not asked again meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Looking(Arc<Mutex<HashSet<String>>>);

/// What a look at a VM is.
type Look = fn(&VmInfo) -> Result<VmInfo, VmmError>;

impl Looking {
    /// What these VMs say of themselves, by name, within the time there is; nothing of those that do not answer.
    pub(super) fn at(
        &self,
        all: Vec<VmInfo>,
        look: Look,
    ) -> HashMap<String, Result<VmInfo, VmmError>> {
        let (tell, told) = channel();
        let count = all.len();
        let queue = Arc::new(Mutex::new(VecDeque::from(all)));
        for _ in 0..count.min(THREADS_MAX) {
            let (looking, queue, tell) = (self.clone(), Arc::clone(&queue), tell.clone());
            let run = move || looking.work(&queue, look, &tell);
            // Without it others have more to do.
            let _ = std::thread::Builder::new()
                .name("dwcp-look".into())
                .spawn(run);
        }
        drop(tell);
        let deadline = Instant::now() + LOOK_TIME;
        let mut found = HashMap::new();
        while found.len() < count
            && let Ok((name, seen)) =
                told.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            found.insert(name, seen);
        }
        // Nobody hears of the rest.
        lock(&queue).clear();
        found
    }

    fn work(
        &self,
        queue: &Mutex<VecDeque<VmInfo>>,
        look: Look,
        tell: &Sender<(String, Result<VmInfo, VmmError>)>,
    ) {
        loop {
            let Some(known) = lock(queue).pop_front() else {
                return;
            };
            if !lock(&self.0).insert(known.name.clone()) {
                continue;
            }
            let seen = look(&known);
            lock(&self.0).remove(&known.name);
            let _ = tell.send((known.name, seen));
        }
    }
}

#[cfg(test)]
mod tests {
    use dwcp_api::Attachment;

    use super::*;

    fn vm(name: &str) -> VmInfo {
        VmInfo {
            name: name.into(),
            attachment: Attachment::Process {
                socket: "/s".into(),
            },
            state: String::new(),
            ram_bytes: 0,
            tracker: String::new(),
            vmm: String::new(),
            note: String::new(),
        }
    }

    fn look(known: &VmInfo) -> Result<VmInfo, VmmError> {
        if known.name.starts_with("hangs") {
            std::thread::park_timeout(Duration::from_secs(60));
        }
        if known.name.starts_with("gone") {
            return Err(VmmError::Gone("test".into()));
        }
        Ok(VmInfo {
            state: "running".into(),
            ..known.clone()
        })
    }

    #[test]
    fn who_hangs_is_in_nobodys_way_and_is_not_asked_again_meanwhile() {
        let looking = Looking::default();
        let names = (0..40).map(|number| format!("vm{number}"));
        let all: Vec<_> = ["hangs1", "hangs2", "gone"]
            .map(String::from)
            .into_iter()
            .chain(names)
            .map(|name| vm(&name))
            .collect();
        for _ in 0..2 {
            let found = looking.at(all.clone(), look);
            assert_eq!(found.len(), 41);
            assert!(matches!(found["gone"], Err(VmmError::Gone(_))));
            assert!(found["vm39"].as_ref().is_ok_and(|vm| vm.state == "running"));
            assert_eq!(lock(&looking.0).len(), 2, "they are asked once");
        }
        assert!(looking.at(vec![], look).is_empty());
    }
}
