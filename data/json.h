// JSON from outside.
#pragma once
#include <string_view>

#include <nlohmann/json.hpp>

namespace trireme {

// is_discarded() where the text is malformed or nests deeper than 8 levels: copies, comparisons and dumps of a value
// call themselves for each level, so that 100,000 brackets would end the process.
nlohmann::json parse_json(std::string_view text);

}  // namespace trireme
