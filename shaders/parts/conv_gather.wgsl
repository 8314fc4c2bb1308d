// Fetching input pixels under a tap: nearest doubling, zeros outside. Joined with a part that defines input8.

// Where a tap finds four pixels: their index, and whether they lie inside the picture.
struct Four { at: vec4u, inside: vec4<bool> }

// A pixel before the first is a very large unsigned number, so that one comparison finds both ends.
fn four(base: vec4u, iy: vec4u, ix: vec4u) -> Four {
    let inside = (iy < vec4u(p.in_h << p.up)) & (ix < vec4u(p.in_w << p.up));
    let row = base + min(iy >> vec4u(p.up), vec4u(p.in_h - 1u));
    return Four(row * p.in_w + min(ix >> vec4u(p.up), vec4u(p.in_w - 1u)), inside);
}

// Zeros outside: chosen, not multiplied, as 0 · inf is not 0.
fn pixel8(at: u32, c8: u32, inside: bool) -> Eight {
    let v = input8(at, c8);
    return Eight(select(vec4f(), v.lo, inside), select(vec4f(), v.hi, inside));
}
