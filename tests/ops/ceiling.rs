use inknib::gpu::Elem;
use inknib::graph::{Kernels, MAX_TRIPS};
use inknib::ops::ceiling::{Kind, Work, oracle, prepare};

use crate::harness::*;

fn kinds() -> Vec<Kind> {
    let fmas = gpu().map(acts).unwrap_or_default().into_iter().map(Kind::Fma);
    let coop = gpu().and_then(|gpu| Kind::coop(gpu.caps()));
    [Kind::Copy, Kind::Dot].into_iter().chain(fmas).chain(coop).collect()
}

#[test]
fn kernels_do_all_that_is_counted() {
    let Some(gpu) = gpu() else { return };
    for kind in kinds() {
        // a + 1 in whole numbers is exact in f32, and in f16 up to 2048; 70 invocations are not whole workgroups.
        for trips in [0, 1, 7, 100] {
            let work = Work::new(kind, 70, trips);
            let words = 280;
            let want = match kind {
                Kind::Copy if trips == 0 => continue,
                _ => oracle(work, words),
            };
            for kernels in BOTH {
                let ready = prepare(gpu, kernels, work).unwrap();
                ready.run(1).unwrap();
                let got = ready.read(words.into()).unwrap();
                assert_eq!(got[..want.len()], want, "{kernels:?} {kind:?} {trips}");
            }
        }
    }
    let ready = prepare(gpu, Kernels::Fast, Work::new(Kind::Copy, 300, 4)).unwrap();
    ready.copy(2).unwrap();
    assert_eq!(ready.read(1200).unwrap(), oracle(Work::new(Kind::Copy, 300, 4), 1200));
}

#[test]
fn chains_that_round_stay_near_the_oracle() {
    let Some(gpu) = gpu() else { return };
    for elem in acts(gpu) {
        let (mul, add) = ((-0.75f32).to_bits(), 1.3f32.to_bits());
        let work = Work { mul, add, ..Work::new(Kind::Fma(elem), 9, 3) };
        let want = oracle(work, 36);
        // Each step rounds once or twice (fma may be two operations) and the next multiplies what was lost by 0.75: at
        // most 8 half units in the last place, relative to sums near 2.
        let unit = if elem == Elem::F16 { 2f32.powi(-11) } else { 2f32.powi(-24) };
        for kernels in BOTH {
            let ready = prepare(gpu, kernels, work).unwrap();
            ready.run(1).unwrap();
            for (got, want) in ready.read(36).unwrap().iter().zip(&want) {
                let (got, want) = (f32::from_bits(*got), f32::from_bits(*want));
                assert!(
                    (got - want).abs() <= 3.0 * 8.0 * unit,
                    "{kernels:?} {elem:?}: {got} {want}"
                );
            }
        }
    }
}

#[test]
fn amounts_are_what_the_loops_say_and_loops_are_bounded() {
    // 12 chains of 16 steps of 2 operations; 8 words of 4 steps of 8; 16 bytes read and 16 written.
    let amount = |kind| Work::new(kind, 10, 3).amount();
    assert_eq!(amount(Kind::Fma(Elem::F32)), 10.0 * 3.0 * 12.0 * 16.0 * 2.0);
    assert_eq!(amount(Kind::Dot), 10.0 * 3.0 * 8.0 * 4.0 * 8.0);
    assert_eq!(amount(Kind::Copy), 320.0);
    let Some(gpu) = gpu() else { return };
    let long = Work::new(Kind::Fma(Elem::F32), 1, MAX_TRIPS as u32 + 1);
    let error = prepare(gpu, Kernels::Fast, long).err().unwrap().to_string();
    assert!(error.contains("32769") && error.contains("32768"), "{error}");
    let ready = prepare(gpu, Kernels::Fast, Work::new(Kind::Dot, 1, 1)).unwrap();
    assert!(ready.copy(1).is_err());
}
