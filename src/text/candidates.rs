//! The stages of a [`Sampler`](super::sampler::Sampler) that narrow a list of candidates, largest logit first;
//! sampler.rs has their table. Every one leaves at least one candidate.

/// A token that may be chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub id: u32,
    pub logit: f32,
}

/// Larger logit first, lower id first where equal: one order on every platform.
fn by_logit(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Keeps the `k` largest, sorted.
pub(super) fn keep_largest(left: &mut Vec<Candidate>, k: usize) {
    if k == 0 {
        left.clear();
        return;
    }
    if k < left.len() {
        left.select_nth_unstable_by(k - 1, by_logit);
        left.truncate(k);
    }
    left.sort_unstable_by(by_logit);
}

/// Probabilities at a temperature, of candidates sorted with the largest logit first.
pub(super) fn softmax(left: &[Candidate], temperature: f32) -> Vec<f64> {
    let Some(first) = left.first() else { return Vec::new() };
    let max = f64::from(first.logit);
    let mut p: Vec<f64> =
        left.iter().map(|c| ((f64::from(c.logit) - max) / f64::from(temperature)).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

/// Keeps the smallest set nearest to the expected surprise, of this mass.
pub(super) fn typical(left: &mut Vec<Candidate>, mass: f32) {
    if mass >= 1.0 {
        return;
    }
    let p = softmax(left, 1.0);
    let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
    let mut order: Vec<usize> = (0..left.len()).collect();
    let oddness = |i: usize| (-p[i].ln() - entropy).abs();
    order.sort_by(|a, b| oddness(*a).total_cmp(&oddness(*b)).then(a.cmp(b)));
    let mut sum = 0.0;
    let mut keep = 0;
    for i in &order {
        sum += p[*i];
        keep += 1;
        if sum > f64::from(mass) {
            break;
        }
    }
    order.truncate(keep);
    order.sort_unstable();
    *left = order.into_iter().map(|i| left[i]).collect();
}

/// Keeps the smallest set of the likeliest whose mass reaches this.
pub(super) fn top_p(left: &mut Vec<Candidate>, mass: f32) {
    if mass >= 1.0 {
        return;
    }
    let mut sum = 0.0;
    let reached = softmax(left, 1.0).into_iter().position(|p| {
        sum += p;
        sum >= f64::from(mass)
    });
    if let Some(last) = reached {
        left.truncate(last + 1);
    }
}

/// Keeps what has at least this share of the likeliest's probability.
pub(super) fn min_p(left: &mut Vec<Candidate>, share: f32) {
    let Some(first) = left.first() else { return };
    if share > 0.0 {
        let floor = f64::from(first.logit) + f64::from(share).ln();
        left.retain(|c| f64::from(c.logit) >= floor);
    }
}

/// Drops what is less likely than epsilon, or than eta's limit; the likeliest stays.
pub(super) fn cutoff(left: &mut Vec<Candidate>, epsilon: f32, eta: f32) {
    if epsilon == 0.0 && eta == 0.0 {
        return;
    }
    let p = softmax(left, 1.0);
    let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
    let eta = f64::from(eta);
    let floor = f64::from(epsilon).max(eta.min(eta.sqrt() * (-entropy).exp()));
    // Largest first.
    let keep = p.iter().take_while(|p| **p >= floor).count().max(1);
    left.truncate(keep);
}
