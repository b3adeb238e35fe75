#include "trt/trt_fields.h"
#include "trt/trt_log.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace mambapose
{
namespace
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

constexpr char const* kSERIALIZATION_FIELD = "serialization_version";
constexpr char const* kMULTIPROCESSORS_FIELD = "multiprocessors";
constexpr int32_t kALL_INPUTS = kHAS_D | kHAS_Z | kHAS_DT_BIAS | kHAS_ORDER | kHAS_INITIAL_STATE;
constexpr int32_t kLARGEST = std::numeric_limits<int32_t>::max();

template <typename Integer>
Integer valueAt(PluginField const& field, int32_t i)
{
    Integer value{};
    // Data of an engine file may lie at any address.
    std::memcpy(&value, static_cast<char const*>(field.data) + static_cast<size_t>(i) * sizeof(value), sizeof(value));
    return value;
}

//! Looks fields up by name and remembers which were read, so that the rest can be refused.
class FieldReader
{
public:
    FieldReader(PluginFieldCollection const* collection, TensorRTPhase phase)
        : mIsEngine(phase == TensorRTPhase::kRUNTIME)
    {
        if (collection == nullptr || collection->nbFields < 0
            || (collection->fields == nullptr && collection->nbFields > 0))
        {
            refuse("fields", "a collection of plugin fields", "none");
        }
        mFields.assign(collection->fields, collection->fields + collection->nbFields);
        mIsRead.assign(mFields.size(), false);
        for (PluginField const& field : mFields)
        {
            if (field.name == nullptr)
            {
                refuse("fields", "a name for every field", "a field without one");
            }
        }
    }

    int32_t integer(char const* name, int32_t lowest, int32_t highest, int32_t otherwise)
    {
        PluginField const* const field = find(name);
        if (field == nullptr)
        {
            return otherwise;
        }
        wantLength(*field, 1);
        return bounded(*field, 0, lowest, highest);
    }

    std::vector<int32_t> flags(char const* name, int32_t count)
    {
        std::vector<int32_t> values(static_cast<size_t>(count), 0);
        if (PluginField const* const field = find(name))
        {
            wantLength(*field, count);
            for (int32_t i = 0; i < count; ++i)
            {
                values[static_cast<size_t>(i)] = bounded(*field, i, 0, 1);
            }
        }
        return values;
    }

    //! The first of the words is the default.
    std::string word(char const* name, std::vector<std::string> const& words)
    {
        PluginField const* const field = find(name);
        if (field == nullptr)
        {
            return words.front();
        }
        if (field->type != PluginFieldType::kCHAR)
        {
            refuse(quoted(name), "a CHAR field", typeOf(*field));
        }
        std::string found;
        if (field->data != nullptr && field->length > 0)
        {
            found.assign(static_cast<char const*>(field->data), static_cast<size_t>(field->length));
        }
        if (!found.empty() && found.back() == '\0')
        {
            found.pop_back(); // parsers count no terminator, programs often do
        }
        if (std::find(words.begin(), words.end(), found) == words.end())
        {
            refuse(quoted(name), "'" + words[0] + "' or '" + words[1] + "'", "'" + printable(found) + "'");
        }
        return found;
    }

    void refuseUnread() const
    {
        for (size_t i = 0; i < mFields.size(); ++i)
        {
            std::string const name = mFields[i].name;
            // Meant for the parser's lookup; some callers pass every attribute on.
            bool const isLookup = !mIsEngine && (name == "plugin_version" || name == "plugin_namespace");
            if (!mIsRead[i] && !isLookup)
            {
                refuse(quoted(printable(name).c_str()), "no field of this name", "one",
                    mIsEngine ? "build the engine again with this library"
                              : "version 1 of the operator does not have it");
            }
        }
    }

private:
    static std::string quoted(char const* name)
    {
        return std::string("field '") + name + "'";
    }

    static std::string typeOf(PluginField const& field)
    {
        return "field type " + std::to_string(static_cast<int32_t>(field.type));
    }

    //! Foreign bytes in a message must not break the line, nor make it endless.
    static std::string printable(std::string text)
    {
        constexpr size_t kLONGEST = 40;
        text.resize(std::min(text.size(), kLONGEST));
        std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c > '~'; }, '?');
        return text;
    }

    PluginField const* find(char const* name)
    {
        PluginField const* found = nullptr;
        for (size_t i = 0; i < mFields.size(); ++i)
        {
            if (std::strcmp(mFields[i].name, name) != 0)
            {
                continue;
            }
            if (found != nullptr)
            {
                refuse(quoted(name), "one field of this name", "two");
            }
            mIsRead[i] = true;
            found = &mFields[i];
        }
        if (found == nullptr && mIsEngine)
        {
            refuse(quoted(name), "a value from the engine", "none", "build the engine again with this library");
        }
        return found;
    }

    void wantLength(PluginField const& field, int32_t count) const
    {
        if (field.type != PluginFieldType::kINT32 && field.type != PluginFieldType::kINT64)
        {
            refuse(quoted(field.name), "an INT32 field", typeOf(field));
        }
        if (field.length != count || field.data == nullptr)
        {
            refuse(quoted(field.name), std::to_string(count) + (count == 1 ? " value" : " values, one per direction,"),
                field.data == nullptr ? "none" : std::to_string(field.length));
        }
    }

    int32_t bounded(PluginField const& field, int32_t i, int32_t lowest, int32_t highest) const
    {
        int64_t const value = field.type == PluginFieldType::kINT64 ? valueAt<int64_t>(field, i)
                                                                    : valueAt<int32_t>(field, i);
        if (value < lowest || value > highest)
        {
            refuse(quoted(field.name),
                highest == kLARGEST ? std::to_string(lowest) + " or more"
                                    : std::to_string(lowest) + " to " + std::to_string(highest),
                std::to_string(value));
        }
        return static_cast<int32_t>(value);
    }

    bool mIsEngine;
    std::vector<PluginField> mFields;
    std::vector<bool> mIsRead;
};

