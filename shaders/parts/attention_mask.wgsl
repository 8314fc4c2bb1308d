// Number of keys that query i sees. MASK: 0 all · 1 causal, key j ≤ query i · 2 cached, key j ≤ start + i.
fn seen_by(i: u32) -> u32 {
    if (MASK == 1u) { return min(i + 1u, p.sk); }
    if (MASK == 2u) { return min(min(start[0], p.sk) + i + 1u, p.sk); }
    return p.sk;
}
