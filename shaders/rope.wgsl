// Rotary embedding, pairs (i, i + R/2) of each head turned by (start + s) · inv_freq[i] (RoFormer, Su et al. 2021,
// in the half-split order of Hugging Face's `rotate_half`) and multiplied by scale. Four neighbouring pairs each; R/2
// divides by four. PARTIAL: a head has channels beyond R, which are copied, four each. INTO_CACHE: y is a cache of one item,
// into which the rows go from at[0] on; those beyond its end are dropped.
struct Params {
    n: u32,     // invocations: quads of pairs and of copied channels in x
    rows: u32,  // S, rows of one batch item
    heads: u32,
    half: u32,  // R/2
    rest: u32,  // D − R: channels that do not turn
    scale: f32, // of sine and cosine
    context: u32, // rows of y, where that is a cache
    eps: f32,   // of a norm of each head
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act4>;         // [B, S, heads · D / 4]
@group(0) @binding(2) var<storage, read> start: array<u32>;      // [1]
@group(0) @binding(3) var<storage, read> inv_freq: array<vec4f>; // [R/2 / 4]
@group(0) @binding(4) var<storage, read_write> y: array<act4>;   // [B, S, heads · D / 4], or [context, ..]
@group(0) @binding(5) var<storage, read> at: array<u32>;         // [1]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let half4 = p.half / 4u;
    let rest4 = select(0u, p.rest / 4u, PARTIAL);
    let head = item / (half4 + rest4); // over batch, rows and heads
    let i4 = item % (half4 + rest4);
    let j = head * (2u * half4 + rest4) + i4;
    var to = j;
    if (INTO_CACHE) {
        // Compared without the sum, which could wrap.
        if (at[0] >= p.context || head / p.heads >= p.context - at[0]) { return; }
        to += at[0] * p.heads * (2u * half4 + rest4);
    }
    let root = root_of(head * (2u * half4 + rest4), 2u * half4 + rest4);
    if (PARTIAL && i4 >= half4) {
        y[to + half4] = act4(normed(vec4f(x[j + half4]), i4 + half4, root));
        return;
    }
    let position = start[0] + head / p.heads % p.rows;
    let angle = f32(position) * inv_freq[i4];
    let a = sin_cos(angle.x);
    let b = sin_cos(angle.y);
    let c = sin_cos(angle.z);
    let d = sin_cos(angle.w);
    let sine = p.scale * vec4f(a.x, b.x, c.x, d.x);
    let cosine = p.scale * vec4f(a.y, b.y, c.y, d.y);
    let lo = normed(vec4f(x[j]), i4, root);
    let hi = normed(vec4f(x[j + half4]), i4 + half4, root);
    y[to] = act4(lo * cosine - hi * sine);
    y[to + half4] = act4(hi * cosine + lo * sine);
}
