//! Measures QEMU's own migration of the bare guest, the systems interleaved, one JSON object per run:
//! `cargo run --release -p dwcp-testbed --example peers -- [MEMORY_MIB] [RATE] [ROUNDS]`.

use dwcp_testbed::guests::GuestOptions;
use dwcp_testbed::peers::{PeerOptions, PeerSystem, run_peer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given: Vec<u64> = std::env::args()
        .skip(1)
        .map(|word| word.parse())
        .collect::<Result<_, _>>()?;
    let number = |at: usize, default| given.get(at).copied().unwrap_or(default);
    let (memory_mib, rate, rounds) = (number(0, 1024), number(1, 300), number(2, 3));
    let folder = tempfile::tempdir()?;
    let options = PeerOptions {
        load: GuestOptions {
            fill_mib: memory_mib * 55 / 100,
            hot_mib: 50,
            rate,
            ..GuestOptions::default()
        },
        memory_mib,
        ..PeerOptions::new(folder.path())
    };
    for _ in 0..rounds {
        for system in PeerSystem::ALL {
            // One that does not converge is a result too.
            match run_peer(system, &options) {
                Ok(run) => println!("{}", serde_json::to_string(&run)?),
                Err(error) => println!("{}: {error}", system.name()),
            }
        }
    }
    Ok(())
}
