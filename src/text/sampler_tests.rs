//! Hand-computed cases of every stage, and draws counted against their probabilities.

use super::*;

/// Logits whose softmax is .5, .25, .125, .125 for ids 0, 1, 2, 3.
fn halves() -> Vec<f32> {
    [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect()
}

fn sampler(change: impl FnOnce(&mut SamplerOptions)) -> Sampler {
    let mut options = SamplerOptions::default();
    change(&mut options);
    Sampler::new(options).unwrap()
}

/// How often each of four ids comes in `n` draws.
fn counts(sampler: &mut Sampler, logits: &[f32], n: usize) -> [usize; 4] {
    let mut counts = [0; 4];
    for _ in 0..n {
        counts[sampler.sample(Logits::Full(logits)).unwrap().token as usize] += 1;
    }
    counts
}

/// Five standard deviations of a binomial count: a right sampler fails once in about a million cases.
fn assert_near(count: usize, n: usize, p: f64) {
    let n = n as f64;
    let bound = 5.0 * (n * p * (1.0 - p)).sqrt();
    assert!((count as f64 - n * p).abs() <= bound, "{count} of {n} draws, p = {p}, bound {bound}");
}

#[test]
fn the_random_sequence_is_pcg32() {
    // First round of the reference program pcg32-demo.c, seed 42, stream 54.
    let mut random = Pcg32::new(42);
    let words: Vec<u32> = (0..6).map(|_| random.next()).collect();
    assert_eq!(words, [0xa15c02b7, 0x7b47f409, 0xba1d3330, 0x83d2f293, 0xbfa4784b, 0xcbed606e]);
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_id_of_equals() {
    let mut s = Sampler::new(SamplerOptions::greedy()).unwrap();
    assert_eq!(s.sample(Logits::Full(&[1.0, 3.0, 2.0, 3.0])).unwrap().token, 1);
    assert!(SamplerOptions::greedy().is_plain_greedy());
}

#[test]
fn draws_follow_the_distribution() {
    let n = 20_000;
    let c = counts(&mut sampler(|o| o.seed = 1), &halves(), n);
    for (count, p) in c.iter().zip([0.5, 0.25, 0.125, 0.125]) {
        assert_near(*count, n, p);
    }
}

#[test]
fn temperature_reshapes_what_is_left() {
    // T = 0.5 squares: .25, .0625, .015625 twice, over their sum .34375.
    let n = 20_000;
    let c = counts(&mut sampler(|o| o.temperature = 0.5), &halves(), n);
    assert_near(c[0], n, 0.25 / 0.34375);
    assert_near(c[1], n, 0.0625 / 0.34375);
}

#[test]
fn top_k_keeps_the_largest() {
    let n = 9_000;
    let c = counts(&mut sampler(|o| o.top_k = 2), &halves(), n);
    assert_eq!(c[2] + c[3], 0);
    assert_near(c[0], n, 2.0 / 3.0);
}

#[test]
fn top_p_keeps_the_token_that_reaches_the_mass() {
    let c = counts(&mut sampler(|o| o.top_p = 0.7), &halves(), 2_000);
    assert_eq!((c[2], c[3]), (0, 0)); // .5 is below .7, .75 reaches it
    assert!(c[1] > 0);
    let c = counts(&mut sampler(|o| o.top_p = 0.49), &halves(), 200);
    assert_eq!(c[0], 200);
}

#[test]
fn min_p_compares_with_the_best() {
    let c = counts(&mut sampler(|o| o.min_p = 0.4), &halves(), 2_000);
    assert_eq!((c[2], c[3]), (0, 0)); // floor .4 · .5 = .2
    assert!(c[1] > 0);
}

#[test]
fn typical_drops_the_obvious_before_the_typical() {
    // p = .5, .25, .125, .125: H = 1.75 ln 2 = 1.213. |−ln p − H| = .520, .173, .866, .866.
    // Order: id 1 (.25), id 0 (.5). Mass .2 keeps id 1 alone; .6 keeps both.
    let c = counts(&mut sampler(|o| o.typical_p = 0.2), &halves(), 100);
    assert_eq!(c[1], 100);
    let c = counts(&mut sampler(|o| o.typical_p = 0.6), &halves(), 2_000);
    assert!(c[0] > 0 && c[1] > 0 && c[2] + c[3] == 0, "{c:?}");
}

#[test]
fn repetition_penalty_divides_positive_and_multiplies_negative() {
    let mut s = sampler(|o| {
        o.temperature = 0.0;
        o.repetition_penalty = 2.0;
    });
    s.accept(0);
    s.accept(1);
    let mut left: Vec<Candidate> = [4.0, -3.0, 1.0]
        .iter()
        .enumerate()
        .map(|(i, l)| Candidate { id: i as u32, logit: *l })
        .collect();
    s.penalize(&mut left);
    assert_eq!(left.iter().map(|c| c.logit).collect::<Vec<_>>(), [2.0, -6.0, 1.0]);
}

#[test]
fn frequency_and_presence_penalties_subtract() {
    let mut s = sampler(|o| {
        o.frequency_penalty = 0.5;
        o.presence_penalty = 1.0;
    });
    s.accept(0);
    s.accept(0);
    let mut left = vec![Candidate { id: 0, logit: 5.0 }, Candidate { id: 1, logit: 5.0 }];
    s.penalize(&mut left);
    assert_eq!((left[0].logit, left[1].logit), (3.0, 5.0)); // 5 − 2 · .5 − 1
}

#[test]
fn penalties_forget_beyond_their_window() {
    let mut s = sampler(|o| {
        o.presence_penalty = 1.0;
        o.penalty_last_n = 2;
    });
    for id in [7, 8, 9] {
        s.accept(id);
    }
    let mut seen: Vec<u32> = s.counts.keys().copied().collect();
    seen.sort();
    assert_eq!(seen, [8, 9]);
}

#[test]
fn bias_forbids_and_favours() {
    let mut s = sampler(|o| {
        o.temperature = 0.0;
        o.logit_bias = vec![(1, f32::NEG_INFINITY), (3, 5.0)];
    });
    assert_eq!(s.sample(Logits::Full(&[0.0, 9.0, 1.0, 0.0])).unwrap().token, 3);
    let mut s = sampler(|o| o.logit_bias = vec![(0, f32::NEG_INFINITY)]);
    let error = s.sample(Logits::Full(&[1.0])).unwrap_err();
    assert!(error.to_string().contains("forbids every"), "{error}");
}

#[test]
fn same_seed_same_tokens_and_reset_starts_again() {
    let logits = [0.1f32, 0.2, 0.3, 0.4];
    let run = |s: &mut Sampler| -> Vec<u32> {
        (0..40).map(|_| s.sample(Logits::Full(&logits)).unwrap().token).collect()
    };
    let mut a = sampler(|o| o.seed = 7);
    let first = run(&mut a);
    assert_eq!(first, run(&mut sampler(|o| o.seed = 7)));
    assert_ne!(first, run(&mut sampler(|o| o.seed = 8)));
    assert_ne!(first, run(&mut a));
    a.reset();
    assert_eq!(first, run(&mut a));
}

#[test]
fn a_candidate_list_chooses_as_the_full_vector_does() {
    let full: Vec<f32> = (0..50).map(|i| ((i * 37) % 50) as f32 / 7.0).collect();
    let mut list: Vec<(u32, f32)> = full.iter().enumerate().map(|(i, l)| (i as u32, *l)).collect();
    list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f64 = full.iter().map(|l| f64::from(*l).exp()).sum();
    list.truncate(8);
    let options = |o: &mut SamplerOptions| {
        o.top_k = 8;
        o.top_logprobs = 3;
    };
    let (mut a, mut b) = (sampler(options), sampler(options));
    for _ in 0..100 {
        let x = a.sample(Logits::Full(&full)).unwrap();
        let log_sum_exp = Some(total.ln() as f32);
        let y = b.sample(Logits::Top { candidates: &list, log_sum_exp }).unwrap();
        assert_eq!(x.token, y.token);
        // log_sum_exp passes through f32: half a unit in its last place at 7..8 is 2.4e-7.
        assert!((x.logprob - y.logprob).abs() < 1e-6, "{x:?} {y:?}");
        assert_eq!(
            x.top.iter().map(|t| t.0).collect::<Vec<_>>(),
            [list[0].0, list[1].0, list[2].0]
        );
    }
}

#[test]
fn logprobs_are_the_models_own() {
    let mut s = sampler(|o| {
        o.temperature = 0.0;
        o.logit_bias = vec![(2, 100.0)];
        o.top_logprobs = 2;
    });
    let chosen = s.sample(Logits::Full(&halves())).unwrap();
    assert_eq!(chosen.token, 2);
    // ln and exp of f32 logits: a few units in the last place of values near 2.
    let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
    assert!(near(chosen.logprob, 0.125f32.ln()), "{chosen:?}");
    assert!(
        near(chosen.top[0].1, 0.5f32.ln()) && near(chosen.top[1].1, 0.25f32.ln()),
        "{chosen:?}"
    );
    assert_eq!((chosen.top[0].0, chosen.top[1].0), (0, 1));
}

#[test]
fn non_finite_logits_are_the_models_fault() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let logits = [0.0, bad, 1.0];
        let error = sampler(|_| ()).sample(Logits::Full(&logits)).unwrap_err().to_string();
        assert!(error.contains("the model produced") && error.contains("token 1"), "{error}");
        let list = Logits::Top { candidates: &[(5, 1.0), (9, bad)], log_sum_exp: None };
        let error = sampler(|_| ()).sample(list).unwrap_err().to_string();
        assert!(error.contains("token 9"), "{error}");
    }
    assert!(sampler(|_| ()).sample(Logits::Full(&[])).is_err());
}