void checkTogether(ScanAttributes const& found)
{
    if ((found.presence & kHAS_INITIAL_STATE) != 0 && found.segment > 0)
    {
        refuse("field 'segment'", "0 together with an initial_state", std::to_string(found.segment));
    }
    if ((found.presence & kHAS_Z) != 0 && found.gate == "none")
    {
        refuse("field 'gate'", "'silu' together with z", "'none'");
    }
}

} // namespace

ScanAttributes attributesFromFields(PluginFieldCollection const* fields, TensorRTPhase phase)
{
    ScanAttributes found;
    FieldReader reader(fields, phase);
    if (phase == TensorRTPhase::kRUNTIME)
    {
        int32_t const version = reader.integer(kSERIALIZATION_FIELD, 0, kLARGEST, 0);
        if (version != kSERIALIZATION_VERSION)
        {
            refuse("engine", "serialization version " + std::to_string(kSERIALIZATION_VERSION), std::to_string(version),
                "build the engine again with this library");
        }
        found.multiprocessors = reader.integer(kMULTIPROCESSORS_FIELD, 0, kLARGEST, 0);
    }
    found.directions = reader.integer("directions", 1, 64, found.directions);
    found.groups = reader.integer("groups", 1, kLARGEST, found.groups);
    found.reverse = reader.flags("reverse", found.directions);
    found.deltaSoftplus = reader.integer("delta_softplus", 0, 1, found.deltaSoftplus);
    found.segment = reader.integer("segment", 0, kLARGEST, found.segment);
    found.merge = reader.word("merge", {"none", "sum"});
    found.gate = reader.word("gate", {"silu", "none"});
    found.presence = reader.integer("presence", 0, kALL_INPUTS, found.presence);
    reader.refuseUnread();
    checkTogether(found);
    return found;
}

PluginFieldCollection const& nodeFields()
{
    static PluginField const kFIELDS[] = {
        {"directions", nullptr, PluginFieldType::kINT32, 1},
        {"groups", nullptr, PluginFieldType::kINT32, 1},
        {"reverse", nullptr, PluginFieldType::kINT32, 1},
        {"delta_softplus", nullptr, PluginFieldType::kINT32, 1},
        {"segment", nullptr, PluginFieldType::kINT32, 1},
        {"merge", nullptr, PluginFieldType::kCHAR, 1},
        {"gate", nullptr, PluginFieldType::kCHAR, 1},
        {"presence", nullptr, PluginFieldType::kINT32, 1},
    };
    static PluginFieldCollection const kCOLLECTION{sizeof(kFIELDS) / sizeof(kFIELDS[0]), kFIELDS};
    return kCOLLECTION;
}

SerializedFields::SerializedFields(ScanAttributes const& attributes)
    : mAttributes(attributes)
{
    auto const integer = [this](char const* name, int32_t const& value)
    { mFields.emplace_back(name, &value, PluginFieldType::kINT32, 1); };
    auto const word = [this](char const* name, std::string const& value)
    { mFields.emplace_back(name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size())); };

    integer(kSERIALIZATION_FIELD, mVersion);
    integer("directions", mAttributes.directions);
    integer("groups", mAttributes.groups);
    mFields.emplace_back("reverse", mAttributes.reverse.data(), PluginFieldType::kINT32, mAttributes.directions);
    integer("delta_softplus", mAttributes.deltaSoftplus);
    integer("segment", mAttributes.segment);
    word("merge", mAttributes.merge);
    word("gate", mAttributes.gate);
    integer("presence", mAttributes.presence);
    integer(kMULTIPROCESSORS_FIELD, mAttributes.multiprocessors);
    mCollection.nbFields = static_cast<int32_t>(mFields.size());
    mCollection.fields = mFields.data();
}

} // namespace mambapose
