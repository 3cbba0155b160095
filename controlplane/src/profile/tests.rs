use dwcp_api::{Codec, Prefer, Verify};
use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::prelude::*;

use super::*;

fn faults(text: &str) -> Vec<config::ConfigError> {
    match parse("p.toml", text).unwrap_err() {
        ProfileError::Faults(errors) => errors.faults,
        other => panic!("{other}"),
    }
}

#[test]
fn the_built_in_profiles_give_every_key() {
    for (name, text) in BUILT_IN {
        let values = config::parse(Source { name, text }, keys::KEYS).unwrap();
        for key in keys::KEYS {
            assert!(values.contains_key(key.name), "{name} lacks {}", key.name);
        }
        let settings = load(name).unwrap();
        assert_eq!(&settings.mode, name);
        assert_eq!(parse("again", &to_toml(&settings)).unwrap(), settings);
        let zero_changes = with_changes(&settings, []).unwrap();
        assert_eq!(zero_changes, settings);
    }
}

#[test]
fn the_defaults_are_those_decided() {
    let datacenter = load("datacenter").unwrap();
    assert_eq!(datacenter.codec, Codec::Raw);
    assert_eq!((datacenter.streams, datacenter.workers), (2, 0));
    assert_eq!(datacenter.window_bytes, 64 << 20);
    assert_eq!(
        (datacenter.downtime_limit_ms, datacenter.rounds_max),
        (300, 30)
    );
    assert_eq!(
        (datacenter.verify, datacenter.sample_pages),
        (Verify::Sample, 1024)
    );
    assert_eq!(datacenter.congestion_control.as_deref(), Some("cubic"));
    let internet = load("internet").unwrap();
    assert_eq!(
        internet.codec,
        Codec::Auto {
            window_bytes: 64 << 20,
            prefer: Prefer::Bytes,
        }
    );
    assert_eq!((internet.streams, internet.window_bytes), (4, 128 << 20));
    assert_eq!(internet.congestion_control.as_deref(), Some("bbr"));
}

#[test]
fn a_file_starts_from_its_mode() {
    let settings = parse("p.toml", "mode = \"internet\"\n[transfer]\nstreams = 8\n").unwrap();
    assert_eq!((settings.streams, settings.window_bytes), (8, 128 << 20));
    assert!(matches!(
        parse("p.toml", "").unwrap_err(),
        ProfileError::NoMode { .. }
    ));
}

#[test]
fn a_wrong_unit_is_underlined_with_a_hint() {
    let text = "mode = \"hybrid\"\n[transfer]\nwindow = \"64ms\"\nstreams = 2\n";
    let [fault] = &faults(text)[..] else { panic!() };
    assert_eq!((fault.line(), fault.column(), fault.text()), (3, 13, "ms"));
    assert_eq!(
        fault.message,
        "`transfer.window` takes a size: unknown unit `ms`"
    );
    assert!(
        fault
            .hint
            .as_deref()
            .unwrap()
            .contains("B, KiB, MiB, GiB, TiB")
    );

    let error = parse("p.toml", text).unwrap_err();
    let mut shown = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .render_report(&mut shown, &error)
        .unwrap();
    assert!(shown.contains("p.toml:3:13"), "{shown}");
    assert!(shown.contains("units: B"), "{shown}");
}

