// cache[b, start + s, c] = x[b, s, c], one element each. Rows beyond the cache are dropped.
struct Params {
    n: u32,       // elements of x
    rows: u32,    // S, rows of x in one batch item
    context: u32, // rows of the cache in one batch item
    c: u32,       // channels
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;            // [B, S, C]
@group(0) @binding(2) var<storage, read> start: array<u32>;         // [1]
@group(0) @binding(3) var<storage, read_write> cache: array<cell>;  // [B, context, C]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n) { return; }
    let c = i % p.c;
    let s = i / p.c % p.rows;
    let b = i / p.c / p.rows;
    let row = start[0] + s;
    if (row >= start[0] && row < p.context) {
        cache[(b * p.context + row) * p.c + c] = x[i];
    }
}
