//! What the destination has before a guest comes: a disk image, or the RAM of another guest.

use std::path::Path;
use std::time::{Duration, Instant};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{RunResult, StoreEntry, StoreKind, StoreRequest, StoreState};

use super::{Binaries, GuestPair, Lab, LabError, LabNode, RunSpec};

/// An image is read, or a guest's RAM kept, within this time.
const STORE_TIME: Duration = Duration::from_secs(300);

/// Name of the guest that left the destination.
const SIBLING: &str = "sibling";

impl Lab {
    /// Gives the destination a disk image, and waits until it is indexed.
    ///
    /// # Errors
    /// [`LabError`]: the node refuses it, or cannot read it.
    pub fn hold_image(&mut self, image: &Path) -> Result<(), LabError> {
        let path = image
            .canonicalize()
            .map_err(LabError::system(image.display().to_string()))?;
        let entries = store(&mut self.b, StoreRequest::AddImage { path: path.clone() })?;
        let kind = StoreKind::Image { path };
        wait_held(&mut self.b, &kind, entries)
    }

    /// Lets another guest leave the destination for the source, over the same link: the destination
    /// keeps its RAM. That guest ends then.
    ///
    /// # Errors
    /// [`LabError`]: it did not start, or did not leave.
    pub fn hold_sibling(&mut self, spec: &RunSpec, folder: &Path) -> Result<(), LabError> {
        std::fs::create_dir_all(folder).map_err(LabError::system("folder of the sibling"))?;
        let pair = GuestPair::start(&spec.guest, folder, &Binaries::find()?)?;
        let vm = || SIBLING.to_owned();
        for (node, attachment) in [
            (&mut self.b, pair.source()),
            (&mut self.a, pair.destination()),
        ] {
            let name = vm();
            node.ask(&Request::AttachVm { name, attachment })?;
        }
        let request = Request::Migrate {
            vm: vm(),
            to: self.a.address().to_owned(),
            settings: spec.settings.clone(),
            dry_run: false,
        };
        let Reply::Started { id } = self.b.ask(&request)? else {
            return Err(LabError::Start {
                what: "the sibling's migration".into(),
                detail: "the node answers something else".into(),
            });
        };
        std::mem::swap(&mut self.a, &mut self.b);
        let report = self.wait_report(id, &mut |_| {});
        std::mem::swap(&mut self.a, &mut self.b);
        let report = report?;
        if report.result != RunResult::Completed {
            return Err(LabError::Start {
                what: "the sibling that is to leave".into(),
                detail: report.reason,
            });
        }
        let entries = store(&mut self.b, StoreRequest::List)?;
        wait_held(&mut self.b, &StoreKind::Baseline { vm: vm() }, entries)
    }
}

fn store(node: &mut LabNode, request: StoreRequest) -> Result<Vec<StoreEntry>, LabError> {
    match node.ask(&Request::Store(request))? {
        Reply::Store(entries) => Ok(entries),
        other => Err(LabError::Start {
            what: "the node's store".into(),
            detail: format!("{other:?}"),
        }),
    }
}

fn wait_held(
    node: &mut LabNode,
    kind: &StoreKind,
    mut entries: Vec<StoreEntry>,
) -> Result<(), LabError> {
    let deadline = Instant::now() + STORE_TIME;
    loop {
        let entry = StoreEntry::newest(&entries, kind);
        match entry.map(|entry| &entry.state) {
            Some(StoreState::Ready) => return Ok(()),
            Some(StoreState::Failed { reason }) => {
                return Err(LabError::Start {
                    what: format!("keeping {kind:?}"),
                    detail: reason.clone(),
                });
            }
            Some(StoreState::Indexing { .. }) | None => {}
        }
        if Instant::now() > deadline {
            return Err(LabError::Timeout(format!("keeping {kind:?}")));
        }
        std::thread::sleep(Duration::from_millis(50));
        entries = store(node, StoreRequest::List)?;
    }
}
