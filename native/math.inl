// Elementary functions on 16 floats. Relative errors below 2e-7 but where the text says otherwise.

// e^x; x is held within -87.3 .. 88.3. Source: Cephes expf, its range reduction and polynomial.
CRUMB_INLINE Floats exponential(Floats x) {
  x = min(max(x, all_floats(-87.3f)), all_floats(88.3f));
  const Floats n = nearest_whole(x * all_floats(1.44269504f));
  x = fma(n, all_floats(-0.693359375f), x);
  x = fma(n, all_floats(2.12194440e-4f), x);
  Floats p = all_floats(1.9875691500e-4f);
  p = fma(p, x, all_floats(1.3981999507e-3f));
  p = fma(p, x, all_floats(8.3334519073e-3f));
  p = fma(p, x, all_floats(4.1665795894e-2f));
  p = fma(p, x, all_floats(1.6666665459e-1f));
  p = fma(p, x, all_floats(5.0000001201e-1f));
  p = fma(p, x * x, x) + all_floats(1.0f);
  EACH_PART(p.part[i] = same_bits<FloatPart>(
      same_bits<IntPart>(p.part[i]) + (__builtin_convertvector(n.part[i], IntPart) << 23)));
  return p;
}

// Absolute error below 2e-7.
CRUMB_INLINE Floats hyperbolic_tangent(Floats x) {
  const Floats one = all_floats(1.0f), two = all_floats(2.0f);
  const Floats grown = exponential(two * min(absolute(x), all_floats(20.0f)));
  return with_sign(one - two / (grown + one), x);
}

// Absolute error below 8e-7: 1.5e-7 of the formula (Abramowitz and Stegun 7.1.26), the rest is ten
// roundings near 0, where it takes 1 from 1. As run/array_executor.py has it.
CRUMB_INLINE Floats error_function(Floats x) {
  const Floats one = all_floats(1.0f), size = absolute(x);
  const Floats t = one / fma(size, 0.3275911f, one);
  Floats p = all_floats(1.061405429f);
  p = fma(p, t, all_floats(-1.453152027f));
  p = fma(p, t, all_floats(1.421413741f));
  p = fma(p, t, all_floats(-0.284496736f));
  p = fma(p, t, all_floats(0.254829592f));
  return with_sign(one - p * t * exponential(all_floats(0.0f) - size * size), x);
}

CRUMB_INLINE Floats silu(Floats x) {
  const Floats one = all_floats(1.0f);
  return x / (one + exponential(all_floats(0.0f) - max(x, all_floats(-80.0f))));
}

CRUMB_INLINE Floats sigmoid(Floats x) {
  const Floats one = all_floats(1.0f);
  return one / (one + exponential(all_floats(0.0f) - max(x, all_floats(-80.0f))));
}

// ln(1 + e^x): the part behind max(x, 0) by the series of 2 artanh(t / (2 + t)), t = e^-|x|.
CRUMB_INLINE Floats softplus(Floats x) {
  const Floats t = exponential(all_floats(0.0f) - absolute(x)), s = t / (t + all_floats(2.0f));
  const Floats z = s * s;
  Floats p = all_floats(1.0f / 15);
  p = fma(p, z, all_floats(1.0f / 13));
  p = fma(p, z, all_floats(1.0f / 11));
  p = fma(p, z, all_floats(1.0f / 9));
  p = fma(p, z, all_floats(1.0f / 7));
  p = fma(p, z, all_floats(1.0f / 5));
  p = fma(p, z, all_floats(1.0f / 3));
  p = fma(p, z, all_floats(1.0f));
  return max(x, all_floats(0.0f)) + (s + s) * p;
}

// Absolute error below 2e-7 times the cap.
CRUMB_INLINE Floats soft_cap(Floats x, float cap) {
  return all_floats(cap) * hyperbolic_tangent(x / all_floats(cap));
}

CRUMB_INLINE Floats gelu(Floats x) {
  return all_floats(0.5f) * x *
         (all_floats(1.0f) + error_function(x * all_floats(0.7071067811865476f)));
}

CRUMB_INLINE Floats gelu_tanh(Floats x) {
  const Floats inner = fma(x * x * x, 0.044715f, x) * all_floats(0.7978845608028654f);
  return all_floats(0.5f) * x * (all_floats(1.0f) + hyperbolic_tangent(inner));
}

// (up + 1) gate sigmoid(slope gate), gate at most `limit` and up within it.
CRUMB_INLINE Floats clamped_gate(Floats gate, Floats up, float slope, float limit) {
  const Floats one = all_floats(1.0f), most = all_floats(limit);
  gate = min(gate, most);
  up = max(min(up, most), all_floats(-limit));
  const Floats turned = max(gate * all_floats(slope), all_floats(-80.0f));
  return (up + one) * (gate / (one + exponential(all_floats(0.0f) - turned)));
}
