//! Values of keys to settings, and back.

use dwcp_api::{
    Codec, IoPath, KernelTlsChoice, NotConverged, Prefer, RdmaChoice, STREAMS_MAX, SendChoice,
    TlsChoice, TrackerChoice, TransferSettings, Verify,
};

use super::keys::HOST;
use crate::config::{AUTO, Value, Values};

const LEVEL_WHEN_RAW: i64 = 1;
const WINDOW_BYTES_WHEN_NONE: u64 = 64 << 20;

/// Values of the kinds that keys take.
struct Typed<'a>(&'a Values);

impl<'a> Typed<'a> {
    fn word(&self, key: &str) -> Option<&'a str> {
        match self.0.get(key) {
            Some(Value::Text(text)) => Some(text.as_str()),
            _ => None,
        }
    }

    fn integer(&self, key: &str) -> Option<i64> {
        match self.0.get(key) {
            Some(Value::Integer(value)) => Some(*value),
            _ => None,
        }
    }

    fn quantity(&self, key: &str) -> Option<u64> {
        match self.0.get(key) {
            Some(Value::Quantity(value)) => Some(*value),
            _ => None,
        }
    }

    fn boolean(&self, key: &str) -> Option<bool> {
        match self.0.get(key) {
            Some(Value::Boolean(value)) => Some(*value),
            _ => None,
        }
    }
}

/// The settings that a complete set of values stands for; `None` when one is absent or of the wrong
/// type, which the parser and the tests of the built-in profiles rule out.
pub(super) fn settings(values: &Values) -> Option<TransferSettings> {
    let from = Typed(values);
    let ms = |key: &str| u32::try_from(from.quantity(key)?).ok();
    let congestion_control = from.word("transfer.congestion_control")?;
    let (streams, measure_streams) = streams(values.get("transfer.streams")?)?;
    Some(TransferSettings {
        mode: from.word("mode")?.to_owned(),
        streams,
        measure_streams,
        workers: u16::try_from(from.integer("transfer.workers")?).ok()?,
        at_once: u16::try_from(from.integer("transfer.at_once")?).ok()?,
        priority: u8::try_from(from.integer("transfer.priority")?).ok()?,
        tls: match from.word("transfer.tls")? {
            "on" => TlsChoice::On,
            "off" => TlsChoice::Off,
            _ => TlsChoice::Auto,
        },
        kernel_tls: match from.word("transfer.kernel_tls")? {
            "auto" => KernelTlsChoice::Auto,
            _ => KernelTlsChoice::Off,
        },
        rdma: match from.word("transfer.rdma")? {
            "off" => RdmaChoice::Off,
            "required" => RdmaChoice::Required,
            _ => RdmaChoice::Auto,
        },
        io: match from.word("transfer.io")? {
            "uring" => IoPath::Uring,
            "poll" => IoPath::Poll,
            _ => IoPath::Auto,
        },
        send: send(from.word("transfer.send")?),
        window_bytes: from.quantity("transfer.window")?,
        codec: codec(&from)?,
        reuse: from.boolean("pages.reuse")?,
        remember_bytes: from.quantity("pages.remember")?,
        tracker: match from.word("tracker.prefer")? {
            "userfaultfd" => TrackerChoice::Userfaultfd,
            "soft-dirty" => TrackerChoice::SoftDirty,
            "fingerprint" => TrackerChoice::Fingerprint,
            _ => TrackerChoice::Auto,
        },
        verify: match from.word("verify.mode")? {
            "full" => Verify::Full,
            _ => Verify::Sample,
        },
        sample_pages: u32::try_from(from.integer("verify.sample_pages")?).ok()?,
        downtime_limit_ms: ms("switchover.downtime_limit")?,
        downtime_limit_at_last_ms: ms("switchover.downtime_limit_at_last")?,
        rounds_max: u32::try_from(from.integer("switchover.rounds_max")?).ok()?,
        if_not_converged: match from.word("switchover.if_not_converged")? {
            "switch-over" => NotConverged::SwitchOver,
            "post-copy" => NotConverged::PostCopy,
            _ => NotConverged::Abort,
        },
        throttle_percent_max: u8::try_from(from.integer("switchover.throttle_percent_max")?)
            .ok()?,
        deadline_ms: ms("timeouts.deadline")?,
        connect_timeout_ms: ms("timeouts.connect")?,
        peer_silence_ms: ms("timeouts.peer_silence")?,
        congestion_control: (congestion_control != HOST).then(|| congestion_control.to_owned()),
        bandwidth_limit_mbit: u32::try_from(from.integer("transfer.bandwidth_limit_mbit")?).ok()?,
        follow_path: from.boolean("transfer.follow_path")?,
        busy_poll_us: u16::try_from(from.integer("transfer.busy_poll_us")?).ok()?,
        pin_workers: from.boolean("transfer.pin")?,
        paths: vec![],
    })
}

