// Runs a step: every thread walks all operations and does its share of each; between two of them
// all wait. Shares are whole outputs, so the number of threads changes no bit of any result.
#include "engine.hpp"

#include <chrono>
#include <cstring>

namespace crumb {

struct Share {
  int64_t begin, end;
};

// One thread's view of a step.
struct Worker {
  Engine& engine;
  const Step& step;
  const int thread, threads;
  int64_t rows;  // of the step, or those that Select kept
  uint8_t* scratch;

  Share share(int64_t count) const {
    return {count * thread / threads, count * (thread + 1) / threads};
  }
  const Buffer& buffer(int index) const { return engine.buffers[index]; }

  // Activations as this step's matmul wants them to lie.
  Activations quantized(int index) const {
    Activations found = engine.activations[index];
    found.together = lie_together(engine.kernels_, rows, found.block_inputs);
    return found;
  }

  void operator()(const Embed& op) {
    const Buffer& out = buffer(op.out);
    const Share mine = share(rows);
    engine.kernels_.embed({op.matrix.tiles, op.matrix.floats,
                           op.of_positions ? step.positions : step.tokens, out.data, out.stride,
                           mine.begin, mine.end, scratch});
  }

  void operator()(const Norm& op) {
    const Buffer &in = buffer(op.in), &out = buffer(op.out);
    const Share mine = share(rows);
    engine.kernels_.norm({in.data, out.data, in.stride, out.stride, in.width, mine.begin, mine.end,
                          op.weight, op.bias, op.epsilon, op.centered});
  }

  void operator()(const Quantize& op) {
    const Buffer& in = buffer(op.in);
    const Activations to = quantized(op.activations);
    const Share mine = share(rows * scale_count(to));
    engine.kernels_.quantize({in.data, in.stride, to, mine.begin, mine.end});
  }

  void operator()(const LinearGroup& op) {
    for (const Linear& linear : op.linears) {
      const Buffer& out = buffer(linear.out);
      const Share mine = share((linear.matrix.rows() + 15) / 16);
      if (mine.begin == mine.end) continue;
      if (linear.activations >= 0) {
        engine.kernels_.matmul({*linear.matrix.tiles, quantized(linear.activations), rows, linear.bias,
                                out.data, out.stride, mine.begin, mine.end, scratch});
        continue;
      }
      const Buffer& in = buffer(linear.in);
      engine.kernels_.float_matmul({linear.matrix.tiles, linear.matrix.floats, in.data, in.stride,
                                    rows, linear.bias, out.data, out.stride, mine.begin, mine.end,
                                    scratch});
    }
  }

  void operator()(const Split& op) {
    const Buffer& in = buffer(op.in);
    const Share mine = share(rows);
    const int64_t parts = int64_t(op.outs.size());
    for (int64_t row = mine.begin; row < mine.end; ++row)
      for (int64_t outer = 0; outer < op.outer; ++outer)
        for (int64_t part = 0; part < parts; ++part) {
          const Buffer& out = buffer(op.outs[part]);
          std::memcpy(out.data + row * out.stride + outer * op.inner,
                      in.data + row * in.stride + (outer * parts + part) * op.inner,
                      op.inner * sizeof(float));
        }
  }

  void operator()(const Rotary& op) {
    const Buffer &in = buffer(op.in), &out = buffer(op.out);
    const Share mine = share(rows);
    engine.kernels_.rotary({in.data, out.data, in.stride, out.stride, step.positions, op.turns,
                            op.heads, op.head_dim, op.dimensions, op.interleaved, mine.begin,
                            mine.end});
  }

  void operator()(const Attention& op) {
    const Buffer &query = buffer(op.query), &key = buffer(op.key), &value = buffer(op.value);
    const Buffer& out = buffer(op.out);
    engine.kernels_.cache_store({key.data, value.data, key.stride, value.stride, op.cache,
                                 step.segments, step.segment_count, op.key_value_heads,
                                 op.head_dim, thread, threads});
    engine.pool_.barrier();
    engine.kernels_.attention({query.data, out.data, query.stride, out.stride, op.cache,
                               step.segments, step.segment_count, op.heads, op.key_value_heads,
                               op.head_dim, op.scale, op.soft_cap, op.causal, op.window, thread,
                               threads, reinterpret_cast<float*>(scratch)});
  }

  void operator()(const Elementwise& op) {
    const Buffer &left = buffer(op.left), &out = buffer(op.out);
    const Share mine = share(rows * left.stride / 16);
    engine.kernels_.elementwise({left.data, op.right < 0 ? nullptr : buffer(op.right).data,
                                 out.data, mine.begin, mine.end, op.kind});
  }

  void operator()(const Select& op) {
    const Buffer &in = buffer(op.in), &out = buffer(op.out);
    rows = step.selected_count;
    const Share mine = share(rows);
    for (int64_t row = mine.begin; row < mine.end; ++row)
      std::memcpy(out.data + row * out.stride, in.data + step.selected[row] * in.stride,
                  in.stride * sizeof(float));
  }

  void operator()(const Gather& op) {
    const Buffer &in = buffer(op.in), &out = buffer(op.out);
    const Share mine = share(rows * out.width);
    for (int64_t k = mine.begin; k < mine.end; ++k) {
      const int64_t row = k / out.width, column = k % out.width;
      out.data[row * out.stride + column] = in.data[row * in.stride + op.order[column]];
    }
  }

  void walk() {
    using Clock = std::chrono::steady_clock;
    const bool timed = engine.timed && thread == 0;
    for (int64_t k = 0; k < step.operations && rows > 0; ++k) {
      const Operation& operation = engine.operations[k];
      const auto begin = timed ? Clock::now() : Clock::time_point();
      std::visit([this](const auto& op) { (*this)(op); }, operation);
      engine.pool_.barrier();
      if (!timed) continue;
      std::atomic<double>& total = engine.seconds_[operation.index()];
      total = total + std::chrono::duration<double>(Clock::now() - begin).count();
    }
  }
};

void Engine::run(const Step& step) {
  struct Context {
    Engine& engine;
    const Step& step;
  } context{*this, step};
  pool_.run(
      [](void* given, int thread) {
        auto& [engine, step] = *static_cast<Context*>(given);
        Worker worker{engine, step, thread, engine.pool_.threads(), step.rows,
                      engine.scratch_ + thread * engine.scratch_bytes_};
        worker.walk();
      },
      &context);
}

}  // namespace crumb
