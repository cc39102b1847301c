// Sixteen rows at once: 64 bytes of codes, 16 integers, 16 floats, as 1, 2 or 4 registers.
// Included inside an anonymous namespace after kVectorBytes. What has an operator in every set is
// written here once; a set's registers_*.inl gives the rest: fma, half, dot, lookup, square root.

typedef float FloatPart __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntPart __attribute__((vector_size(kVectorBytes)));
typedef uint32_t CodePart __attribute__((vector_size(kVectorBytes)));
typedef int8_t BytePart __attribute__((vector_size(kVectorBytes / 4)));
typedef int16_t ShortPart __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfPart __attribute__((vector_size(kVectorBytes / 2)));

constexpr int kParts = 64 / kVectorBytes;
constexpr int kPartLanes = kVectorBytes / 4;
#define CRUMB_INLINE inline __attribute__((always_inline))

// The statement for each part i, its index a constant so that parts stay in registers.
#define EACH_PART(...)                                  \
  do {                                                  \
    { constexpr int i = 0; __VA_ARGS__; }               \
    if constexpr (kParts > 1) { constexpr int i = kParts > 1 ? 1 : 0; __VA_ARGS__; } \
    if constexpr (kParts > 2) { constexpr int i = kParts > 2 ? 2 : 0; __VA_ARGS__; } \
    if constexpr (kParts > 2) { constexpr int i = kParts > 2 ? 3 : 0; __VA_ARGS__; } \
  } while (0)

struct Floats { FloatPart part[kParts]; };
struct Ints { IntPart part[kParts]; };
struct Codes { CodePart part[kParts]; };

template <class To, class From>
CRUMB_INLINE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class Part>
CRUMB_INLINE Part load_part(const void* at) {
  Part part;
  __builtin_memcpy(&part, at, sizeof part);
  return part;
}

// Codes.
CRUMB_INLINE Codes load_codes(const uint8_t* at) {
  Codes codes;
  EACH_PART(codes.part[i] = load_part<CodePart>(at + i * kVectorBytes));
  return codes;
}
CRUMB_INLINE void store_codes(uint8_t* at, Codes codes) {
  EACH_PART(__builtin_memcpy(at + i * kVectorBytes, &codes.part[i], kVectorBytes));
}
#include CRUMB_REGISTERS

// Keeps a vector that was loaded in its register: the compiler would rather load it once a use.
CRUMB_INLINE void pin([[maybe_unused]] Codes& codes) {
#ifdef CRUMB_REGISTER
  EACH_PART(asm("" : CRUMB_REGISTER(codes.part[i])));
#endif
}

// (codes >> shift) & mask in each byte; a negative shift moves left. The mask drops what crosses.
template <int shift, int mask>
CRUMB_INLINE Codes field(Codes codes) {
  EACH_PART(if constexpr (shift > 0) codes.part[i] >>= shift;
            if constexpr (shift < 0) codes.part[i] <<= -shift;
            codes.part[i] &= uint32_t(mask) * 0x01010101u);
  return codes;
}
CRUMB_INLINE Codes operator|(Codes a, Codes b) {
  EACH_PART(a.part[i] |= b.part[i]);
  return a;
}
// Byte j of each row, as an integer.
template <int j>
CRUMB_INLINE Ints byte_of(Codes codes) {
  Ints ints;
  EACH_PART(ints.part[i] = (IntPart)((codes.part[i] >> (8 * j)) & 0xffu));
  return ints;
}
// Bytes added to bytes, each row's four alike; no byte may overflow.
CRUMB_INLINE Codes add_to_rows(Codes codes, Ints rows) {
  EACH_PART(codes.part[i] += (CodePart)rows.part[i] * 0x01010101u);
  return codes;
}

