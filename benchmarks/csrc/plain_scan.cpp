// The yardstick of `mp-bench scan`: the same fused operation as one would write it first, left to
// the compiler's vectoriser with -O3 -ffast-math -march=native. One direction, fp32, one thread.

#include <cmath>
#include <cstdint>
#include <vector>

// u, dt, z, y: (length, channels); A: (channels, states); B, C: (length, states); D, bias: (channels).
extern "C" void plain_scan(int64_t length, int64_t channels, int64_t states, float const* u, float const* dt,
    float const* A, float const* B, float const* C, float const* D, float const* z, float const* bias, float* y)
{
    std::vector<float> state(static_cast<size_t>(channels * states), 0.0F);
    for (int64_t t = 0; t < length; ++t)
    {
        for (int64_t d = 0; d < channels; ++d)
        {
            int64_t const i = t * channels + d;
            float step = dt[i] + bias[d];
            step = step > 20.0F ? step : std::log1p(std::exp(step));
            float const input = step * u[i];
            float sum = D[d] * u[i];
            float* h = &state[static_cast<size_t>(d * states)];
            for (int64_t n = 0; n < states; ++n)
            {
                h[n] = std::exp(step * A[d * states + n]) * h[n] + input * B[t * states + n];
                sum += h[n] * C[t * states + n];
            }
            y[i] = sum * z[i] / (1.0F + std::exp(-z[i]));
        }
    }
}