#[test]
fn options_out_of_range_are_named() {
    let changes: [(&str, fn(&mut SamplerOptions)); 6] = [
        ("temperature", |o| o.temperature = -1.0),
        ("temperature", |o| o.temperature = f32::NAN),
        ("top-p", |o| o.top_p = 0.0),
        ("min-p", |o| o.min_p = 1.5),
        ("repetition penalty", |o| o.repetition_penalty = 0.0),
        ("logit bias of token 3", |o| o.logit_bias = vec![(3, f32::NAN)]),
    ];
    for (name, change) in changes {
        let mut options = SamplerOptions::default();
        change(&mut options);
        let error = Sampler::new(options).unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn a_text_does_not_end_before_its_time() {
    let mut s = sampler(|o| {
        o.temperature = 0.0;
        o.min_tokens = 2;
        o.end_tokens = vec![0];
    });
    // Token 0 is the likeliest; it comes when two others have.
    let tokens: Vec<u32> =
        (0..3).map(|_| s.sample(Logits::Full(&halves())).unwrap().token).collect();
    assert_eq!(tokens, [1, 1, 0]);
    s.reset();
    assert_eq!(s.sample(Logits::Full(&halves())).unwrap().token, 1);
}

#[test]
fn what_came_before_forbids_tokens() {
    // Token 0 is the likeliest, then 1, 2.
    let next = |change: fn(&mut SamplerOptions), history: &[u32]| {
        let mut s = sampler(|o| {
            o.temperature = 0.0;
            change(o);
        });
        history.iter().for_each(|id| s.accept(*id));
        s.sample(Logits::Full(&halves())).unwrap().token
    };
    // 2 0 came; after another 2 it may not.
    assert_eq!(next(|o| o.no_repeat_ngram = 2, &[2, 0, 3, 2]), 1);
    assert_eq!(next(|o| o.no_repeat_ngram = 2, &[2, 0, 3, 1]), 0);
    assert_eq!(next(|o| o.no_repeat_ngram = 3, &[2, 0, 3, 2]), 0);
    assert_eq!(next(|o| o.no_repeat_ngram = 1, &[0, 1]), 2);
    assert_eq!(next(|o| o.bad_words = vec![vec![0]], &[]), 1);
    assert_eq!(next(|o| o.bad_words = vec![vec![3, 0]], &[3]), 1);
    assert_eq!(next(|o| o.bad_words = vec![vec![3, 0], vec![]], &[2]), 0);
    let mut s = sampler(|o| {
        o.temperature = 0.0;
        o.begin_suppress = vec![0];
    });
    let two: Vec<u32> = (0..2).map(|_| s.sample(Logits::Full(&halves())).unwrap().token).collect();
    assert_eq!(two, [1, 0]);
}

#[test]
fn cutoffs_keep_what_is_likely_enough() {
    let draws = |change: fn(&mut SamplerOptions)| -> std::collections::BTreeSet<u32> {
        let mut s = sampler(change);
        (0..400).map(|_| s.sample(Logits::Full(&halves())).unwrap().token).collect()
    };
    // Probabilities 1/2, 1/4, 1/8, 1/8.
    assert_eq!(draws(|o| o.epsilon_cutoff = 0.2), [0, 1].into());
    assert_eq!(draws(|o| o.epsilon_cutoff = 0.9), [0].into());
    // H = 1.213, so the limit is √0.25 · exp(−H) = 0.149.
    assert_eq!(draws(|o| o.eta_cutoff = 0.25), [0, 1].into());
}
