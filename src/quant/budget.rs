//! Which tensor gets how many bits, where their sum is given.

use super::QuantSpec;
/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub spec: QuantSpec,
    pub bytes: u64,
    /// The noise it makes in the net's output, in any unit that all tensors share. Noises of tensors add up.
    pub noise: f64,
}

/// The choice for each tensor whose noises add up to little within `bytes`: from the smallest choice of each, the step
/// that saves most noise for a byte is taken as long as one fits. For choices on the lower hull of noise over bytes,
/// which are all that is looked at, that is the optimum but for the last step. Every tensor has a choice of finite noise.
///
/// # Errors
/// The bytes that the smallest choices take, where even those do not fit.
pub fn allocate(tensors: &[Vec<Choice>], bytes: u64) -> Result<Vec<Choice>, u64> {
    let hulls: Vec<Vec<Choice>> = tensors.iter().map(|choices| hull(choices)).collect();
    let least: u64 = hulls.iter().filter_map(|h| h.first()).map(|c| c.bytes).sum();
    if least > bytes {
        return Err(least);
    }
    let mut taken = vec![0; hulls.len()];
    let mut room = bytes - least;
    loop {
        let step = |(i, hull): (usize, &Vec<Choice>)| {
            let (now, next) = (hull[taken[i]], hull.get(taken[i] + 1)?);
            let cost = next.bytes - now.bytes;
            (cost <= room).then(|| (i, cost, (now.noise - next.noise) / cost as f64))
        };
        let best = hulls.iter().enumerate().filter_map(step).max_by(|a, b| a.2.total_cmp(&b.2));
        let Some((i, cost, _)) = best else { break };
        taken[i] += 1;
        room -= cost;
    }
    Ok(hulls.iter().zip(taken).map(|(hull, at)| hull[at]).collect())
}

/// The choices that no mixture of others beats, the smallest first.
fn hull(choices: &[Choice]) -> Vec<Choice> {
    let mut sorted: Vec<Choice> = choices.iter().filter(|c| c.noise.is_finite()).copied().collect();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.noise.total_cmp(&b.noise)));
    let mut hull: Vec<Choice> = vec![];
    for c in sorted {
        if hull.last().is_some_and(|last| c.bytes == last.bytes || c.noise >= last.noise) {
            continue;
        }
        let slope = |a: &Choice, b: &Choice| (a.noise - b.noise) / (b.bytes - a.bytes) as f64;
        while let [.., a, b] = &hull[..]
            && slope(b, &c) >= slope(a, b)
        {
            hull.pop();
        }
        hull.push(c);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(scale: f64, size: u64) -> Vec<Choice> {
        let choice =
            |spec, bytes, noise| Choice { spec, bytes: bytes * size, noise: noise * scale };
        vec![
            choice(QuantSpec::INT4, 17, 1.0),
            choice("int4-g32".parse().unwrap(), 18, 0.8),
            choice(QuantSpec::INT8, 33, 0.005),
            choice(QuantSpec::F16, 64, 0.0),
        ]
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let tensors = [choices(1.0, 10), choices(100.0, 10), choices(1.0, 1)];
        let specs = |bytes| -> Vec<String> {
            allocate(&tensors, bytes).unwrap().iter().map(|c| c.spec.to_string()).collect()
        };
        assert_eq!(specs(357), ["int4-g64-cubic"; 3]);
        // The loud one first, step by step, then what is small, then the rest.
        assert_eq!(specs(367)[1], "int4-g32-cubic");
        assert_eq!(specs(533), ["int4-g64-cubic", "int8-g64", "int8-g64"]);
        assert_eq!(specs(543)[0], "int4-g32-cubic");
        assert_eq!(specs(10_000), ["fp16"; 3]);
        assert_eq!(allocate(&tensors, 356), Err(357));
    }

    #[test]
    fn what_is_beaten_is_never_taken() {
        let mut all = choices(1.0, 1);
        // More bytes and more noise; and above the line between its neighbours.
        all.push(Choice { spec: QuantSpec::F32, bytes: 40, noise: 0.5 });
        all[1].noise = 0.99;
        let specs: Vec<u64> = hull(&all).iter().map(|c| c.bytes).collect();
        assert_eq!(specs, [17, 33, 64]);
    }

    /// Against all combinations of a small case: greedy steps on the hull end within one step of the best.
    #[test]
    fn greedy_is_near_the_best() {
        let tensors: Vec<Vec<Choice>> =
            (0..5u32).map(|i| choices(f64::from(1 + i * i), 1 + u64::from(i % 3))).collect();
        for bytes in (17 * 9..64 * 9).step_by(7) {
            let Ok(taken) = allocate(&tensors, bytes) else { continue };
            assert!(taken.iter().map(|c| c.bytes).sum::<u64>() <= bytes);
            let got: f64 = taken.iter().map(|c| c.noise).sum();
            let mut best = f64::INFINITY;
            for mut code in 0..4usize.pow(5) {
                let (mut size, mut noise) = (0, 0.0);
                for choices in &tensors {
                    let c = choices[code % 4];
                    (size, noise, code) = (size + c.bytes, noise + c.noise, code / 4);
                }
                best = if size <= bytes { best.min(noise) } else { best };
            }
            // One step of the loudest tensor is what can be left over.
            assert!(got <= best + 17.0, "{bytes}: {got} against {best}");
        }
    }
}
