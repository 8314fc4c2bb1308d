// The same as matmul_pieces.wgsl for three products with one x, whose weights lie side by side in memory (queries, keys and values
// of few tokens): y0, y1, y2 = x · w0ᵀ + bias0, x · w1ᵀ + bias1, x · w2ᵀ + bias2. Bit i of CACHES: yi is a cache, into which row m goes
// start[0] rows further down, if it has that. Bit i of TURNS: yi is turned as in rope.wgsl, from position start[0] on.
struct Params {
    k: u32,         // columns of x
    blocks: u32,    // blocks of eight k
    total: u32,     // rows of all three weights
    context: u32,   // rows of the caches
    half: u32,      // R/2: pairs of a head that turn
    d: u32,         // channels of a head
    rows: u32,      // S, rows of one batch item
    scale: f32,     // of sine and cosine
    begins: vec4u,  // the first of these rows of each weight
    counts: vec4u,  // and how many it has
    words: vec4u,   // where it begins, in units of sixteen bytes
    scales: vec4u,  // where its scales begin, in units of four bytes
    cubic: vec4f,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;        // [M, k]
@group(0) @binding(2) var<storage, read> start: array<u32>;      // [1]
@group(0) @binding(3) var<storage, read> bias0: array<f32>;      // [counts.x]
@group(0) @binding(4) var<storage, read> bias1: array<f32>;      // [counts.y]
@group(0) @binding(5) var<storage, read> bias2: array<f32>;      // [counts.z]
@group(0) @binding(7) var<storage, read_write> y0: array<act>;   // [M or context, counts.x]
@group(0) @binding(8) var<storage, read_write> y1: array<act>;   // [M or context, counts.y]
@group(0) @binding(9) var<storage, read_write> y2: array<act>;   // [M or context, counts.z]
@group(0) @binding(10) var<storage, read> inv_freq: array<f32>;  // [half]

const HALF = (ROWS + 1u) / 2u;

fn side(n: u32) -> u32 {
    return select(0u, 1u, n >= p.begins.y) + select(0u, 1u, n >= p.begins.z);
}

fn locate(n: u32) -> Row {
    let s = side(n);
    return row_at(p.words[s], p.scales[s], n - p.begins[s], p.cubic[s]);
}

// Whether rows from `first` on, of one group of lanes, are pairs that turn.
fn turning(first: u32) -> bool {
    let s = side(first);
    return ((TURNS >> s) & 1u) == 1u && (first - p.begins[s]) % p.d < 2u * p.half;
}

// The rows of a group of lanes: one after another, or, where they turn, HALF channels and then the other channel of each pair.
fn rows_of(first: u32, turns: bool) -> vec4u {
    let i = vec4u(0u, 1u, 2u, 3u);
    var n = first + i;
    if (turns) {
        let channel = (first - p.begins[side(first)]) % p.d;
        n = first - channel + channel / 2u + i % HALF + i / HALF % 2u * p.half;
    }
    return min(n, vec4u(p.total - 1u));
}

fn biased(n: u32, v: f32) -> f32 {
    if (!BIAS) { return v; }
    let s = side(n);
    let i = n - p.begins[s];
    if (s == 0u) { return v + bias0[i]; }
    if (s == 1u) { return v + bias1[i]; }
    return v + bias2[i];
}

fn put(m: u32, n: u32, v: f32) {
    let s = side(n);
    var at = m * p.counts[s] + n - p.begins[s];
    if (((CACHES >> s) & 1u) == 1u) {
        // Compared without the sum, which could wrap.
        if (start[0] >= p.context || m >= p.context - start[0]) { return; }
        at += start[0] * p.counts[s];
    }
    if (s == 0u) { y0[at] = act(v); } else if (s == 1u) { y1[at] = act(v); } else { y2[at] = act(v); }
}

// Turns channels `n` and `n + half` of a head.
fn put_turned(m: u32, n: u32, low: f32, high: f32) {
    let lo = biased(n, low);
    let hi = biased(n + p.half, high);
    let pair = (n - p.begins[side(n)]) % p.d;
    let turn = p.scale * sin_cos(f32(start[0] + m % p.rows) * inv_freq[pair]);
    put(m, n, lo * turn.y - hi * turn.x);
    put(m, n + p.half, hi * turn.y + lo * turn.x);
}

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let first = ((group.y * groups.x + group.x) * (WG_X / LANES) + local / LANES) * ROWS;
    let turns = TURNS > 0u && turning(first);
    let n = rows_of(first, turns);
    let r0 = locate(n.x);
    let r1 = locate(n.y);
    let r2 = locate(n.z);
    let r3 = locate(n.w);
    let m = group.z;
    let sum = products(m, lane, local, r0, r1, r2, r3);
    // Lane i stores row i, or turns pair i: two lanes are the least.
    if (turns) {
        for (var i = lane; i < HALF; i += LANES) {
            if (first < p.total) { put_turned(m, n[i], sum[i], sum[HALF + i]); }
        }
        return;
    }
    for (var i = lane; i < ROWS; i += LANES) {
        if (first + i < p.total) { put(m, first + i, biased(first + i, sum[i])); }
    }
}
