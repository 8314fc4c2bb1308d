// Attention for few queries (decoding): a workgroup takes one query of one head and a part of the keys, BLOCK
// keys at a time. Its invocations take four keys each (scores), then four channels of every SHARES-th four keys.
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
    window: u32,   // last keys that a query sees, itself included
    cap: f32,      // limit of the scores
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<act4>;       // [B, sq, heads · d / 4]
@group(0) @binding(4) var<storage, read> start: array<u32>;     // [1]

const SHARES = WG_X / LANES4; // LANES4: the power of two not below d / 4
const_assert SHARES * LANES4 == WG_X;
const LOWEST = -3.4e38;
var<workgroup> scores: array<vec4f, BLOCK / 4u>;
var<workgroup> sums: array<vec4f, WG_X>;

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * groups.x + group.x;
    if (row >= p.rows) { return; }
    let split = group.z;
    let d4 = p.d / 4u;
    let b = row / (p.sq * p.heads);
    let head = row % p.heads / (p.heads / p.kv_heads);
    let step = p.kv_heads * d4;
    let keys = (b * p.sk * p.kv_heads + head) * d4;
    let i = row / p.heads % p.sq;
    let lo = seen_from(i) + split * p.span;
    let end = min(seen_by(i), lo + p.span);
    let c = local % LANES4;
    var most = LOWEST;
    var total = 0.0;
    var sum = vec4f();
    for (var j0 = lo; j0 < end; j0 += BLOCK) {
        let count = min(BLOCK, end - j0);
        let first = keys + j0 * step;
        var next = most;
        for (var j = 4u * local; j < count; j += 4u * WG_X) {
            // Keys that the query does not see are not read: their memory may hold anything.
            let k0 = first + j * step;
            let k1 = first + min(j + 1u, count - 1u) * step;
            let k2 = first + min(j + 2u, count - 1u) * step;
            let k3 = first + min(j + 3u, count - 1u) * step;
            var s = vec4f();
            for (var e = 0u; e < d4; e++) {
                s += vec4f(q[row * d4 + e])
                    * mat4x4f(key4(k0 + e), key4(k1 + e), key4(k2 + e), key4(k3 + e));
            }
            s = select(vec4f(LOWEST), score(s), vec4u(0u, 1u, 2u, 3u) + j < vec4u(count));
            scores[j / 4u] = s;
            next = max(next, max(max(s.x, s.y), max(s.z, s.w)));
        }
        next = all_max(next, local);
        let shrink = exp(most - next);
        most = next;
        var own = 0.0;
        for (var j = 4u * local; j < count; j += 4u * WG_X) {
            let w = exp(scores[j / 4u] - next);
            scores[j / 4u] = w;
            own += dot(w, vec4f(1.0));
        }
        total = total * shrink + all_sum(own, local); // its barriers also publish the weights
        sum *= shrink;
        if (c < d4) {
            for (var j = local / LANES4 * 4u; j < count; j += 4u * SHARES) {
                let v0 = first + j * step + c;
                let v1 = first + min(j + 1u, count - 1u) * step + c;
                let v2 = first + min(j + 2u, count - 1u) * step + c;
                let v3 = first + min(j + 3u, count - 1u) * step + c;
                sum += mat4x4f(value4(v0), value4(v1), value4(v2), value4(v3)) * scores[j / 4u];
            }
        }
        workgroupBarrier();
    }
    sums[local] = sum;
    for (var half = WG_X / 2u; half >= LANES4; half /= 2u) {
        workgroupBarrier();
        if (local < half) {
            sums[local] += sums[local + half];
        }
    }
    if (local >= d4) { return; }
    store(row, split, local, sums[local], vec2f(most, total));
}
