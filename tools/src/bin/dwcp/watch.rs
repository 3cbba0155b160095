//! Waiting for the end of a migration, with or without progress.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{ErrorCode, MigrationId, MigrationReport, MigrationStatus, PhaseName};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

/// Between two questions to the node.
const PERIOD: Duration = Duration::from_millis(200);

/// A daemon that is being restarted is waited for so long.
const DOWN_MAX: Duration = Duration::from_secs(30);

/// Waits until a migration has its report.
pub(crate) fn until_end(
    id: MigrationId,
    show_progress: bool,
    context: &mut Context,
) -> Result<MigrationReport, Failure> {
    let mut display = show_progress.then(Display::new);
    let mut down_since: Option<Instant> = None;
    let mut phase = None;
    loop {
        match status(id, context) {
            Ok(status) => {
                down_since = None;
                if phase.replace(status.phase) != Some(status.phase)
                    && let Some(words) = waits(&status)
                {
                    eprintln!("{words}");
                }
                if let Some(display) = &mut display {
                    display.show(&status);
                }
                if let Some(report) = status.report {
                    return Ok(report);
                }
            }
            Err(Failure::Api(error)) if error.code == ErrorCode::PlaneDown => {
                let since = *down_since.get_or_insert_with(Instant::now);
                if since.elapsed() > DOWN_MAX {
                    return Err(error.into());
                }
            }
            Err(Failure::Api(error)) if error.code == ErrorCode::NotFound => {
                let hint = "the data plane was restarted; `dwcp journal` says who owns the VM";
                return Err(error.with_hint(hint).into());
            }
            Err(failure) => return Err(failure),
        }
        std::thread::sleep(PERIOD);
    }
}

/// What a person should know who waits for one that may wait for ever.
fn waits(status: &MigrationStatus) -> Option<String> {
    let (vm, peer) = (&status.vm, &status.peer);
    let why = match status.phase {
        PhaseName::InDoubt => {
            format!("the handover to {peer} was sent, and its answer is not known")
        }
        PhaseName::PostcopyPaused => {
            format!("the way to {peer} is lost, and pages are missing there")
        }
        _ => return None,
    };
    Some(format!(
        "{vm}: {why}; `dwcp recover {vm}` says what can be done"
    ))
}

fn status(id: MigrationId, context: &mut Context) -> Result<MigrationStatus, Failure> {
    let which = Some(id.to_string());
    match context.node.ask(&Request::Status { which })? {
        Reply::Migrations(list) => list
            .into_iter()
            .find(|status| status.id == id)
            .ok_or_else(|| Failure::NotFound(format!("no migration {id}"))),
        other => Err(Failure::unexpected(&other)),
    }
}

/// A bar on a terminal, a line per round elsewhere; both on standard error.
pub(crate) struct Display {
    bar: Option<ProgressBar>,
    last_line: Option<(u32, PhaseName)>,
}

impl Display {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let template = "{prefix} [{bar:24}] {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self {
            bar,
            last_line: None,
        }
    }

    pub(crate) fn show(&mut self, status: &MigrationStatus) {
        let progress = &status.progress;
        let now = (progress.round, status.phase);
        let Some(bar) = &self.bar else {
            if self.last_line.replace(now) != Some(now) {
                eprintln!("{}", show::progress_line(status));
            }
            return;
        };
        bar.set_length(progress.pages_in_round);
        bar.set_position(progress.pages_in_round.saturating_sub(progress.pages_left));
        bar.set_prefix(format!("{} {}", status.vm, show::phase(status.phase)));
        bar.set_message(format!(
            "round {}, {}, {} sent{}, ETA {}, limited by {}",
            progress.round,
            show::rate(progress.bytes_per_s),
            show::bytes(progress.wire_bytes),
            show::carrier(progress),
            show::eta(progress),
            show::limit(progress.limit),
        ));
        if status.report.is_some() {
            bar.finish_and_clear();
        }
    }
}
