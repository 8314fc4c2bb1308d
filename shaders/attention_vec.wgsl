// Attention for few queries (decoding): a workgroup takes one query of one head and a part of the keys, BLOCK
// keys at a time. Its invocations first take a key each (scores), then four channels of every KEYS-th key.
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

const KEYS = WG_X / LANES4; // LANES4: the power of two not below d / 4
const_assert WG_X % LANES4 == 0u;
var<workgroup> scores: array<f32, BLOCK>;
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
    let end = min(seen_by(row / p.heads % p.sq), (split + 1u) * p.span);
    let c = local % LANES4;
    var most = -3.4e38;
    var total = 0.0;
    var sum = vec4f();
    for (var j0 = split * p.span; j0 < end; j0 += BLOCK) {
        let count = min(BLOCK, end - j0);
        var top = most;
        for (var j = local; j < count; j += WG_X) {
            let at = keys + (j0 + j) * step;
            var s = 0.0;
            for (var e = 0u; e < d4; e++) {
                s += dot(vec4f(q[row * d4 + e]), vec4f(k[at + e]));
            }
            s *= p.scale;
            scores[j] = s;
            top = max(top, s);
        }
        let next = all_max(top, local);
        let shrink = exp(most - next);
        most = next;
        var own = 0.0;
        for (var j = local; j < count; j += WG_X) {
            let w = exp(scores[j] - next);
            scores[j] = w;
            own += w;
        }
        total = total * shrink + all_sum(own, local); // its barriers also publish the scores
        sum *= shrink;
        if (c < d4) {
            for (var j = local / LANES4; j < count; j += KEYS) {
                sum += scores[j] * vec4f(v[keys + (j0 + j) * step + c]);
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
