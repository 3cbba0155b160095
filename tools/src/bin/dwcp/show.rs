//! Numbers and tables for people.

use comfy_table::{Cell, Table, presets};
use dwcp_api::{
    DowntimePartsMs, Forecast, Limit, MigrationReport, MigrationStatus, PageCounts, PhaseName,
    PostcopyReport, Progress, Prospect, RunResult, TlsReport,
};

/// Bytes with a binary unit, three digits.
pub(crate) fn bytes(value: u64) -> String {
    scaled(value as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A rate in bytes per second.
pub(crate) fn rate(bytes_per_s: f64) -> String {
    format!(
        "{}/s",
        scaled(bytes_per_s, 1000.0, &["B", "kB", "MB", "GB", "TB"])
    )
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = if value.is_finite() {
        value.max(0.0)
    } else {
        0.0
    };
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// Milliseconds, in seconds or minutes when long.
pub(crate) fn duration(ms: f64) -> String {
    match ms {
        ms if ms < 1000.0 => format!("{ms:.1} ms"),
        ms if ms < 120_000.0 => format!("{:.1} s", ms / 1000.0),
        ms => format!("{:.1} min", ms / 60_000.0),
    }
}

/// Time left, as a range.
pub(crate) fn eta(progress: &Progress) -> String {
    if progress.forecast.is_some_and(|ahead| !ahead.converges) {
        return "none, the guest outruns its link".to_owned();
    }
    match progress.eta_ms {
        None => "not known yet".to_owned(),
        Some((low, high)) if low == high => duration(low as f64),
        Some((low, high)) => format!("{} to {}", duration(low as f64), duration(high as f64)),
    }
}

/// What limits a migration.
pub(crate) const fn limit(limit: Limit) -> &'static str {
    match limit {
        Limit::Unknown => "not known yet",
        Limit::Link => "link",
        Limit::Bandwidth => "bandwidth limit",
        Limit::Cpu => "CPU",
        Limit::DirtyRate => "dirty rate",
        Limit::Device => "device",
        Limit::Destination => "destination",
    }
}

/// A phase.
pub(crate) fn phase(phase: PhaseName) -> String {
    match phase {
        PhaseName::InDoubt => "in doubt".to_owned(),
        PhaseName::DryRun => "dry run".to_owned(),
        PhaseName::Postcopy => "post-copy".to_owned(),
        PhaseName::PostcopyPaused => "post-copy, link lost".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// How long it took, and how long it waited before.
fn total(report: &MigrationReport) -> String {
    let mut total = duration(report.total_ms);
    if report.rounds > 0 {
        total.push_str(&format!(" in {} rounds", report.rounds));
    }
    if report.queued_ms >= 1.0 {
        let queued = duration(report.queued_ms);
        total.push_str(&format!(", after {queued} in the queue"));
    }
    total
}

/// A result.
pub(crate) fn result(result: RunResult) -> String {
    match result {
        RunResult::DryRun => "dry run".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// A table with a head.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.map(Cell::new));
    for row in rows {
        table.add_row(row);
    }
    trim_ends(&table.to_string())
}

/// Names and values, one pair a line.
pub(crate) fn facts(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    trim_ends(&table.to_string())
}

fn trim_ends(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// One line of a running migration.
pub(crate) fn progress_line(status: &MigrationStatus) -> String {
    let progress = &status.progress;
    let done = progress.pages_in_round.saturating_sub(progress.pages_left);
    format!(
        "{} {}: round {}, {done} of {} pages, {}, {} sent{}, ETA {}, limited by {}",
        status.vm,
        phase(status.phase),
        progress.round,
        progress.pages_in_round,
        rate(progress.bytes_per_s),
        bytes(progress.wire_bytes),
        carrier(progress),
        eta(progress),
        limit(progress.limit),
    )
}

/// What carries pages, once that is decided.
pub(crate) fn carrier(progress: &Progress) -> String {
    match progress.transport.as_str() {
        "" => String::new(),
        transport => format!(" by {transport}"),
    }
}

/// The end of a migration. Of one that sent no round, or whose rounds are not known after a restart,
/// nothing is said that was measured.
pub(crate) fn report(report: &MigrationReport) -> String {
    let mut rows = vec![
        ("vm", report.vm.clone()),
        ("result", format!("{}: {}", ending(report), report.reason)),
        (
            "owner",
            format!("{} (epoch {})", report.owner, report.epoch),
        ),
    ];
    let has_rounds = report.rounds > 0;
    if has_rounds || report.verified {
        rows.push(("verified", verified(report)));
    }
    rows.push(("total", total(report)));
    if has_rounds || report.streams > 0 {
        rows.extend(measured(report));
    }
    rows.push(("id", report.id.to_string()));
    let mut text = facts(rows);
    for note in &report.notes {
        text.push_str(&format!("\n note: {note}"));
    }
    text
}

/// The result; of a dry run that failed, that it was one.
fn ending(report: &MigrationReport) -> String {
    let ending = result(report.result);
    if report.dry_run && report.result != RunResult::DryRun {
        return format!("dry run {ending}");
    }
    ending
}

fn verified(report: &MigrationReport) -> String {
    let verified = if report.verified { "yes" } else { "no" };
    let guest = report.guest_verified.map_or("", |good| {
        if good {
            ", checked by the guest"
        } else {
            ", REFUTED by the guest"
        }
    });
    format!("{verified}{guest}")
}

/// What this node knows: the pause and the kinds of pages are the source's to measure, and only of rounds that ended.
fn measured(report: &MigrationReport) -> Vec<(&'static str, String)> {
    let mut lines = vec![];
    if report.downtime_ms > 0.0 {
        lines.push(("downtime", duration(report.downtime_ms)));
        lines.push(("  parts", parts(&report.downtime_parts_ms)));
    }
    lines.push(("guest RAM", bytes(report.ram_bytes)));
    lines.push(("on the wire", bytes(report.wire_bytes)));
    let pages = &report.pages;
    if *pages != PageCounts::default() {
        let text = format!(
            "{} zero, {} unchanged, {} known, {} delta, {} compressed, {} raw",
            pages.zero, pages.unchanged, pages.known, pages.delta, pages.compressed, pages.raw
        );
        lines.push(("pages", text));
    }
    lines.push(("moved by", means(report)));
    lines.push(("CPU here", format!("{:.2} s", report.cpu_s)));
    if let Some(ahead) = &report.forecast {
        lines.push(("forecast", forecast(ahead)));
    }
    if let Some(postcopy) = &report.postcopy {
        let at = lines.iter().position(|(name, _)| *name == "guest RAM");
        lines.insert(at.unwrap_or(0), ("post-copy", fetched(postcopy)));
    }
    lines
}

fn parts(parts: &DowntimePartsMs) -> String {
    format!(
        "pause {:.1}, last pages {:.1}, device state {:.1}, verify {:.1}, handover {:.1}, resume {:.1} ms",
        parts.pause,
        parts.last_dirty_pages,
        parts.device_state,
        parts.verify,
        parts.handover,
        parts.resume
    )
}

/// What was to be expected.
pub(crate) fn forecast(ahead: &Forecast) -> String {
    format!("after round {}: {}", ahead.after_round, lies_ahead(ahead))
}

fn lies_ahead(ahead: &Forecast) -> String {
    let range = |low: f64, high: f64| format!("{} to {}", duration(low), duration(high));
    let pause = range(ahead.downtime_ms, ahead.downtime_ms_p90);
    if !ahead.converges {
        return format!("the guest outruns its link, the shortest pause would be {pause}");
    }
    let rounds = match ahead.rounds {
        1 => "1 more round".to_owned(),
        rounds => format!("{rounds} more rounds"),
    };
    let time = range(ahead.ms, ahead.ms_p90);
    format!("{rounds} in {time}, then a pause of {pause} beside device state")
}

/// What a dry run foretells.
pub(crate) fn prospect(ahead: &Prospect) -> String {
    let looked = format!(
        "{} pages have memory, and {} were written in {}",
        ahead.pages,
        ahead.dirty_pages,
        duration(ahead.looked_ms)
    );
    let would = match (&ahead.forecast, ahead.mbit) {
        (Some(forecast), Some(mbit)) => {
            format!(
                "at {mbit:.0} Mbit/s, {}: {}",
                ahead.basis,
                lies_ahead(forecast)
            )
        }
        _ => format!("no forecast: {}", ahead.basis),
    };
    let least = match ahead.least_mbit {
        Some(mbit) => format!("it converges from {mbit} Mbit/s of pages on"),
        None => "it converges at no rate".to_owned(),
    };
    [looked, would, least].join("\n")
}

/// What post-copy took.
fn fetched(postcopy: &PostcopyReport) -> String {
    let us = |us: u64| duration(us as f64 / 1000.0);
    let mut text = format!(
        "{} pages in {}; {} faults, half within {}, 99 of 100 within {}, the longest {}",
        postcopy.pages,
        duration(postcopy.fetch_ms as f64),
        postcopy.faults,
        us(postcopy.fault_p50_us),
        us(postcopy.fault_p99_us),
        us(postcopy.fault_max_us),
    );
    if postcopy.read_pages > 0 {
        text.push_str(&format!(
            "; {} pages READ by the adapter",
            postcopy.read_pages
        ));
    }
    if postcopy.breaks > 0 {
        text.push_str(&format!("; {} connections broke", postcopy.breaks));
    }
    text
}

/// What was used, as far as there is anything to say.
fn means(report: &MigrationReport) -> String {
    let named = |what: &str, name: &str| match name {
        "" => String::new(),
        name => format!("{what}{name}"),
    };
    let streams = match report.streams {
        0 => String::new(),
        streams if (1..streams).contains(&report.streams_in_use) => {
            format!("{} of {streams} streams", report.streams_in_use)
        }
        streams => format!("{streams} streams"),
    };
    let mut means = vec![
        report.mode.clone(),
        streams,
        report.transport.clone(),
        report.tls.as_ref().map(tls).unwrap_or_default(),
        named("tracker ", &report.tracker),
    ];
    means.retain(|part| !part.is_empty());
    means.join(", ")
}

fn tls(tls: &TlsReport) -> String {
    let by = match tls.kernel_streams {
        0 => String::new(),
        streams => format!(", {streams} by the kernel"),
    };
    format!(
        "{} {}, {} resumed{by}",
        tls.version, tls.cipher_suite, tls.resumed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(bytes(u64::MAX), "16777216 TiB");
        assert_eq!(rate(1.25e9), "1.2 GB/s");
        assert_eq!(rate(f64::NAN), "0 B/s");
        assert_eq!(duration(41.52), "41.5 ms");
        assert_eq!(duration(180_000.0), "3.0 min");
    }
}
