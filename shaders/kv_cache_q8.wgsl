// Keys or values of new tokens in eight bits: each head of a row has a scale of its own, s = max |x| / 127 and
// q = round(x / s). LANES invocations share a head: one, or the workgroup. Rows beyond the cache are dropped.
struct Params {
    n: u32,       // rows · heads
    rows: u32,    // rows of x
    context: u32, // rows of the cache
    heads: u32,
    cells: u32,   // words of four channels in a head
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act4>;           // [rows, heads, cells]
@group(0) @binding(2) var<storage, read> start: array<u32>;        // [1]
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;  // [context, heads, cells] signed bytes, low first;
                                                                   // then [context, heads] f32 scales

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let item = (group.y * groups.x + group.x) * (WG_X / LANES) + local / LANES;
    let lane = local % LANES;
    // Lanes of the last workgroup beyond the end repeat the last head and do not store.
    let first = min(item, p.n - 1u) * p.cells;
    var most = vec4f();
    for (var c = lane; c < p.cells; c += LANES) {
        most = max(most, abs(vec4f(x[first + c])));
    }
    let top = all_max(max(max(most.x, most.y), max(most.z, most.w)), local);
    // Compared without the sum, which could wrap.
    let row = item / p.heads;
    if (item >= p.n || start[0] >= p.context || row >= p.context - start[0]) { return; }
    let place = (start[0] + row) * p.heads + item % p.heads;
    let inverse = select(127.0 / top, 0.0, top == 0.0);
    for (var c = lane; c < p.cells; c += LANES) {
        let q = vec4i(clamp(round(vec4f(x[first + c]) * inverse), vec4f(-127.0), vec4f(127.0)));
        let b = vec4u(q) & vec4u(255u);
        cache[place * p.cells + c] = b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
    }
    if (lane == 0u) {
        cache[p.context * p.heads * p.cells + place] = bitcast<u32>(top / 127.0);
    }
}
