/* Moving blocks of channels between the caller's tensors and tiles in cache: lanes are channels, a
 * tile holds some steps of one direction. Needs Vec of one vec_*.h. */
#ifndef MAMBAPOSE_SCAN_TILE_H
#define MAMBAPOSE_SCAN_TILE_H

#include "cpu/scan_isa.h"

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

constexpr int kW = Vec::kWIDTH;

struct Half
{
    uint16_t bits;
};

inline int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

//! Hands out pieces of a task's scratch, each starting a cache line; without memory it only counts.
class Scratch
{
public:
    explicit Scratch(float* memory)
        : mMemory(memory)
    {
    }
    float* take(int64_t floats)
    {
        float* const piece = mMemory == nullptr ? nullptr : mMemory + mTaken;
        mTaken += (floats + 15) / 16 * 16;
        return piece;
    }
    int64_t taken() const
    {
        return mTaken;
    }

private:
    float* mMemory;
    int64_t mTaken = 0;
};

//! Steps per tile: B and C of a tile stay in the first-level cache, a few rows at least.
inline int64_t tileSteps(int64_t states, int64_t most)
{
    int64_t const fitting = 1024 / states;
    return fitting > most ? most : (fitting < 8 ? 8 : fitting);
}

inline Vec loadLanes(float const* p, int lanes)
{
    if (lanes == kW)
    {
        return Vec::load(p);
    }
    float padded[kW] = {};
    for (int i = 0; i < lanes; ++i)
    {
        padded[i] = p[i];
    }
    return Vec::load(padded);
}

inline Vec loadLanes(Half const* p, int lanes)
{
    if (lanes == kW)
    {
        return Vec::loadHalf(&p->bits);
    }
    uint16_t padded[kW] = {};
    for (int i = 0; i < lanes; ++i)
    {
        padded[i] = p[i].bits;
    }
    return Vec::loadHalf(padded);
}

inline void storeLanes(Vec x, float* p, int lanes)
{
    if (lanes == kW)
    {
        x.store(p);
        return;
    }
    float padded[kW];
    x.store(padded);
    for (int i = 0; i < lanes; ++i)
    {
        p[i] = padded[i];
    }
}

inline void storeLanes(Vec x, Half* p, int lanes)
{
    if (lanes == kW)
    {
        x.storeHalf(&p->bits);
        return;
    }
    uint16_t padded[kW];
    x.storeHalf(padded);
    for (int i = 0; i < lanes; ++i)
    {
        p[i].bits = padded[i];
    }
}

//! Lanes of the block at channel c of a range that ends at channelEnd.
inline int lanesAt(int64_t c, int64_t channelEnd)
{
    return static_cast<int>(smaller(kW, channelEnd - c));
}

template <typename T>
inline T* rowOf(MambaposeRows const& rows, int64_t batch, int64_t token)
{
    return static_cast<T*>(rows.data) + batch * rows.batchStride + token * rows.rowStride;
}

//! Rows (lanes, states) to a packed (states, W) times scale; absent lanes become 0.
inline void packStates(float const* rows, int64_t rowStride, int lanes, int64_t states, float scale, float* packed)
{
    for (int64_t n = 0; n < states; ++n)
    {
        float* const target = packed + n * kW;
        for (int lane = 0; lane < lanes; ++lane)
        {
            target[lane] = rows[lane * rowStride + n] * scale;
        }
        for (int lane = lanes; lane < kW; ++lane)
        {
            target[lane] = 0.0F;
        }
    }
}

inline void unpackStates(float const* packed, int lanes, int64_t states, float* rows)
{
    for (int lane = 0; lane < lanes; ++lane)
    {
        for (int64_t n = 0; n < states; ++n)
        {
            rows[lane * states + n] = packed[n * kW + lane];
        }
    }
}

inline void clear(float* p, int64_t count)
{
    for (int64_t i = 0; i < count; ++i)
    {
        p[i] = 0.0F;
    }
}

//! Tokens visited by direction k in steps [begin, begin + count).
inline void tokensOf(MambaposeScanParams const& p, int64_t k, int64_t begin, int64_t count, int32_t* tokens)
{
    bool const backwards = (p.reverseMask >> k) & 1U;
    int32_t const* order = p.order == nullptr ? nullptr : p.order + (p.orderRows > 1 ? k * p.length : 0);
    for (int64_t t = 0; t < count; ++t)
    {
        int64_t const step = backwards ? p.length - 1 - (begin + t) : begin + t;
        tokens[t] = order == nullptr ? static_cast<int32_t>(step) : order[step];
    }
}

//! B or C of a tile as the inner loop reads it: element (t, n) at data[t * step + n * spread].
struct MatrixTile
{
    float* data;
    int64_t step;
};

