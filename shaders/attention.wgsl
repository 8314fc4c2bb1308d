// Attention by online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022): one query of one
// head each, which keeps its maximum, its sum and its D accumulators while it walks the keys. Neighbouring
// invocations are neighbouring queries, so they all read the same key at the same time.
struct Params {
    sq: u32,       // queries of one batch item
    sk: u32,       // keys of one batch item (the cache's capacity)
    heads: u32,    // heads of the queries
    kv_heads: u32, // heads of keys and values; each serves heads / kv_heads neighbouring query heads
    d: u32,        // channels of a head
    rows: u32,     // batch · sq · heads, in the order of q's memory
    row0: u32,     // first row of this launch
    n: u32,        // items of work
    splits: u32,   // parts that the keys are divided into
    span: u32,     // keys in a part
    scale: f32,
    pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<act4>;       // [B, sq, heads · d / 4]
@group(0) @binding(2) var<storage, read> k: array<act4>;       // [B, sk, kv_heads · d / 4]
@group(0) @binding(3) var<storage, read> v: array<act4>;       // [B, sk, kv_heads · d / 4]
@group(0) @binding(4) var<storage, read> start: array<u32>;     // [1]

@compute @workgroup_size(WG_X)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let split = group.z % p.splits;
    let b = group.z / p.splits;
    let head = group.y;
    let query = group.x * WG_X + local;
    let i = min(query, p.sq - 1u);
    let row = (b * p.sq + i) * p.heads + head;
    var scaled: array<vec4f, D4>;
    var sum: array<vec4f, D4>;
    for (var c = 0u; c < D4; c++) {
        scaled[c] = p.scale * vec4f(q[row * D4 + c]);
        sum[c] = vec4f();
    }
    // Keys lo .. full are seen by the whole workgroup, whose first query sees the fewest; full .. end by some.
    let lo = split * p.span;
    let end = min(seen_by(i), lo + p.span);
    let full = min(seen_by(group.x * WG_X), lo + p.span);
    let step = p.kv_heads * D4;
    let keys = (b * p.sk * p.kv_heads + head / (p.heads / p.kv_heads)) * D4;
    var most = -3.4e38;
    var total = 0.0;
    var j = lo;
    for (; j + 8u <= full; j += 8u) {
        let at = keys + j * step;
        var s0 = vec4f();
        var s1 = vec4f();
        for (var c = 0u; c < D4; c++) {
            let x = scaled[c];
            let o = at + c;
            s0 += x * mat4x4f(
                vec4f(k[o]), vec4f(k[o + step]), vec4f(k[o + 2u * step]), vec4f(k[o + 3u * step]));
            s1 += x * mat4x4f(
                vec4f(k[o + 4u * step]), vec4f(k[o + 5u * step]),
                vec4f(k[o + 6u * step]), vec4f(k[o + 7u * step]));
        }
        let top = max(s0, s1);
        let next = max(most, max(max(top.x, top.y), max(top.z, top.w)));
        let shrink = exp(most - next);
        let w0 = exp(s0 - next);
        let w1 = exp(s1 - next);
        total = total * shrink + dot(w0 + w1, vec4f(1.0));
        most = next;
        for (var c = 0u; c < D4; c++) {
            let o = at + c;
            sum[c] = sum[c] * shrink
                + w0.x * vec4f(v[o]) + w0.y * vec4f(v[o + step])
                + w0.z * vec4f(v[o + 2u * step]) + w0.w * vec4f(v[o + 3u * step])
                + w1.x * vec4f(v[o + 4u * step]) + w1.y * vec4f(v[o + 5u * step])
                + w1.z * vec4f(v[o + 6u * step]) + w1.w * vec4f(v[o + 7u * step]);
        }
    }
    for (; j < end; j++) {
        let at = keys + j * step;
        var s = 0.0;
        for (var c = 0u; c < D4; c++) {
            s += dot(scaled[c], vec4f(k[at + c]));
        }
        let next = max(most, s);
        let shrink = exp(most - next);
        let w = exp(s - next);
        total = total * shrink + w;
        most = next;
        for (var c = 0u; c < D4; c++) {
            sum[c] = sum[c] * shrink + w * vec4f(v[at + c]);
        }
    }
    if (query >= p.sq) { return; }
    for (var c = 0u; c < D4; c++) {
        store(row, split, c, sum[c], vec2f(most, total));
    }
}
