// Which keys query i sees: seen_from(i) .. seen_by(i).
// MASK: 0 all · 1 causal, key j ≤ query i · 2 cached, key j ≤ start + i. WINDOW: of these the last p.window alone.
fn seen_by(i: u32) -> u32 {
    if (MASK == 1u) { return min(i + 1u, p.sk); }
    if (MASK == 2u) { return min(min(start[0], p.sk) + i + 1u, p.sk); }
    return p.sk;
}

fn seen_from(i: u32) -> u32 {
    if (!WINDOW) { return 0u; }
    let end = seen_by(i);
    return end - min(end, p.window);
}

// Below every score, and finite, so that differences are.
const LOWEST = -3.4e38;

// The scores of four keys from `first` on; lowest for those that a query does not see, which sees from_key .. seen.
fn visible(s: vec4f, first: u32, from_key: u32, seen: u32) -> vec4f {
    let j = vec4u(0u, 1u, 2u, 3u) + first;
    if (WINDOW) {
        return select(vec4f(LOWEST), s, (j < vec4u(seen)) & (j >= vec4u(from_key)));
    }
    return select(vec4f(LOWEST), s, j < vec4u(seen));
}
