// A lane's best number: every LANES-th from `start` on.
fn best_of(start: u32, end: u32) -> Candidate {
    var best = Candidate(0u, NO_ID);
    for (var j = start; j < end; j += LANES) {
        let c = candidate(j);
        if (beats(c, best)) { best = c; }
    }
    return best;
}
