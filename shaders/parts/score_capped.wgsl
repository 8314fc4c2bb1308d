// What softmax takes for the products s of a query with four keys: no score beyond ± p.cap (Gemma Team 2024).
fn score(s: vec4f) -> vec4f {
    return soft_cap(s * p.scale, p.cap);
}
