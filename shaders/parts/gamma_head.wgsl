// The scale of the norm of each head.
@group(0) @binding(6) var<storage, read> gamma: array<vec4f>; // [D / 4]

fn gamma_of(s: u32, c4: u32) -> vec4f { return gamma[c4]; }