/// How many are opened, and whether it is measured how many carry pages.
fn streams(value: &Value) -> Option<(u16, bool)> {
    match value {
        Value::Integer(streams) => Some((u16::try_from(*streams).ok()?, false)),
        Value::Text(word) if word == AUTO => Some((STREAMS_MAX, true)),
        _ => None,
    }
}

fn send(word: &str) -> SendChoice {
    match word {
        "zero-copy" => SendChoice::ZeroCopy,
        "vmsplice" => SendChoice::Vmsplice,
        "sendfile" => SendChoice::Sendfile,
        "write" => SendChoice::Write,
        "copy" => SendChoice::Copy,
        _ => SendChoice::Auto,
    }
}

fn codec(from: &Typed<'_>) -> Option<Codec> {
    let level = i32::try_from(from.integer("pages.zstd_level")?).ok()?;
    let window_bytes = from.quantity("pages.zstd_window")?;
    let prefer = match from.word("pages.prefer")? {
        "bytes" => Prefer::Bytes,
        _ => Prefer::Time,
    };
    Some(match from.word("pages.codec")? {
        "zstd" => Codec::Zstd { level },
        "window" => Codec::Window {
            level,
            window_bytes,
        },
        "auto" => Codec::Auto {
            window_bytes,
            prefer,
        },
        _ => Codec::Raw,
    })
}

/// The values that a codec stands for.
fn codec_values(codec: Codec) -> [(&'static str, Value); 4] {
    let (name, level, window_bytes) = match codec {
        Codec::Raw => ("raw", LEVEL_WHEN_RAW, WINDOW_BYTES_WHEN_NONE),
        Codec::Zstd { level } => ("zstd", level.into(), WINDOW_BYTES_WHEN_NONE),
        Codec::Window {
            level,
            window_bytes,
        } => ("window", level.into(), window_bytes),
        Codec::Auto { window_bytes, .. } => ("auto", LEVEL_WHEN_RAW, window_bytes),
    };
    let prefer = match codec {
        Codec::Auto {
            prefer: Prefer::Bytes,
            ..
        } => "bytes",
        _ => "time",
    };
    [
        ("pages.codec", Value::Text(name.to_owned())),
        ("pages.prefer", Value::Text(prefer.to_owned())),
        ("pages.zstd_level", Value::Integer(level)),
        ("pages.zstd_window", Value::Quantity(window_bytes)),
    ]
}

const fn tls_word(tls: TlsChoice) -> &'static str {
    match tls {
        TlsChoice::Auto => "auto",
        TlsChoice::On => "on",
        TlsChoice::Off => "off",
    }
}

const fn kernel_tls_word(kernel_tls: KernelTlsChoice) -> &'static str {
    match kernel_tls {
        KernelTlsChoice::Off => "off",
        KernelTlsChoice::Auto => "auto",
    }
}

const fn rdma_word(rdma: RdmaChoice) -> &'static str {
    match rdma {
        RdmaChoice::Auto => "auto",
        RdmaChoice::Off => "off",
        RdmaChoice::Required => "required",
    }
}

