// Rotary embedding, pairs (i, i + R/2) of each head turned by (start + s) · inv_freq[i] (RoFormer, Su et al. 2021,
// in the half-split order of Hugging Face's `rotate_half`) and multiplied by scale. Four neighbouring pairs each; R/2
// divides by four. PARTIAL: a head has channels beyond R, which are copied, four each. INTO_CACHE: y is a cache of one item,
// into which the rows go from at[0] on; those beyond its end are dropped.
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
@group(0) @binding(5) var<storage, read> at: array<u32>;         // [1]

fn load(s: u32, i: u32) -> vec4f { return vec4f(x[i]); }

fn store(s: u32, i: u32, v: vec4f) { y[i] = act4(v); }

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    var begin = 0u;
    if (INTO_CACHE) {
        begin = at[0];
    }
    turn(0u, item, p.heads, INTO_CACHE, begin);
}
