/* Symbolic dimensions as TensorRT hands them to getOutputShapes: an expression is built once, with
 * free dimensions, and evaluated later for every concrete shape. */
#ifndef MAMBAPOSE_TRT_DRIVER_EXPR_H
#define MAMBAPOSE_TRT_DRIVER_EXPR_H

#include "trt/driver/trt_driver_host.h"

#include <algorithm>
#include <deque>
#include <limits>

namespace mambapose
{
namespace driver
{

using Dimensions = std::vector<int64_t>;
using Shapes = std::vector<Dimensions>; // of a node's inputs, or of its outputs

inline std::string text(Dimensions const& dimensions)
{
    std::string line = "(";
    for (int64_t const size : dimensions)
    {
        line += (line.size() > 1 ? ", " : "") + std::to_string(size);
    }
    return line + ")";
}

inline nvinfer1::Dims dimsFrom(Dimensions const& dimensions)
{
    nvinfer1::Dims dims;
    std::fill(dims.d, dims.d + nvinfer1::Dims::MAX_DIMS, int64_t{-0x5a5a5a5a}); // read only by mistake
    dims.nbDims = static_cast<int32_t>(dimensions.size());
    std::copy(dimensions.begin(), dimensions.end(), dims.d);
    return dims;
}

class Expression final : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr
{
public:
    enum class Kind
    {
        kCONSTANT,
        kINPUT,     // a dimension of an input that the network leaves open
        kOPERATION, // of two expressions
        kSIZE,      // the value of an output, with a typical and a largest value
    };
    Kind kind;
    int64_t value = 0;
    size_t input = 0, axis = 0;
    nvinfer1::DimensionOperation operation{};
    Expression const* first = nullptr;
    Expression const* second = nullptr;

    explicit Expression(Kind kind_)
        : kind(kind_)
    {
        mImpl = this;
    }
    bool isConstant() const override
    {
        return kind == Kind::kCONSTANT;
    }
    int64_t getConstantValue() const override
    {
        return isConstant() ? value : std::numeric_limits<int64_t>::min();
    }
    bool isSizeTensor() const override
    {
        return kind == Kind::kSIZE;
    }

    //! With the inputs' sizes known. A size tensor counts with its upper bound: what is allocated.
    int64_t evaluate(Shapes const& inputs) const
    {
        switch (kind)
        {
        case Kind::kCONSTANT: return value;
        case Kind::kINPUT: return inputs.at(input).at(axis);
        case Kind::kSIZE: return second->evaluate(inputs);
        case Kind::kOPERATION: break;
        }
        return apply(operation, first->evaluate(inputs), second->evaluate(inputs));
    }

    static int64_t apply(nvinfer1::DimensionOperation operation, int64_t a, int64_t b)
    {
        using Operation = nvinfer1::DimensionOperation;
        bool const divides = operation == Operation::kFLOOR_DIV || operation == Operation::kCEIL_DIV;
        require(!divides || b > 0, "the plugin's shape divides by " + std::to_string(b));
        switch (operation)
        {
        case Operation::kSUM: return a + b;
        case Operation::kPROD: return a * b;
        case Operation::kMAX: return std::max(a, b);
        case Operation::kMIN: return std::min(a, b);
        case Operation::kSUB: return a - b;
        case Operation::kEQUAL: return a == b;
        case Operation::kLESS: return a < b;
        case Operation::kFLOOR_DIV: return a / b;
        case Operation::kCEIL_DIV: return (a + b - 1) / b;
        }
        throw Complaint("the plugin's shape has an operation that is not in the interface");
    }
};

//! Owns the expressions of one query; an expression lives as long as its builder. Mistakes of the
//! plugin are kept for complaint(), since its functions let no exception through.
class Expressions final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder
{
public:
    Expressions()
    {
        mImpl = this;
    }
    nvinfer1::IDimensionExpr const* constant(int64_t value) override
    {
        Expression& made = add(Expression::Kind::kCONSTANT);
        made.value = value;
        return &made;
    }
    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& first,
        nvinfer1::IDimensionExpr const& second) override
    {
        try
        {
            Expression const &a = own(&first), &b = own(&second);
            if (a.isConstant() && b.isConstant())
            {
                return constant(Expression::apply(op, a.value, b.value));
            }
            Expression& made = add(Expression::Kind::kOPERATION);
            made.operation = op;
            made.first = &a;
            made.second = &b;
            return &made;
        }
        catch (Complaint const& complaint)
        {
            return refuse(complaint);
        }
    }
    nvinfer1::IDimensionExpr const* declareSizeTensor(
        int32_t outputIndex, nvinfer1::IDimensionExpr const& opt, nvinfer1::IDimensionExpr const& upper) override
    {
        try
        {
            Expression const &typical = own(&opt), &largest = own(&upper);
            Expression& made = add(Expression::Kind::kSIZE);
            made.value = outputIndex;
            made.first = &typical;
            made.second = &largest;
            return &made;
        }
        catch (Complaint const& complaint)
        {
            return refuse(complaint);
        }
    }

    //! A dimension of an input: a constant where the network fixes it (not -1), else open.
    Expression const& inputDimension(size_t input, size_t axis, int64_t declared)
    {
        Expression& made = add(declared >= 0 ? Expression::Kind::kCONSTANT : Expression::Kind::kINPUT);
        made.value = declared;
        made.input = input;
        made.axis = axis;
        return made;
    }
    //! The expression behind a pointer from the plugin, which must be one of this builder's.
    Expression const& own(nvinfer1::IDimensionExpr const* given) const
    {
        for (Expression const& made : mMade)
        {
            if (static_cast<nvinfer1::IDimensionExpr const*>(&made) == given)
            {
                return made;
            }
        }
        throw Complaint("the plugin used a dimension that did not come from this query's inputs or builder");
    }

    //! Empty when the plugin used the builder well.
    std::string const& complaint() const
    {
        return mComplaint;
    }

private:
    Expression& add(Expression::Kind kind)
    {
        return mMade.emplace_back(kind);
    }
    nvinfer1::IDimensionExpr const* refuse(Complaint const& complaint)
    {
        mComplaint = complaint.what();
        return constant(0);
    }
    std::deque<Expression> mMade; // keeps addresses
    std::string mComplaint;
};

} // namespace driver
} // namespace mambapose
#endif
