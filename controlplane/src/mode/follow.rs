//! Follows the paths of migrations, and has the data plane change with their modes.

use std::time::{Duration, Instant};

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{MigrationId, MigrationStatus, PathMode, Tune};

use super::{Detector, Finding, Mode};
use crate::dataplane::Client;
use crate::profile;

/// Between two looks: as often as the data plane looks at its sockets.
const INTERVAL: Duration = Duration::from_millis(200);

/// Looks at the path of a migration until it has ended, or nobody knows it any more. `mode` is what it began
/// as.
pub async fn follow(client: Client, id: MigrationId, mode: Mode) {
    let began = Instant::now();
    let mut detector = Detector::new(mode);
    loop {
        tokio::time::sleep(INTERVAL).await;
        // Without a data plane there is nothing to follow; with another one the migration is over.
        let Ok(Reply::Migration(status)) = client.call(Request::Status { id }).await else {
            return;
        };
        if status.report.is_some() {
            return;
        }
        let Some(finding) = look(&mut detector, began.elapsed(), &status) else {
            continue;
        };
        tracing::info!(%id, mode = %finding.mode, why = finding.why, "the path's mode changes");
        let tune = Tune::PathMode(change(finding));
        if let Err(error) = client.call(Request::TuneMigration { id, tune }).await {
            tracing::info!(%id, %error, "the mode is not changed");
        }
    }
}

fn look(detector: &mut Detector, now: Duration, status: &MigrationStatus) -> Option<Finding> {
    detector.observe(now, status.path.as_ref()?)
}

/// What a mode's own profile has the streams use.
fn change(finding: Finding) -> PathMode {
    let settings = profile::load(finding.mode.name()).ok();
    PathMode {
        mode: finding.mode.name().to_owned(),
        why: finding.why,
        congestion_control: settings.and_then(|settings| settings.congestion_control),
    }
}
