/* The recurrence of the gradients over one block of channels in one tile. Needs Vec of one vec_*.h. */
#ifndef MAMBAPOSE_SCAN_RETREAT_H
#define MAMBAPOSE_SCAN_RETREAT_H

#include "cpu/scan_block.h"

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

constexpr int kRETREAT = Vec::kUNROLL > 1 ? Vec::kUNROLL / 2 : 1; //!< States at a time.

//! Per step (steps, W): dy in; sums over states for ds (in units of log2 e) and d(s*u) out. `before` and
//! `factor` hold the states before each step and their decay factors, (steps, kRETREAT, W).
struct BackSteps
{
    float *dy, *ds, *dsu, *before, *factor;
};

//! Lane sums of one block: d state, gA (states, W) and gB, gC (steps or 1, states, W).
struct LaneGrads
{
    float *dState, *gA;
    MatrixTile gB, gC;
};

//! Walks steps [x.begin, x.end) of COUNT states forward, keeping states, then backward.
template <int COUNT, int SPREAD>
inline void retreat(BlockSteps const& x, BackSteps const& g, float const* decay, float const* start,
    MatrixTile const& B, MatrixTile const& C, LaneGrads const& grads)
{
    Vec h[COUNT], a[COUNT], dh[COUNT], gA[COUNT];
    for (int n = 0; n < COUNT; ++n)
    {
        h[n] = start == nullptr ? Vec::set(0.0F) : Vec::load(start + n * kW);
        a[n] = Vec::load(decay + n * kW);
        dh[n] = Vec::load(grads.dState + n * kW);
        gA[n] = Vec::load(grads.gA + n * kW);
    }
    for (int64_t t = x.begin; t < x.end; ++t)
    {
        Vec const s = Vec::load(x.s + t * kW), su = Vec::load(x.su + t * kW);
        float const* const b = B.data + t * B.step;
        for (int n = 0; n < COUNT; ++n)
        {
            Vec const bn = SPREAD == 1 ? Vec::set(b[n]) : Vec::load(b + n * SPREAD);
            Vec const factor = exp2Of(s * a[n]);
            factor.store(g.factor + (t * COUNT + n) * kW);
            h[n].store(g.before + (t * COUNT + n) * kW);
            h[n] = fma(factor, h[n], su * bn);
        }
    }
    for (int64_t t = x.end - 1; t >= x.begin; --t)
    {
        Vec const s = Vec::load(x.s + t * kW), su = Vec::load(x.su + t * kW), dy = Vec::load(g.dy + t * kW);
        Vec ds = Vec::load(g.ds + t * kW), dsu = Vec::load(g.dsu + t * kW);
        float const* const b = B.data + t * B.step;
        float const* const c = C.data + t * C.step;
        float* const gB = grads.gB.data + t * grads.gB.step;
        float* const gC = grads.gC.data + t * grads.gC.step;
        for (int n = 0; n < COUNT; ++n)
        {
            Vec const bn = SPREAD == 1 ? Vec::set(b[n]) : Vec::load(b + n * SPREAD);
            Vec const cn = SPREAD == 1 ? Vec::set(c[n]) : Vec::load(c + n * SPREAD);
            Vec const d = fma(dy, cn, dh[n]);
            fma(dy, h[n], Vec::load(gC + n * kW)).store(gC + n * kW);
            fma(d, su, Vec::load(gB + n * kW)).store(gB + n * kW);
            dsu = fma(d, bn, dsu);
            dh[n] = d * Vec::load(g.factor + (t * COUNT + n) * kW);
            h[n] = Vec::load(g.before + (t * COUNT + n) * kW);
            Vec const change = dh[n] * h[n];
            ds = fma(change, a[n], ds);
            gA[n] = fma(change, s, gA[n]);
        }
        ds.store(g.ds + t * kW);
        dsu.store(g.dsu + t * kW);
    }
    for (int n = 0; n < COUNT; ++n)
    {
        dh[n].store(grads.dState + n * kW);
        gA[n].store(grads.gA + n * kW);
    }
}

//! Calls retreat for all states, as many at a time as registers hold.
template <int COUNT, int SPREAD>
inline void retreatWhile(int64_t n, int64_t states, BlockSteps const& x, BackSteps const& g, float const* decay,
    float const* start, MatrixTile const& B, MatrixTile const& C, LaneGrads const& grads)
{
    for (; states - n >= COUNT; n += COUNT)
    {
        MatrixTile const bn{B.data + n * SPREAD, B.step};
        MatrixTile const cn{C.data + n * SPREAD, C.step};
        LaneGrads const mine{grads.dState + n * kW, grads.gA + n * kW, {grads.gB.data + n * kW, grads.gB.step},
            {grads.gC.data + n * kW, grads.gC.step}};
        float const* const from = start == nullptr ? nullptr : start + n * kW;
        retreat<COUNT, SPREAD>(x, g, decay + n * kW, from, bn, cn, mine);
    }
    if constexpr (COUNT > 1)
    {
        retreatWhile<COUNT / 2, SPREAD>(n, states, x, g, decay, start, B, C, grads);
    }
}

//! The gradient of a whole tile, its pieces between resets from the last to the first.
inline void walkBack(MambaposeScanParams const& p, int64_t tileBegin, int64_t count, BlockSteps x, BackSteps const& g,
    float const* decay, float const* start, MatrixTiles<float> const& tiles, LaneGrads const& grads)
{
    for (x.end = count; x.end > 0; x.end = x.begin)
    {
        int64_t const last = tileBegin + x.end - 1;
        int64_t const pieceStart = p.segment == 0 ? 0 : last - last % p.segment - tileBegin;
        x.begin = pieceStart < 0 ? 0 : pieceStart;
        bool const reset = isReset(p, tileBegin + x.begin);
        float const* const from = reset ? nullptr : start;
        if (tiles.perLane)
        {
            retreatWhile<kRETREAT, kW>(0, p.states, x, g, decay, from, tiles.B, tiles.C, grads);
        }
        else
        {
            retreatWhile<kRETREAT, 1>(0, p.states, x, g, decay, from, tiles.B, tiles.C, grads);
        }
        if (reset)
        {
            clear(grads.dState, p.states * kW);
        }
    }
}

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
