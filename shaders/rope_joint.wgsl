// The same as rope.wgsl for two inputs with one position, queries and keys of a layer: x goes into y, x2 into y2. Bit i of CACHES:
// y or y2 is a cache, into which the rows go from start[0] on.
struct Params {
    n: u32,     // invocations: quads of pairs and of copied channels in x, then in x2
    first: u32, // those of x
    rows: u32,  // S, rows of one batch item
    heads: u32, // of x
    heads2: u32, // of x2, if there is one
    half: u32,  // R/2
    rest: u32,  // D − R: channels that do not turn
    scale: f32, // of sine and cosine
    context: u32, // rows of y, where that is a cache
    eps: f32,   // of a norm of each head
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act4>;         // [B, S, heads · D / 4]
@group(0) @binding(2) var<storage, read> start: array<u32>;      // [1]
@group(0) @binding(3) var<storage, read> inv_freq: array<vec4f>; // [R/2 / 4]
@group(0) @binding(4) var<storage, read_write> y: array<act4>;   // [B, S, heads · D / 4], or [context, ..]
@group(0) @binding(5) var<storage, read> x2: array<act4>;        // [B, S, heads2 · D / 4]
@group(0) @binding(6) var<storage, read_write> y2: array<act4>;  // [B, S, heads2 · D / 4], or [context, ..]

fn load(s: u32, i: u32) -> vec4f {
    if (s == 1u) { return vec4f(x2[i]); }
    return vec4f(x[i]);
}

fn store(s: u32, i: u32, v: vec4f) {
    if (s == 1u) { y2[i] = act4(v); } else { y[i] = act4(v); }
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let s = select(0u, 1u, item >= p.first);
    let heads = select(p.heads, p.heads2, s == 1u);
    turn(s, item - s * p.first, heads, ((CACHES >> s) & 1u) == 1u, start[0]);
}
