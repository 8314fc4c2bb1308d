// y[i, c] = Σ_j softmax_j(scale · q[i, ·] · k[j, ·]) v[j, c] for the rows row0 .. row0 + n of this launch, in
// stages (STAGE), so that no invocation loops long:
//   0  s[row, j] = scale · Σ_c q[row, c] · k[j, c], one score each, for the keys that the query sees; with CAP
//      cap · tanh(· / cap) of it
//   1  stat[row].x = max s[row, ·], one row each
//   2  stat[row].y = Σ exp(s[row, ·] − max), one row each
//   3  y[row, c] = Σ_j exp(s[row, j] − max) / sum · v[j, c], one element each
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
@group(0) @binding(1) var<storage, read> q: array<act>;       // [B, sq, heads · d]
@group(0) @binding(4) var<storage, read> start: array<u32>;     // [1]
@group(0) @binding(5) var<storage, read_write> s: array<f32>;   // [rows of this launch, sk]
@group(0) @binding(6) var<storage, read_write> stat: array<vec2f>; // [rows of this launch]
@group(0) @binding(7) var<storage, read_write> y: array<act>;   // [B, sq, heads · d]

// First element of the keys (or values) of a row's batch item and head; the next key is kv_heads · d further.
fn first_key(row: u32) -> u32 {
    let b = row / (p.sq * p.heads);
    let head = row % p.heads / (p.heads / p.kv_heads);
    return (b * p.sk * p.kv_heads + head) * p.d;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let width = array(p.sk, 1u, 1u, p.d)[STAGE]; // items of one row
    let local = item / width;
    let row = p.row0 + local;
    let begin = seen_from(row / p.heads % p.sq);
    let seen = seen_by(row / p.heads % p.sq);
    let step = p.kv_heads * p.d;
    if (STAGE == 0u) {
        let j = item % p.sk;
        if (j < begin || j >= seen) { return; }
        var sum = 0.0;
        for (var c = 0u; c < p.d; c++) {
            sum += f32(q[row * p.d + c]) * key1(first_key(row) + j * step + c);
        }
        let scaled = p.scale * sum;
        s[item] = select(scaled, soft_cap(vec4f(scaled), p.cap).x, CAP);
    }
    if (STAGE == 1u) {
        var most = s[local * p.sk + begin];
        for (var j = begin + 1u; j < seen; j++) {
            most = max(most, s[local * p.sk + j]);
        }
        stat[local].x = most;
    }
    if (STAGE == 2u) {
        var sum = 0.0;
        for (var j = begin; j < seen; j++) {
            sum += exp(s[local * p.sk + j] - stat[local].x);
        }
        stat[local].y = sum;
    }
    if (STAGE == 3u) {
        let c = item % p.d;
        var sum = 0.0;
        for (var j = begin; j < seen; j++) {
            let w = exp(s[local * p.sk + j] - stat[local].x) / stat[local].y;
            sum += w * value1(first_key(row) + j * step + c);
        }
        y[row * p.d + c] = act(sum);
    }
}
