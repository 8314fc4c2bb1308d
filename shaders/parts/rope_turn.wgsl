// Turns four pairs of channels of one head of the s-th input, or copies four channels that do not turn. Into a cache the rows
// go from row `begin` on.
fn turn(s: u32, item: u32, heads: u32, into_cache: bool, begin: u32) {
    let half4 = p.half / 4u;
    let rest4 = select(0u, p.rest / 4u, PARTIAL);
    let d4 = 2u * half4 + rest4;
    let head = item / (half4 + rest4); // over batch, rows and heads
    let i4 = item % (half4 + rest4);
    let j = head * d4 + i4;
    var to = j;
    if (into_cache) {
        // Compared without the sum, which could wrap.
        if (begin >= p.context || head / heads >= p.context - begin) { return; }
        to += begin * heads * d4;
    }
    let root = root_of(s, head * d4, d4);
    if (PARTIAL && i4 >= half4) {
        store(s, to + half4, normed(s, load(s, j + half4), i4 + half4, root));
        return;
    }
    let position = start[0] + head / heads % p.rows;
    let angle = f32(position) * inv_freq[i4];
    let a = sin_cos(angle.x);
    let b = sin_cos(angle.y);
    let c = sin_cos(angle.z);
    let d = sin_cos(angle.w);
    let sine = p.scale * vec4f(a.x, b.x, c.x, d.x);
    let cosine = p.scale * vec4f(a.y, b.y, c.y, d.y);
    let lo = normed(s, load(s, j), i4, root);
    let hi = normed(s, load(s, j + half4), i4 + half4, root);
    store(s, to, lo * cosine - hi * sine);
    store(s, to + half4, hi * cosine + lo * sine);
}