// Integers.
CRUMB_INLINE Ints all_ints(int32_t value) {
  Ints ints;
  EACH_PART(ints.part[i] = value - IntPart{});
  return ints;
}
CRUMB_INLINE Ints load_ints(const int32_t* at) {
  Ints ints;
  EACH_PART(ints.part[i] = load_part<IntPart>(at + i * kPartLanes));
  return ints;
}
CRUMB_INLINE void store_ints(int32_t* at, Ints ints) {
  EACH_PART(__builtin_memcpy(at + i * kPartLanes, &ints.part[i], kVectorBytes));
}
CRUMB_INLINE Ints operator+(Ints a, Ints b) { EACH_PART(a.part[i] += b.part[i]); return a; }
CRUMB_INLINE Ints operator-(Ints a, Ints b) { EACH_PART(a.part[i] -= b.part[i]); return a; }
CRUMB_INLINE Ints operator*(Ints a, Ints b) { EACH_PART(a.part[i] *= b.part[i]); return a; }
CRUMB_INLINE Ints widen_bytes(const uint8_t* at) {
  Ints ints;
  EACH_PART(ints.part[i] = widen_bytes_part(at + i * kPartLanes));
  return ints;
}
CRUMB_INLINE Ints widen_signed_bytes(const void* at) {
  Ints ints;
  EACH_PART(ints.part[i] =
                widen_signed_bytes_part(static_cast<const int8_t*>(at) + i * kPartLanes));
  return ints;
}
template <int count>
CRUMB_INLINE Ints shift_right(Ints ints) {
  EACH_PART(if constexpr (count > 0) ints.part[i] >>= count);
  return ints;
}
template <int count>
CRUMB_INLINE Ints shift_left(Ints ints) {
  EACH_PART(ints.part[i] <<= count);
  return ints;
}
CRUMB_INLINE Ints low_digit(Ints ints) {
  EACH_PART(ints.part[i] &= 15);
  return ints;
}
// The lower or the higher four bits of a byte, with their sign.
CRUMB_INLINE Ints signed_digit(Ints ints, int higher) {
  const int up = higher ? 24 : 28;
  EACH_PART(ints.part[i] = (IntPart)((CodePart)ints.part[i] << up) >> 28);
  return ints;
}
// A digit of a byte and, above it, two bits of another; with the sign that these six bits have.
CRUMB_INLINE Ints signed_six(Ints digits, int higher, Ints tops, int place) {
  EACH_PART(const CodePart low = (CodePart)digits.part[i] >> 4 * higher & 15u;
            const CodePart top = (CodePart)tops.part[i] >> 2 * place << 4;
            digits.part[i] = (IntPart)((low | top) << 26) >> 26);
  return digits;
}
// Pairs of 16-bit integers, the first low; and sum += both products of pairs with one pair.
CRUMB_INLINE Ints make_pairs(Ints first, Ints second) {
  EACH_PART(first.part[i] = (first.part[i] & 0xffff) | (second.part[i] << 16));
  return first;
}
CRUMB_INLINE Ints add_pair_products(Ints sum, Ints pairs, int32_t pair) {
  EACH_PART(sum.part[i] = add_pair_products_part(sum.part[i], pairs.part[i], pair));
  return sum;
}
CRUMB_INLINE Floats to_floats(Ints ints) {
  Floats floats;
  EACH_PART(floats.part[i] = __builtin_convertvector(ints.part[i], FloatPart));
  return floats;
}

