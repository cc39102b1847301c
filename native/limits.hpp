// What the machine could do at best, for benchmarks to compare with.
// In: an instruction set that runs here, threads. Out: seconds, or multiply-adds per second.
#pragma once

#include <cstdint>
#include <string>

namespace crumb {
// Seconds in which threads together read an array once. Bytes: a multiple of 4096, aligned to 64.
double read_pass_seconds(const std::string& isa, const uint8_t* array, int64_t bytes, int threads);
enum class Products { kBytes, kFloats };
// Multiply-adds per second of all threads, with the set's fastest instructions for int8 or f32.
double multiply_peak(const std::string& isa, Products of, int threads, double seconds);
}  // namespace crumb