#[test]
fn every_fault_is_reported_with_what_was_meant() {
    let text = "mode = \"datacentre\"\nrounds_max = 3\n[transfer]\nstream = 2\nstreams = 99\n\
                window = 64\nio = 7\n[switchovr]\nx = 1\n[timeouts]\nconnect = \"5 sec\"\n";
    let found: Vec<_> = faults(text)
        .into_iter()
        .map(|fault| (fault.line(), fault.text().to_owned(), fault.hint.unwrap()))
        .collect();
    let expected = [
        (1, "datacentre", "did you mean \"datacenter\"?"),
        (2, "rounds_max", "belongs to section [switchover]"),
        (4, "stream", "did you mean `transfer.streams`?"),
        (5, "99", "allowed: 1 to 32"),
        (6, "64", "units: B, KiB"),
        (7, "7", "allowed: auto, uring, poll"),
        (8, "switchovr", "did you mean section [switchover]?"),
        (11, "sec", "did you mean `s`?"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((line, text, hint), (at, what, part)) in found.iter().zip(expected) {
        assert_eq!((*line, text.as_str()), (at, what));
        assert!(hint.contains(part), "{hint} / {part}");
    }
}

#[test]
fn values_that_no_migration_can_have_together_are_a_fault_at_their_place() {
    let bad = faults("mode = \"internet\"\n[transfer]\nstreams = 2\ntls = \"off\"\n");
    assert_eq!((bad[0].line(), bad[0].column()), (4, 7));
    for text in [
        "mode = \"internet\"\ntransfer.rdma = \"required\"",
        "mode = \"hybrid\"\ntransfer = { tls = \"on\", rdma = \"required\" }",
    ] {
        let bad = faults(text);
        assert!(bad[0].message.contains("RDMA has no encryption"), "{bad:?}");
        assert_eq!(bad[0].line(), 2);
    }
    assert!(parse("good", "mode = \"hybrid\"\ntransfer.rdma = \"required\"").is_ok());
    let section = faults("mode = \"hybrid\"\n[transfers]\nstreams = 2\n");
    let hint = section[0].hint.as_deref().unwrap_or_default();
    assert!(hint.contains("section [transfer]"), "{hint}");
}

#[test]
fn a_number_of_streams_or_auto() {
    let base = load("datacenter").unwrap();
    let auto = with_changes(&base, ["transfer.streams=auto"]).unwrap();
    assert!(auto.measure_streams);
    assert_eq!(auto.streams, 32);
    let again = with_changes(&auto, ["transfer.streams=3"]).unwrap();
    assert_eq!((again.streams, again.measure_streams), (3, false));
    let text = "mode = \"hybrid\"\n[transfer]\nstreams = \"atuo\"\n";
    let fault = &faults(text)[0];
    assert_eq!((fault.line(), fault.text()), (3, "atuo"));
    assert!(
        fault
            .hint
            .as_ref()
            .unwrap()
            .contains("did you mean \"auto\"?")
    );
    for (wrong, hint) in [
        ("\"fast\"", "allowed: 1 to 32, auto"),
        ("\"8\"", "write 8 without quotes"),
    ] {
        let text = format!("mode = \"hybrid\"\n[transfer]\nstreams = {wrong}\n");
        let fault = &faults(&text)[0];
        assert!(fault.hint.as_ref().unwrap().contains(hint), "{fault:?}");
    }
}

#[test]
fn changes_need_no_quotes() {
    let base = load("datacenter").unwrap();
    let changes = [
        "transfer.window=128MiB",
        "pages.codec = zstd",
        "transfer.streams=4",
    ];
    let changed = with_changes(&base, changes).unwrap();
    assert_eq!((changed.window_bytes, changed.streams), (128 << 20, 4));
    assert_eq!(changed.codec, Codec::Zstd { level: 1 });
    for wrong in [
        "transfer.streams",
        "transfer.streams=many",
        "nothing=1",
        "=",
        "a b=\"",
        "transfer=1",
    ] {
        assert!(with_changes(&base, [wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn an_unknown_profile_names_the_near_one() {
    let error = load("datacentr").unwrap_err().to_string();
    assert!(error.contains("did you mean datacenter"), "{error}");
}

#[test]
fn the_document_lists_every_key() {
    let document = include_str!("../../../docs/CONFIG.md");
    for key in keys().iter().chain(config::keys()) {
        assert!(
            document.contains(&format!("#### `{}`", key.name)),
            "{} is missing",
            key.name
        );
    }
    assert!(
        document == markdown(),
        "run: dwcp config document > docs/CONFIG.md"
    );
}

proptest! {
    #[test]
    fn any_text_is_settings_or_faults(text in "(mode|transfer|=|\\[|\\]|\"|\\.|\n| |[a-z0-9\u{e9}]){0,60}") {
        if let Err(ProfileError::Faults(errors)) = parse("any", &text) {
            for fault in errors.faults {
                prop_assert!(fault.line() >= 1 && fault.column() >= 1);
            }
        }
        let _ = with_changes(&load("hybrid").unwrap(), [text.as_str()]);
    }
}
