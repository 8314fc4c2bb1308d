// cap · tanh(v / cap). Near zero the series: there 1 − 2 / (e^2x + 1) loses digits. Far out the exponential is held
// finite: what a driver makes of an infinity is its own affair.
fn soft_cap(v: vec4f, cap: f32) -> vec4f {
    let x = v / cap;
    let s = x * x;
    let near = x * (1.0 - s * (1.0 / 3.0 - s * (2.0 / 15.0 - s * (17.0 / 315.0 - s * (62.0 / 2835.0)))));
    let far = 1.0 - 2.0 / (exp(2.0 * clamp(x, vec4f(-20.0), vec4f(20.0))) + 1.0);
    return cap * select(far, near, abs(x) < vec4f(0.3));
}
