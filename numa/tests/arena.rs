//! Arenas on this machine, whatever it has.

use dwcp_numa::{Arena, ArenaBacking, ArenaError, ArenaOptions, BufferSlots};

const MIB: usize = 1 << 20;

#[test]
fn arena_is_zeroed_writable_and_aligned() {
    let mut arena = Arena::new(3 * MIB + 1, Some(0), ArenaOptions::default()).unwrap();
    println!("got {:?} on node {:?}", arena.backing(), arena.bound_node());
    assert!(arena.len() > 3 * MIB);
    assert_eq!(arena.as_mut_ptr() as usize % 4096, 0);
    assert!(arena.as_slice().iter().all(|byte| *byte == 0));
    arena.as_mut_slice().fill(0xA5);
    assert!(arena.as_slice().iter().all(|byte| *byte == 0xA5));
}

#[test]
fn nothing_huge_is_used_when_nothing_huge_is_wanted() {
    let options = ArenaOptions {
        huge_tlb: false,
        transparent_huge: false,
        prefault: true,
    };
    let arena = Arena::new(4 * MIB, None, options).unwrap();
    assert_eq!(
        (arena.backing(), arena.bound_node()),
        (ArenaBacking::Base4K, None)
    );
}

#[test]
fn small_arenas_stay_in_base_pages() {
    let arena = Arena::new(100, None, ArenaOptions::default()).unwrap();
    assert_eq!((arena.backing(), arena.len()), (ArenaBacking::Base4K, 4096));
}

#[test]
fn impossible_sizes_are_errors() {
    for bytes in [0, usize::MAX, 1 << 60] {
        let error = Arena::new(bytes, None, ArenaOptions::default()).unwrap_err();
        assert!(
            matches!(error, ArenaError::Size { .. } | ArenaError::Map { .. }),
            "{error:?}"
        );
    }
}

#[test]
fn slots_are_disjoint_page_aligned_and_complete() {
    let arena = Arena::new(MIB, None, ArenaOptions::default()).unwrap();
    let mut slots = arena.split(10_000).unwrap();
    assert_eq!((slots.len(), slots.buffer_bytes()), (MIB / 12_288, 10_000));
    for (slot, (address, bytes)) in slots.regions().into_iter().enumerate() {
        assert_eq!((address as usize % 4096, bytes), (0, 10_000));
        assert_eq!(address.cast_const(), slots.get(slot).as_ptr());
    }
    for slot in 0..slots.len() {
        slots.get_mut(slot).fill(slot as u8);
    }
    for slot in 0..slots.len() {
        assert!(
            slots.get(slot).iter().all(|byte| *byte == slot as u8),
            "{slot}"
        );
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    for buffer_bytes in [0, 8193, usize::MAX] {
        let arena = Arena::new(8192, None, ArenaOptions::default()).unwrap();
        assert!(matches!(
            arena.split(buffer_bytes),
            Err(ArenaError::Split { .. })
        ));
    }
}

#[test]
fn slots_move_to_the_worker_that_owns_them() {
    fn assert_send<T: Send>(value: T) -> T {
        value
    }
    let arena = Arena::new(MIB, None, ArenaOptions::default()).unwrap();
    let mut slots: BufferSlots = assert_send(arena.split(65_536).unwrap());
    let written = std::thread::spawn(move || {
        slots.get_mut(15)[65_535] = 7;
        slots
    });
    assert_eq!(written.join().unwrap().get(15)[65_535], 7);
}