const fn send_word(send: SendChoice) -> &'static str {
    match send {
        SendChoice::Auto => "auto",
        SendChoice::ZeroCopy => "zero-copy",
        SendChoice::Vmsplice => "vmsplice",
        SendChoice::Sendfile => "sendfile",
        SendChoice::Write => "write",
        SendChoice::Copy => "copy",
    }
}

const fn io_word(io: IoPath) -> &'static str {
    match io {
        IoPath::Auto => "auto",
        IoPath::Uring => "uring",
        IoPath::Poll => "poll",
    }
}

const fn tracker_word(tracker: TrackerChoice) -> &'static str {
    match tracker {
        TrackerChoice::Auto => "auto",
        TrackerChoice::Userfaultfd => "userfaultfd",
        TrackerChoice::SoftDirty => "soft-dirty",
        TrackerChoice::Fingerprint => "fingerprint",
    }
}

const fn not_converged_word(end: NotConverged) -> &'static str {
    match end {
        NotConverged::Abort => "abort",
        NotConverged::SwitchOver => "switch-over",
        NotConverged::PostCopy => "post-copy",
    }
}

/// The values that settings stand for: [`settings`] of them gives the same settings.
pub(super) fn values(settings: &TransferSettings) -> Values {
    let word = |text: &str| Value::Text(text.to_owned());
    let tracker = tracker_word(settings.tracker);
    let verify = match settings.verify {
        Verify::Sample => "sample",
        Verify::Full => "full",
    };
    let if_not_converged = not_converged_word(settings.if_not_converged);
    let congestion_control = settings.congestion_control.as_deref().unwrap_or(HOST);
    let streams = match settings.measure_streams {
        true => word(AUTO),
        false => Value::Integer(settings.streams.into()),
    };
    let quantity = |ms: u32| Value::Quantity(ms.into());
    let integer = |number: u32| Value::Integer(number.into());
    let mut values = Values::from([
        ("mode", word(&settings.mode)),
        ("transfer.streams", streams),
        ("transfer.workers", integer(settings.workers.into())),
        ("transfer.at_once", integer(settings.at_once.into())),
        ("transfer.priority", integer(settings.priority.into())),
        ("transfer.tls", word(tls_word(settings.tls))),
        (
            "transfer.kernel_tls",
            word(kernel_tls_word(settings.kernel_tls)),
        ),
        ("transfer.rdma", word(rdma_word(settings.rdma))),
        ("transfer.io", word(io_word(settings.io))),
        ("transfer.send", word(send_word(settings.send))),
        ("transfer.window", Value::Quantity(settings.window_bytes)),
        ("transfer.congestion_control", word(congestion_control)),
        (
            "transfer.bandwidth_limit_mbit",
            integer(settings.bandwidth_limit_mbit),
        ),
        ("transfer.follow_path", Value::Boolean(settings.follow_path)),
        (
            "transfer.busy_poll_us",
            integer(settings.busy_poll_us.into()),
        ),
        ("transfer.pin", Value::Boolean(settings.pin_workers)),
        ("pages.reuse", Value::Boolean(settings.reuse)),
        ("pages.remember", Value::Quantity(settings.remember_bytes)),
        ("tracker.prefer", word(tracker)),
        (
            "switchover.downtime_limit",
            quantity(settings.downtime_limit_ms),
        ),
        (
            "switchover.downtime_limit_at_last",
            quantity(settings.downtime_limit_at_last_ms),
        ),
        ("switchover.rounds_max", integer(settings.rounds_max)),
        (
            "switchover.throttle_percent_max",
            integer(settings.throttle_percent_max.into()),
        ),
        ("switchover.if_not_converged", word(if_not_converged)),
        ("verify.mode", word(verify)),
        ("verify.sample_pages", integer(settings.sample_pages)),
        ("timeouts.connect", quantity(settings.connect_timeout_ms)),
        ("timeouts.deadline", quantity(settings.deadline_ms)),
        ("timeouts.peer_silence", quantity(settings.peer_silence_ms)),
    ]);
    values.extend(codec_values(settings.codec));
    values
}