//! One value per (step, state), shared by all lanes: (count, states).
template <typename T>
inline void fillShared(MambaposeRows const& rows, int64_t batch, int32_t const* tokens, int64_t count, int64_t column,
    int64_t states, MatrixTile& tile)
{
    tile.step = states;
    for (int64_t t = 0; t < count; ++t)
    {
        T const* const source = rowOf<T>(rows, batch, tokens[t]) + column;
        float* const target = tile.data + t * states;
        int64_t n = 0;
        for (; n + kW <= states; n += kW)
        {
            loadLanes(source + n, kW).store(target + n);
        }
        if (n < states)
        {
            int const rest = static_cast<int>(states - n);
            storeLanes(loadLanes(source + n, rest), target + n, rest);
        }
    }
}

inline float valueOf(float x)
{
    return x;
}

inline float valueOf(Half x)
{
    uint16_t padded[kW] = {x.bits};
    float values[kW];
    Vec::loadHalf(padded).store(values);
    return values[0];
}

//! One value per (step, state, lane), for lanes of several groups: (count, states, W).
template <typename T>
inline void fillPerLane(MambaposeScanParams const& p, MambaposeRows const& rows, int64_t batch, int64_t k,
    int32_t const* tokens, int64_t count, int64_t channel, int lanes, MatrixTile& tile)
{
    tile.step = p.states * kW;
    for (int64_t t = 0; t < count; ++t)
    {
        T const* const source = rowOf<T>(rows, batch, tokens[t]) + k * p.groups * p.states;
        for (int lane = 0; lane < kW; ++lane)
        {
            int64_t const group = (channel + smaller(lane, lanes - 1)) / (p.channels / p.groups);
            for (int64_t n = 0; n < p.states; ++n)
            {
                tile.data[t * tile.step + n * kW + lane] = valueOf(source[group * p.states + n]);
            }
        }
    }
}

//! The same matrix at every step, one per channel: (states, W) and step 0.
inline void fillConstant(MambaposeScanParams const& p, MambaposeRows const& rows, int64_t k, int64_t channel, int lanes,
    MatrixTile& tile)
{
    tile.step = 0;
    float const* const first = static_cast<float const*>(rows.data) + (k * p.channels + channel) * rows.rowStride;
    packStates(first, rows.rowStride, lanes, p.states, 1.0F, tile.data);
}

//! True when the lanes of a block need their own B or C instead of one value for all.
inline bool needsPerLane(MambaposeScanParams const& p, int64_t channel, int lanes)
{
    int64_t const wide = p.channels / p.groups;
    return p.bConstant || p.cConstant || channel / wide != (channel + lanes - 1) / wide;
}

//! Floats that B and C of a tile may take each.
inline int64_t matrixTileSize(MambaposeScanParams const& p, int64_t steps)
{
    bool const perLane = p.bConstant || p.cConstant || (p.groups > 1 && (p.channels / p.groups) % kW != 0);
    return steps * p.states * (perLane ? kW : 1);
}

//! B and C of one tile, refilled only when a block needs other values than the block before.
template <typename T>
class MatrixTiles
{
public:
    MatrixTile B{}, C{};
    bool perLane = false;

    void start(MambaposeScanParams const& p, int64_t batch, int64_t k, int32_t const* tokens, int64_t count)
    {
        mParams = &p;
        mBatch = batch;
        mDirection = k;
        mTokens = tokens;
        mCount = count;
        mGroup = -1;
    }

    void prepare(int64_t channel, int lanes)
    {
        MambaposeScanParams const& p = *mParams;
        perLane = needsPerLane(p, channel, lanes);
        if (perLane)
        {
            fillLanes(p.B, p.bConstant, channel, lanes, B);
            fillLanes(p.C, p.cConstant, channel, lanes, C);
            mGroup = -1;
            return;
        }
        int64_t const group = channel / (p.channels / p.groups);
        if (group != mGroup)
        {
            int64_t const column = (mDirection * p.groups + group) * p.states;
            fillShared<T>(p.B, mBatch, mTokens, mCount, column, p.states, B);
            fillShared<T>(p.C, mBatch, mTokens, mCount, column, p.states, C);
            mGroup = group;
        }
    }

private:
    void fillLanes(MambaposeRows const& rows, int32_t constant, int64_t channel, int lanes, MatrixTile& tile)
    {
        if (constant)
        {
            fillConstant(*mParams, rows, mDirection, channel, lanes, tile);
            return;
        }
        fillPerLane<T>(*mParams, rows, mBatch, mDirection, mTokens, mCount, channel, lanes, tile);
    }

    MambaposeScanParams const* mParams = nullptr;
    int32_t const* mTokens = nullptr;
    int64_t mBatch = 0, mDirection = 0, mCount = 0, mGroup = -1;
};

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
