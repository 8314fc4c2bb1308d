use inknib::graph::{Kernels, MAX_TRIPS};
use inknib::ops::canary::{count_loop, expected};

use crate::harness::*;

#[test]
fn loops_of_the_length_that_plans_allow_run_to_their_end() {
    let Some(gpu) = gpu() else { return };
    let most = MAX_TRIPS as u32;
    for kernels in BOTH {
        for trips in [0, 1, 1000, most] {
            assert_eq!(count_loop(gpu, kernels, trips, most).unwrap(), expected(trips));
        }
        // A longer count in pieces of the allowed length.
        let trips = 3 * most + 17;
        assert_eq!(count_loop(gpu, kernels, trips, most).unwrap(), expected(trips));
    }
}

#[test]
fn a_longer_loop_is_either_right_or_stops_beyond_what_plans_allow() {
    let Some(gpu) = gpu() else { return };
    let trips = 100_000;
    let got = count_loop(gpu, Kernels::Fast, trips, trips).unwrap();
    println!("{}: {} of {trips} iterations", gpu.adapter().name, got.count);
    // A driver that stops loops does so at a place of its own, after the chain came that far.
    assert_eq!(got, expected(got.count));
    assert!(got.count == trips || u64::from(got.count) > MAX_TRIPS, "{got:?}");
    // The reference needs a sixteenth of the iterations for the same chain.
    let reference = count_loop(gpu, Kernels::Reference, trips, trips).unwrap();
    assert_eq!(reference, expected(trips));
}
