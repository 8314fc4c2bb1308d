// Rotary embedding of the first R = 2 half channels of every head, one pair (i, i + R/2) each: turned by
// (start + s) · inv_freq[i] and multiplied by scale. The other channels are copied, one each. INTO_CACHE: into row at + s
// of a cache of one item, if it has that.
struct Params {
    n: u32,     // invocations: pairs and copied channels in x
    first: u32, // n
    rows: u32,  // S, rows of one batch item
    heads: u32,
    heads2: u32,
    half: u32,  // R/2
    rest: u32,  // D − R: channels that do not turn
    scale: f32, // of sine and cosine
    context: u32, // rows of y, where that is a cache
    eps: f32,   // of a norm of each head
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act>;        // [B, S, heads · D]
@group(0) @binding(2) var<storage, read> start: array<u32>;    // [1]
@group(0) @binding(3) var<storage, read> inv_freq: array<f32>; // [R/2]
@group(0) @binding(4) var<storage, read_write> y: array<act>;  // [B, S, heads · D], or [context, heads · D]
@group(0) @binding(5) var<storage, read> at: array<u32>;       // [1]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let head = item / (p.half + p.rest); // over batch, rows and heads
    let i = item % (p.half + p.rest);
    let first = head * (2u * p.half + p.rest);
    var to = first;
    if (INTO_CACHE) {
        if (at[0] >= p.context || head / p.heads >= p.context - at[0]) { return; }
        to += at[0] * p.heads * (2u * p.half + p.rest);
    }
    if (i >= p.half) {
        y[to + p.half + i] = x[first + p.half + i];
        return;
    }
    let position = start[0] + head / p.heads % p.rows;
    let turn = p.scale * sin_cos(f32(position) * inv_freq[i]);
    let j = first + i;
    let lo = f32(x[j]);
    let hi = f32(x[j + p.half]);
    y[to + i] = act(lo * turn.y - hi * turn.x);
    y[to + i + p.half] = act(hi * turn.y + lo * turn.x);
}
