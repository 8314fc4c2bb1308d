// y = Σ_s exp(most_s − most) part_s / Σ_s exp(most_s − most) total_s: joins the parts that the keys were divided
// into, four channels of one row each.
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
@group(0) @binding(1) var<storage, read> part: array<vec4f>;    // [rows, splits, d / 4]
@group(0) @binding(2) var<storage, read> stat: array<vec2f>;    // [rows, splits] maximum and sum
@group(0) @binding(3) var<storage, read_write> y: array<act4>;  // [rows, d / 4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let d4 = p.d / 4u;
    let first = item / d4 * p.splits;
    var most = -3.4e38;
    for (var s = 0u; s < p.splits; s++) {
        most = max(most, stat[first + s].x);
    }
    var sum = vec4f();
    var total = 0.0;
    for (var s = 0u; s < p.splits; s++) {
        let w = exp(stat[first + s].x - most);
        sum += w * part[(first + s) * d4 + item % d4];
        total += w * stat[first + s].y;
    }
    y[item] = act4(sum / total);
}
