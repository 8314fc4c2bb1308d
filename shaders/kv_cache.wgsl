// cache[b, start + s, c] = x[b, s, c], four channels each (one where C is no multiple of four). Rows beyond
// the cache are dropped.
struct Params {
    n: u32,       // elements of x, in units of `cell`
    rows: u32,    // S, rows of x in one batch item
    context: u32, // rows of the cache in one batch item
    c: u32,       // cells in a row
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;            // [B, S, C]
@group(0) @binding(2) var<storage, read> start: array<u32>;         // [1]
@group(0) @binding(3) var<storage, read_write> cache: array<cell>;  // [B, context, C]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n) { return; }
    let row = i / p.c;
    let s = row % p.rows;
    // Compared without the sum, which could wrap.
    if (start[0] >= p.context || s >= p.context - start[0]) { return; }
    cache[(row / p.rows * p.context + start[0] + s) * p.c + i % p.c] = x[i];
}
