//! What the demo shows: the result, and where the time went.

use std::fmt::Write;

use dwcp_api::MigrationReport;
use dwcp_tools::lab::{GuestChoice, GuestSpec};

use crate::show;

const BAR_CELLS: f64 = 40.0;

/// The result of one run, and where the time went.
pub(crate) fn report(report: &MigrationReport, guest: &GuestSpec) -> String {
    let what = match guest.choice {
        GuestChoice::Synthetic => "a process",
        GuestChoice::Qemu => "QEMU, the project's own kernel",
        GuestChoice::Linux => "QEMU, Linux",
        GuestChoice::Workload(guest) => guest.workload.name(),
    };
    let mut out = show::report(report);
    let _ = write!(
        out,
        "\n\nguest: {what}, {} MiB RAM, {} MiB filled, {} pages/s rewritten while it was moved\n\n",
        guest.ram_mib, guest.fill_mib, guest.dirty_pages_per_s
    );
    out.push_str("where the time went (ms)\n");
    let running = report.total_ms - report.downtime_ms;
    bar(&mut out, "guest running", running, report.total_ms);
    bar(
        &mut out,
        "guest paused",
        report.downtime_ms,
        report.total_ms,
    );
    out.push_str("of the pause\n");
    let parts = &report.downtime_parts_ms;
    for (name, ms) in [
        ("last dirty pages", parts.last_dirty_pages),
        ("proof of all RAM", parts.verify),
        ("device state", parts.device_state),
        ("handover", parts.handover),
        ("resume", parts.resume),
    ] {
        bar(&mut out, name, ms, report.downtime_ms);
    }
    out
}

fn bar(out: &mut String, name: &str, ms: f64, whole_ms: f64) {
    let share = if whole_ms > 0.0 {
        (ms / whole_ms).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let cells = (share * BAR_CELLS).round() as usize;
    let _ = writeln!(out, "  {name:<17}{ms:>9.1}  {}", "█".repeat(cells));
}

/// Many runs, a line each.
pub(crate) fn table(reports: &[MigrationReport], times: u32) -> String {
    let mut out = String::from(
        "run  result     verified  guest  tracker      transport  total ms  pause ms\n",
    );
    for (turn, report) in reports.iter().enumerate() {
        let guest = match report.guest_verified {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        let _ = writeln!(
            out,
            "{:>3}  {:<9}  {:<8}  {:<5}  {:<11}  {:<9}  {:>8.0}  {:>8.1}",
            turn + 1,
            format!("{:?}", report.result).to_lowercase(),
            if report.verified { "yes" } else { "NO" },
            guest,
            report.tracker,
            report.transport,
            report.total_ms,
            report.downtime_ms
        );
    }
    let good = reports
        .iter()
        .filter(|r| r.verified && r.guest_verified == Some(true))
        .count();
    let _ = writeln!(
        out,
        "{good} of {times} moved, verified, and confirmed by the guest"
    );
    out
}