// Floats.
CRUMB_INLINE Floats all_floats(float value) {
  Floats floats;
  EACH_PART(floats.part[i] = value - FloatPart{});
  return floats;
}
CRUMB_INLINE Floats load_floats(const float* at) {
  Floats floats;
  EACH_PART(floats.part[i] = load_part<FloatPart>(at + i * kPartLanes));
  return floats;
}
CRUMB_INLINE void store_floats(float* at, Floats floats) {
  EACH_PART(__builtin_memcpy(at + i * kPartLanes, &floats.part[i], kVectorBytes));
}
// The first count of 16 floats; the others are 0.
CRUMB_INLINE Floats load_first(const float* at, int64_t count) {
  if (count >= 16) return load_floats(at);
  float first[16] = {};
  for (int64_t k = 0; k < count; ++k) first[k] = at[k];
  return load_floats(first);
}
CRUMB_INLINE Floats operator+(Floats a, Floats b) { EACH_PART(a.part[i] += b.part[i]); return a; }
CRUMB_INLINE Floats operator-(Floats a, Floats b) { EACH_PART(a.part[i] -= b.part[i]); return a; }
CRUMB_INLINE Floats operator*(Floats a, Floats b) { EACH_PART(a.part[i] *= b.part[i]); return a; }
CRUMB_INLINE Floats operator/(Floats a, Floats b) { EACH_PART(a.part[i] /= b.part[i]); return a; }
// Of two numbers; a NaN in `a` stays one, so that broken weights show in the logits.
CRUMB_INLINE Floats max(Floats a, Floats b) {
  EACH_PART(a.part[i] = b.part[i] > a.part[i] ? b.part[i] : a.part[i]);
  return a;
}
CRUMB_INLINE Floats min(Floats a, Floats b) {
  EACH_PART(a.part[i] = b.part[i] < a.part[i] ? b.part[i] : a.part[i]);
  return a;
}
CRUMB_INLINE Floats absolute(Floats a) {
  EACH_PART(a.part[i] = same_bits<FloatPart>(same_bits<IntPart>(a.part[i]) & 0x7fffffff));
  return a;
}
// a with the sign of b.
CRUMB_INLINE Floats with_sign(Floats a, Floats b) {
  EACH_PART(a.part[i] = same_bits<FloatPart>((same_bits<IntPart>(a.part[i]) & 0x7fffffff) |
                                             (same_bits<IntPart>(b.part[i]) & int32_t(1u << 31))));
  return a;
}
CRUMB_INLINE Floats fma(Floats a, Floats b, Floats c) {
  EACH_PART(c.part[i] = fma_part(a.part[i], b.part[i], c.part[i]));
  return c;
}
CRUMB_INLINE Floats fma(Floats a, float b, Floats c) { return fma(a, all_floats(b), c); }
CRUMB_INLINE Floats load_halves(const void* at) {
  Floats floats;
  EACH_PART(floats.part[i] = widen_halves(static_cast<const uint16_t*>(at) + i * kPartLanes));
  return floats;
}
CRUMB_INLINE void store_halves(void* at, Floats floats) {
  EACH_PART(narrow_halves(static_cast<uint16_t*>(at) + i * kPartLanes, floats.part[i]));
}
CRUMB_INLINE Floats load_bfloats(const void* at) {
  Floats floats;
  EACH_PART(floats.part[i] = same_bits<FloatPart>(
      __builtin_convertvector(load_part<HalfPart>(static_cast<const uint16_t*>(at) +
                                                  i * kPartLanes), CodePart) << 16));
  return floats;
}
CRUMB_INLINE Floats load_signed_bytes(const int8_t* at) {
  return to_floats(widen_signed_bytes(at));
}
// Whole numbers within -128 .. 127.
CRUMB_INLINE void store_signed_bytes(int8_t* at, Floats floats) {
  EACH_PART(BytePart bytes = __builtin_convertvector(
                __builtin_convertvector(floats.part[i], IntPart), BytePart);
            __builtin_memcpy(at + i * kPartLanes, &bytes, sizeof bytes));
}
// Nearest whole number, ties to even, for |x| < 2^22.
CRUMB_INLINE Floats nearest_whole(Floats x) {
  const Floats magic = all_floats(12582912.0f);
  return (x + magic) - magic;
}
// All lanes made one in one fixed order: lane k with lane k + 8, these with those 4 on, 2 on, 1 on.
template <class Lanes, class Join>
CRUMB_INLINE float join_lanes(Lanes x, Join join) {
  if constexpr (sizeof x == 64)
    return join_lanes(join(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                           __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15)), join);
  else if constexpr (sizeof x == 32)
    return join_lanes(join(__builtin_shufflevector(x, x, 0, 1, 2, 3),
                           __builtin_shufflevector(x, x, 4, 5, 6, 7)), join);
  else {
    x = join(x, __builtin_shufflevector(x, x, 2, 3, 2, 3));
    return join(x, __builtin_shufflevector(x, x, 1, 1, 1, 1))[0];
  }
}
template <class Join>
CRUMB_INLINE float join_all(Floats floats, Join join) {
#pragma GCC unroll 2
  for (int half = kParts / 2; half > 0; half /= 2)
#pragma GCC unroll 2
    for (int i = 0; i < half; ++i) floats.part[i] = join(floats.part[i], floats.part[i + half]);
  return join_lanes(floats.part[0], join);
}
CRUMB_INLINE float sum(Floats floats) {
  return join_all(floats, [](auto a, auto b) { return a + b; });
}
CRUMB_INLINE float largest(Floats floats) {
  return join_all(floats, [](auto a, auto b) { return a > b ? a : b; });
}
