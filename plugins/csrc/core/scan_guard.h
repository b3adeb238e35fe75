/* The edge of the C interface: exceptions end here. */
#ifndef MAMBAPOSE_SCAN_GUARD_H
#define MAMBAPOSE_SCAN_GUARD_H

#include <cstddef>
#include <cstdio>
#include <exception>

namespace mambapose
{

//! Runs a call of the C interface: 0, or -1 with the exception's sentence in error.
template <class Body>
int guarded(char* error, size_t errorSize, Body const& body) noexcept
{
    try
    {
        body();
        return 0;
    }
    catch (std::exception const& failure)
    {
        if (error != nullptr && errorSize > 0)
        {
            std::snprintf(error, errorSize, "%s", failure.what());
        }
    }
    catch (...)
    {
        if (error != nullptr && errorSize > 0)
        {
            std::snprintf(error, errorSize, "unknown failure");
        }
    }
    return -1;
}

} // namespace mambapose
#endif
